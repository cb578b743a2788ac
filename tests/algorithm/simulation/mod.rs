//! Deterministic simulation: one seed draws a random world of models, sessions, calls and faults, and every call is
//! compared with what `cos.h` promises. The idea is that of TigerBeetle's VOPR and of FoundationDB.
//!
//! A run makes an engine of scripted models and drives up to four sessions in turn, only through the `extern "C"`
//! functions. Each seed enables its own set of faults. A mirror of each session predicts what every call must return.
//! After each call the run checks that
//! - committed tokens never change, and a failed call changes and writes nothing;
//! - stop tokens, `max_tokens` and the context end a sequence exactly where they should, and it stays ended;
//! - every error, cancellation and panic has a planted cause, and every planted cause has its effect;
//! - each model's cache holds the committed tokens, followed by the same pending tokens as all other caches;
//! - the statistics count the passes and positions that the models saw;
//! - the oracle of `tests/common` allows each token: the best one in a greedy session, a possible one otherwise, with
//!   the oracle's log-probability (half of all tokens are checked);
//! - sampled tokens do not lean towards their drafter. The sum of deviations is a martingale, which faults,
//!   cancellations and changes of weights must not move.
//!
//! `cargo test --release --test algorithm simulation` runs a fixed list of seeds until they have made a million rounds,
//! and then checks that every kind of event has happened. `COS_SIMULATION_ROUNDS=50000000` runs longer. A failure names
//! its seed, and `COS_SEED=123 cargo test --release --test algorithm promises` runs that seed alone and prints each
//! call.
//!
//! Real models are tested by `tests/models`, calls from several threads by `tests/interface/boundary`.

/// Prints a line of the trace if it is enabled. It does not use `println`, whose output the test runner captures.
macro_rules! trace {
    ($simulation:expr, $($arg:tt)*) => {
        if $simulation.trace {
            use std::io::Write as _;
            let line = format!($($arg)*);
            let _ = writeln!(std::io::stderr(), "{:>5}  {line}", $simulation.call);
        }
    };
}

/// Returns an error with this message unless the condition holds.
macro_rules! ensure {
    ($right:expr, $($arg:tt)*) => {
        if !$right {
            return Err(format!($($arg)*));
        }
    };
}

mod calls;
mod faults;
mod models;
mod report;
mod session;
mod steps;

use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use calls::run;
use faults::PLANTED;
use models::Bug;
use report::{Lean, Report, Violation};

/// Hides the messages of planted panics. Those of other panics are printed.
fn quiet_planted_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let shown = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let planted = info.payload_as_str().is_some_and(|message| message.contains(PLANTED));
            if !planted {
                shown(info);
            }
        }));
    });
}

/// Runs the seeds from 0 on, in blocks and on all cores, until they have made so many rounds. The seeds are always the
/// same.
fn simulate(rounds: u64) -> Result<(Report, u64), Violation> {
    const BLOCK: u64 = 256;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut report, mut seeds) = (Report::default(), 0);
    while report.rounds < rounds {
        let next = AtomicU64::new(seeds);
        seeds += BLOCK;
        let work = || {
            let mut done = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return done;
                }
                let result = std::panic::catch_unwind(|| run(seed, None, false));
                let panicked = |_| Err(Violation { seed, call: 0, what: "the simulation itself panicked".into() });
                done.push((seed, result.unwrap_or_else(panicked)));
            }
        };
        let mut done: Vec<(u64, Result<Report, Violation>)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
        });
        done.sort_by_key(|(seed, _)| *seed); // so that sums do not depend on the number of cores
        for (_, result) in done {
            report.merge(result?);
        }
    }
    Ok((report, seeds))
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is {value}, not a number")))
}

#[test]
fn promises_are_kept() {
    quiet_planted_panics();
    if let Some(seed) = number("COS_SEED") {
        if let Err(violation) = run(seed, None, true) {
            panic!("{violation}");
        }
        return;
    }
    let (rounds, started) = (number("COS_SIMULATION_ROUNDS").unwrap_or(1_000_000), Instant::now());
    let (report, seeds) = simulate(rounds).unwrap_or_else(|violation| panic!("{violation}"));
    let seconds = started.elapsed().as_secs_f64();
    let rate = report.rounds as f64 / seconds;
    let mut summary = format!("{seeds} seeds, {} rounds in {seconds:.1} s, {rate:.0} a second\n", report.rounds);
    summary += &format!("  tokens judged: {}, on an edge: {}\n", report.judged, report.edges);
    for (way, lean) in &report.lean {
        summary += &format!("  lean, {way}: {:+.2} sigma of {} tokens\n", lean.score(), lean.tokens);
    }
    for (what, count) in &report.coverage {
        summary += &format!("  {what}: {count}\n");
    }
    let _ = std::io::stderr().write_all(summary.as_bytes());

    assert!(report.edges * 10_000 <= report.judged, "too many tokens lie on the edge of a filter");
    for (way, lean) in &report.lean {
        assert!(lean.score().abs() < 5.0, "{way}: the tokens do not follow their distributions");
    }
    // A simulation that never reaches a state proves nothing about it.
    for what in EVENTS.split("; ") {
        let count = report.coverage.get(what).copied().unwrap_or(0);
        assert!(rounds < 1_000_000 || count >= 50, "{what} happened {count} times only");
    }
}

/// Events that must happen in every run of the fixed seeds.
const EVENTS: &str = "\
    finish: none; finish: stop; finish: max_tokens; finish: context full; finish: cancelled; \
    error: invalid argument; error: runtime; error: context full; error: numeric; error: unsupported; \
    error: poisoned; error: internal; error: callback; fault: pass; fault: panic; fault: cancel; fault: reentry; \
    fault: row; fault: function; fault: scores; combination: weighted; combination: logits; combination: target; \
    combination: contrastive; combination: contrastive, plausible; combination: function; auto, combined; \
    auto, routed; standard, combined; standard, routed; speculative, combined; speculative, routed; cos, combined; \
    cos, routed; proposal accepted; proposal rejected; bonus token; cancelled between steps; \
    cancelled within a pass; prompt; chat turn; prompt after an end; step after an end; weights set; \
    weights set, proposals kept; weights set, proposals dropped; plan changed; weights made room; weights refused, no \
    room; free; engine freed before its sessions";

#[test]
fn planted_bugs_are_found() {
    quiet_planted_panics();
    for (bug, says) in [
        (Bug::TruncateKeepsOne, &["the cache of model 0 holds"][..]),
        (Bug::StaleRow, &["is not what"][..]),
        (Bug::WideRow, &["is not what"][..]),
        (Bug::LosesToken, &["but was told", "steps, tokens, forwards, positions are"]),
        (Bug::LogProbability, &["is not what"][..]),
        (Bug::MissesTheEnd, &["but was told"][..]),
        (Bug::WritesOnError, &["a failed step wrote its result"][..]),
        (Bug::Forgives, &["gave ok"][..]),
    ] {
        let found = (0..50).find_map(|seed| run(seed, Some(bug), false).err());
        let violation = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?}: {violation}");
        assert!(
            says.iter().any(|says| violation.what.contains(says)),
            "{bug:?} was found by another check: {violation}"
        );
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    quiet_planted_panics();
    for seed in 0..20 {
        let [a, b] = [0, 1].map(|_| format!("{:?}", run(seed, None, false).unwrap()));
        assert_eq!(a, b, "seed {seed}");
    }
}

#[test]
fn a_bias_towards_the_drafter_shows() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (r, q, biased) = ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.49, 0.3, 0.21]);
    let mut score = |from: [f64; 3]| {
        let mut lean = Lean::default();
        for _ in 0..100_000 {
            let at = rng.f64();
            lean.add(&r, &q, if at < from[0] { 0 } else { 1 + usize::from(at >= from[0] + from[1]) });
        }
        lean.score()
    };
    assert!(score(r).abs() < 4.0 && score(biased) > 5.0);
}
