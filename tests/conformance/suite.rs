//! The parts of the conformance suite. `program.rs` runs them at length and writes a report; the tests run them with
//! few draws.

pub mod branches;
pub mod faults;
pub mod generator;
pub mod greedy;
pub mod packed;
mod plot;
pub mod programs;
pub mod report;
pub mod request;
pub mod results;
pub mod sampled;
pub mod sequences;
pub mod stats;
mod tables;
pub mod vectors;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use results::Section;

/// Shows the progress of a part of the suite.
pub trait Progress: Sync {
    fn start(&self, what: &str, steps: u64);
    fn advance(&self);
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: u64) {}
    fn advance(&self) {}
}

/// Maps items on all cores. The results have the order of the items.
pub fn parallel<T: Sync, R: Send>(items: &[T], map: impl Fn(&T) -> R + Sync) -> Vec<R> {
    parallel_until(items, map, |_| false)
}

/// The same, but begins no further items after a result that is enough.
pub fn parallel_until<T: Sync, R: Send>(
    items: &[T],
    map: impl Fn(&T) -> R + Sync,
    enough: impl Fn(&R) -> bool + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < items.len())
                {
                    let result = map(&items[index]);
                    if enough(&result) {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    results.lock().expect("no panic")[index] = Some(result);
                }
            });
        }
    });
    results.into_inner().expect("no panic").into_iter().flatten().collect()
}

/// A part of the suite that looks for planted faults, with few draws.
pub struct Probe {
    pub part: &'static str,
    /// Runs the part: until the first failure if the argument is true.
    pub run: fn(bool) -> Section,
    /// Repeats the comparison with this index, with a seed.
    pub repeat: fn(usize, u64) -> results::Comparison,
    /// Whether the part runs exports, which takes long.
    pub exports: bool,
}

pub const PROBES: [Probe; 5] = [
    Probe {
        part: "random numbers",
        run: |_| generator::run(50_000, &Silent),
        repeat: |index, _| generator::repeat(index, 50_000),
        exports: false,
    },
    Probe {
        part: "joint distributions",
        run: |first| sampled::run(sampled::Effort { first, ..sampled::Effort::PROBE }, &Silent),
        repeat: |index, seed| sampled::repeat(index, sampled::Effort::PROBE, seed),
        exports: false,
    },
    Probe {
        part: "whole sessions",
        run: |_| sequences::run(1_000, 0, &Silent),
        repeat: |index, seed| sequences::repeat(index, 1_000, seed),
        exports: false,
    },
    Probe {
        part: "vectors",
        run: |_| vectors::replay(&reference("tiny"), 8, &mut |_| {}),
        repeat: |_, _| unreachable!("vectors are not only drawn from"),
        exports: true,
    },
    Probe {
        part: "common passes",
        run: |_| packed::run(300, 250, &Silent),
        repeat: |_, _| unreachable!("rows are compared, too"),
        exports: true,
    },
];

/// A folder of reference vectors.
pub fn reference(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

/// A comparison of a probe fails if its bound is below this. It is as strict as in the longest run.
pub const STRICTEST: f64 = stats::FAMILY_ERROR / 20_000.0;
