//! What all sessions together get done, against an oracle.
//!
//! The oracle knows all: it has tried plans on the same machine, with the same prompts, and takes the best one.

use cos::config::Combine;
use cos::decode::policy::Targets;

use super::machine::{Company, Fixed, Machine, Passes};
use crate::common::World;

/// Tokens of the first sessions in which plans are tried. A trial that fails loses six tokens' time, and a few rounds
/// pass before it is known and all have left it.
const TRIALS: f64 = 9.0;

/// Share of the oracle's speed that later sessions have at least.
const SHARE: f64 = 0.9;

/// How many times as fast as `standard` are others, with so many sessions.
struct Speeds {
    oracle: f64,
    first: f64,
    later: f64,
}

impl Machine {
    /// Compare for so many sessions of so many tokens each. The first `auto` sessions know nothing.
    fn compare(&self, sessions: usize, tokens: usize) -> Speeds {
        let some = if sessions > 1_000 { 4 } else { usize::MAX };
        let (simulation, options) = (self.start(), self.options(self.fixed().next().unwrap(), tokens));
        let mut company = Company::new(&simulation, &options, sessions, 4);
        let [start, standard] = [(); 2].map(|()| company.run(tokens));
        let alone = |plan| {
            let simulation = self.start();
            let mut company = Company::new(&simulation, &self.options(plan, tokens), sessions, 4);
            company.run(tokens / 6);
            company.run(tokens / 3)
        };
        let best = self.fixed().skip(1).take(some).map(alone).fold(standard, f64::min);
        let simulation = self.start();
        let mut company = Company::new(&simulation, &self.auto(tokens), sessions, 4);
        let [first, later] = [(); 2].map(|()| company.run(tokens));
        let speeds = Speeds { oracle: standard / best, first: start / first, later: standard / later };
        let Speeds { oracle, first, later } = speeds;
        println!("{sessions:5} sessions: standard {standard:6.2} µs, oracle {oracle:.3}, {first:.3}, then {later:.3}");
        speeds
    }

    /// `gains` are what the oracle gains at least, by the number of sessions.
    fn check(&self, what: &str, gains: &[(usize, f64)]) {
        println!("{what}");
        for &(sessions, gain) in gains {
            let tokens = match sessions {
                ..100 => 300,
                100..500 => 150,
                500..5_000 => 100,
                _ => 24,
            };
            let Speeds { oracle, first, later } = self.compare(sessions, tokens);
            assert!(oracle >= gain, "{what}, {sessions}: the oracle gains {oracle}");
            let lost = (1.0 - first) * tokens as f64;
            assert!(lost < TRIALS, "{what}, {sessions}: {first} at first");
            assert!(later > 0.99 && later > SHARE * oracle, "{what}, {sessions}: {later}, not {oracle}");
        }
    }
}

#[test]
fn sampled_mixtures_gain_by_routes() {
    let flat = Machine::mixture(World::Related, 1.0, [Passes::new(300.0, 1.0, 64); 2]);
    flat.check("flat passes", &[(1, 1.9), (4, 1.9), (16, 1.9), (64, 1.6), (256, 1.4), (1_000, 1.3)]);
    let linear = Machine::mixture(World::Related, 1.0, [Passes::new(300.0, 20.0, 0); 2]);
    linear.check("linear passes", &[(1, 1.8), (4, 1.6), (16, 1.2), (64, 1.05), (256, 1.0)]);
    let unrelated = Machine::mixture(World::Unrelated, 1.0, [Passes::new(300.0, 5.0, 16); 2]);
    unrelated.check("unrelated models", &[(1, 1.9), (4, 1.9), (16, 1.5), (64, 1.2), (256, 1.1)]);
}

#[test]
fn greedy_mixtures_gain_by_turns() {
    let equal = Machine::mixture(World::Related, 0.0, [Passes::new(300.0, 1.0, 64); 2]);
    equal.check("equal models", &[(1, 1.3), (4, 1.3), (16, 1.25), (64, 1.1), (256, 1.05)]);
    let other = Machine::mixture(World::Related, 0.0, [Passes::new(60.0, 0.2, 64), Passes::new(600.0, 1.0, 64)]);
    other.check("a small and a large model", &[(1, 1.9), (4, 1.9), (16, 1.7), (64, 1.4), (256, 1.2), (1_000, 1.1)]);
}

/// A drafter that the target does not need is only known by probes.
#[test]
fn a_drafter_is_found_in_company() {
    let passes = [Passes::new(30.0, 0.2, 64), Passes::new(600.0, 1.0, 64)];
    let combine = Combine::Target { model: 1 };
    let machine = Machine { combine, ..Machine::mixture(World::Related, 0.0, passes) };
    machine.check("a drafter", &[(1, 1.35), (4, 1.3), (16, 1.25), (64, 1.05), (256, 1.0), (1_000, 1.0)]);
}

/// Where nothing is to be gained, little is lost.
#[test]
fn hostile_models_lose_nothing() {
    let greedy = Machine::mixture(World::Unrelated, 0.0, [Passes::new(300.0, 5.0, 16); 2]);
    greedy.check("unrelated models", &[(1, 1.05), (4, 1.0), (16, 1.0), (64, 1.0), (256, 1.0), (1_000, 1.0)]);
    let combine = Combine::Target { model: 1 };
    let passes = [Passes::new(200.0, 5.0, 0), Passes::new(300.0, 20.0, 0)];
    let drafter = Machine { combine, ..Machine::mixture(World::Unrelated, 0.0, passes) };
    drafter.check("an unrelated drafter", &[(1, 1.0), (4, 1.0), (16, 1.0), (64, 1.0), (256, 1.0)]);
}

#[test]
fn ten_thousand_friendly_sessions() {
    let flat = Machine::mixture(World::Related, 1.0, [Passes::new(300.0, 1.0, 64); 2]);
    flat.check("flat passes", &[(10_000, 1.25)]);
}

#[test]
fn ten_thousand_hostile_sessions() {
    let greedy = Machine::mixture(World::Unrelated, 0.0, [Passes::new(300.0, 5.0, 16); 2]);
    greedy.check("unrelated models", &[(10_000, 1.0)]);
}

/// A GPU, on which passes of both models overlap, more or less.
#[test]
fn overlapping_passes() {
    for (serial, gains) in [(0.6, [1.5, 1.5, 1.5, 1.5, 1.4]), (0.3, [1.2, 1.2, 1.2, 1.2, 1.2])] {
        let gains: Vec<_> = [1, 4, 16, 64, 256].into_iter().zip(gains).collect();
        gpu(serial, (0.0, 0)).check(&format!("{serial} of a pass does not overlap"), &gains);
    }
}

/// The same, greedily. `standard` runs both models at once, so wide passes of the second one never run alone. If they
/// were extrapolated, `standard` would be expected to take far longer than it does.
#[test]
fn greedy_overlapping_passes() {
    for (sessions, token) in [(16, 20.0), (64, 2.0), (64, 20.0)] {
        let passes = Passes::new(270.0, token, 0);
        let machine = Machine { serial: Some(0.2), ..Machine::mixture(World::Related, 0.0, [passes; 2]) };
        machine.check(&format!("{token} us for a token"), &[(sessions, 1.0)]);
    }
}

/// A GPU that is faster than the host. Much of the host's work is for a round, however many passes it has: a plan of
/// fewer passes does not save it, and one of fewer rounds does.
#[test]
fn host_work_for_rounds() {
    for (sessions, token, gain) in [(16, 3.0, 1.05), (16, 6.0, 1.0), (64, 0.75, 1.1), (256, 0.2, 1.4)] {
        let friendly = Machine::mixture(World::Related, 1.0, [Passes::new(270.0, token, 0); 2]);
        let machine = Machine { serial: Some(0.2), host: 0.7, round: 2.5, ..friendly };
        machine.check(&format!("{token} us for a token"), &[(sessions, gain)]);
    }
}

/// A machine on which one pass in 25 takes five times as long, by chance. What is learned then must not be wrong.
#[test]
fn disturbed_passes() {
    let routed = Fixed { targets: Some(Targets::Routed), ..Fixed::STANDARD };
    for sessions in [16, 64] {
        let shares = (0..8).map(|seed| {
            let machine = gpu(0.6, (0.04, seed));
            let run = |options| Company::new(&machine.start(), &options, sessions, 4).run(600);
            run(machine.options(routed, 200)) / run(machine.auto(200))
        });
        let shares: Vec<f64> = shares.collect();
        println!("{sessions} sessions: {shares:.2?} of the best plan's speed");
        assert!(shares.iter().sum::<f64>() / 8.0 > 0.9, "{sessions} sessions: {shares:?}");
    }
}

fn gpu(serial: f64, disturbed: (f64, u64)) -> Machine {
    let passes = Passes::new(235.0, 0.5, 0).with_sessions(1.3);
    let friendly = Machine::mixture(World::Related, 1.0, [passes; 2]);
    Machine { serial: Some(serial), host: 1.5, tokens: 2048, disturbed, ..friendly }
}
