//! The parts of the conformance suite. `program.rs` runs them at length and writes a report; the tests run them with few draws.

pub mod faults;
pub mod generator;
pub mod greedy;
mod plot;
pub mod programs;
pub mod report;
pub mod results;
pub mod sampled;
pub mod sequences;
pub mod stats;
mod tables;
pub mod vectors;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use results::Section;

/// Shows how far a part of the suite is.
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

/// Map in parallel, on all cores; the results are in the order of the items.
pub fn parallel<T: Sync, R: Send>(items: &[T], map: impl Fn(&T) -> R + Sync) -> Vec<R> {
    parallel_until(items, map, |_| false)
}

/// The same, but no more items are begun once a result is enough.
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

/// A part of the suite that faults are shown to, with few draws.
pub struct Probe {
    pub part: &'static str,
    /// Until the first failure, or all of it.
    pub run: fn(bool) -> Section,
    /// One of its comparisons again, by its index, with a seed.
    pub repeat: fn(usize, u64) -> results::Comparison,
    /// Whether it runs exports, which takes long.
    pub exports: bool,
}

pub const PROBES: [Probe; 4] = [
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
];

/// A folder of reference vectors.
pub fn reference(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

/// Below which bound a comparison of a probe fails: as strict as the longest run.
pub const STRICTEST: f64 = stats::FAMILY_ERROR / 20_000.0;
