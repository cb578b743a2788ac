//! A server on a GPU: prompts come all the time, beside those who decode.

use cos::config::Combine;

use super::machine::{Company, Fixed, Machine, Passes};
use crate::common::World;

/// Tokens of a prompt, and of the text behind it.
const PROMPT: usize = 130;
const TEXT: usize = 64;

/// Tokens of each session in which plans are tried, and those in which `auto` is measured.
const TRIALS: usize = 300;
const MEASURED: usize = 900;

/// Passes of models of 14 million parameters, and of models that cost what 2 billion parameters do.
const SMALL: Passes = Passes::new(250.0, 0.7, 0);
const LARGE: Passes = Passes::new(2300.0, 3.0, 0);

/// Passes of two models overlap, so `standard` is fast. `auto` has so many times its speed at least, with 4, 16 and 64
/// sessions.
fn check(what: &str, passes: Passes, temperature: f32, combine: Option<Combine>, gains: [f64; 3]) {
    let serial = Some(if passes.least > 1000.0 { 0.45 } else { 0.3 });
    let machine = Machine::mixture(World::Related, temperature, [passes; 2]);
    let machine =
        Machine { serial, host: 1.5, tokens: 2048, combine: combine.unwrap_or(machine.combine.clone()), ..machine };
    for (sessions, gain) in [4, 16, 64].into_iter().zip(gains) {
        let run = |options| {
            let simulation = machine.start();
            let mut company = Company::new(&simulation, &options, sessions, PROMPT);
            [TRIALS, MEASURED].map(|tokens| company.run(tokens))
        };
        let (standard, auto) = (run(machine.options(Fixed::STANDARD, TEXT)), run(machine.auto(TEXT)));
        let [first, later] = [0, 1].map(|part| standard[part] / auto[part]);
        println!("{what}, {sessions} sessions: {first:.3} of standard, then {later:.3}");
        assert!(first > 0.8, "{what}, {sessions} sessions: {first} at first");
        assert!(later > gain, "{what}, {sessions} sessions: {later} of standard");
    }
}

#[test]
fn routes_gain_beside_prompts() {
    check("small models", SMALL, 1.0, None, [1.2, 1.15, 1.03]);
    check("large models", LARGE, 1.0, None, [1.3, 1.3, 1.1]);
}

/// Drafts gain little where both models run at the same time, and less than forecast: acceptance differs from session
/// to session, so they do not keep in step.
#[test]
fn drafts_that_gain_nothing_are_left() {
    check("small models, greedily", SMALL, 0.0, None, [0.98; 3]);
    check("large models, greedily", LARGE, 0.0, None, [0.98; 3]);
    let contrastive = || Some(Combine::Contrastive { mu: 0.1, plausibility: 0.1 });
    check("small models, contrastively", SMALL, 0.0, contrastive(), [0.98; 3]);
    check("large models, contrastively", LARGE, 0.0, contrastive(), [0.97; 3]);
}
