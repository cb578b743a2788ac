//! Costs jump: `auto` finds its way, and stays there.

use cos::config::Combine;
use cos::decode::policy::Plan;

use super::machine::{Company, Machine, Passes};
use crate::common::World;

/// Tokens of a session. Those who begin have prompts, so passes are not all of one width.
const OUTPUT: usize = 200;
const PROMPT: usize = 40;

/// Tokens of each session for which a plan is in force at least. `standard` is measured for less.
const MEASUREMENT: f64 = 12.0;

/// Changes of the plan in 300 tokens of each session, once `auto` has settled.
const MOST_CHANGES: usize = 3;

/// Decode so many tokens of each session. Returns microseconds for a token, and how often the plan has changed.
fn watch(company: &mut Company, tokens: usize) -> (f64, usize) {
    let sessions = company.sessions.len();
    let (begun, mut done) = (company.simulation.now(), 0);
    let mut plans = Vec::<(Plan, usize)>::new();
    while done < tokens * sessions {
        let plan = company.sessions[0].decoder().plan();
        if plans.last().is_none_or(|(last, _)| last != plan) {
            plans.push((plan.clone(), 0));
        }
        let new = company.step();
        done += new;
        plans.last_mut().unwrap().1 += new;
    }
    plans.retain(|(_, tokens)| *tokens as f64 > MEASUREMENT * sessions as f64);
    plans.dedup_by(|(one, _), (other, _)| one == other);
    ((company.simulation.now() - begun) / done as f64, plans.len().saturating_sub(1))
}

/// The least microseconds for a token of fixed plans.
fn oracle(machine: &Machine, sessions: usize) -> f64 {
    let alone = |plan| {
        let simulation = machine.start();
        let mut company = Company::new(&simulation, &machine.options(plan, OUTPUT), sessions, PROMPT);
        company.run(30);
        company.run(200)
    };
    machine.fixed().map(alone).fold(f64::INFINITY, f64::min)
}

/// After so many tokens of each session, `auto` has this share of the oracle's speed.
type Settles = (usize, f64);

/// Let costs jump there and back, twice.
fn jump(what: &str, machine: &Machine, after: [Passes; 2], sessions: usize, settles: [Settles; 2]) {
    let changed = Machine { passes: after.to_vec(), ..machine.clone() };
    let [here, there] = [machine, &changed].map(|machine| oracle(machine, sessions));
    let simulation = machine.start();
    let mut company = Company::new(&simulation, &machine.auto(OUTPUT), sessions, PROMPT);
    company.run(300);
    for _ in 0..2 {
        for (passes, best, settles) in [(&after[..], there, settles[0]), (&machine.passes[..], here, settles[1])] {
            simulation.set_passes(passes);
            let (at_first, _) = watch(&mut company, settles.0);
            let (token, changes) = watch(&mut company, 300);
            let [at_first, share] = [at_first, token].map(|token| best / token);
            println!("{what}, {sessions} sessions: {at_first:.3} of the oracle, then {share:.3}, {changes} changes");
            assert!(share > settles.1, "{what}, {sessions} sessions: {share} of the oracle");
            assert!(changes <= MOST_CHANGES, "{what}, {sessions} sessions: {changes} changes");
        }
    }
}

/// The way back is long: only probes see that a drafter that rests has become fast again, and they may take 0.3 % of
/// the time. And the plan that is found need not be the oracle's, since what is known of the drafter is old.
#[test]
fn a_drafter_becomes_slow() {
    let passes = [Passes::new(120.0, 0.2, 64), Passes::new(600.0, 1.0, 64)];
    let machine = drafter(passes);
    for sessions in [1, 4, 16] {
        jump("a slow drafter", &machine, [passes[0].slower(3.0), passes[1]], sessions, [(150, 0.95), (3_000, 0.88)]);
    }
}

/// The way back: passes with prompts show what wide passes take.
#[test]
fn flat_passes_become_linear() {
    let passes = [Passes::new(60.0, 0.2, 64), Passes::new(600.0, 1.0, 64)];
    let machine = drafter(passes);
    for sessions in [16, 64] {
        jump("linear", &machine, [passes[0], Passes::new(600.0, 60.0, 0)], sessions, [(150, 0.95), (1_000, 0.9)]);
    }
}

/// Both models always run. There are many plans of about the same speed.
#[test]
fn one_of_two_models_becomes_slow() {
    let passes = [Passes::new(60.0, 0.2, 64), Passes::new(600.0, 1.0, 64)];
    let mixture = Machine::mixture(World::Related, 0.0, passes);
    for sessions in [16, 64] {
        let settles = [(400, 0.88); 2];
        jump("a slow small model", &mixture, [passes[0].slower(3.0), passes[1]], sessions, settles);
        jump("a slow large model", &mixture, [passes[0], passes[1].slower(3.0)], sessions, settles);
    }
}

fn drafter(passes: [Passes; 2]) -> Machine {
    Machine { combine: Combine::Target { model: 1 }, ..Machine::mixture(World::Related, 0.0, passes) }
}
