//! `make conformance`: the proof that what is decoded follows the combined distribution, as a report. `tests/conformance.rs`
//! runs the same with less effort.

#[path = "../common/mod.rs"]
mod common;
pub mod faults;
pub mod generator;
pub mod greedy;
mod report;
pub mod results;
pub mod sampled;
pub mod sequences;
pub mod stats;
mod tables;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::Parser;
use serde_json::json;

use results::{Run, Section};

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

/// A bar in the terminal; lines where there is none.
struct Bar(Mutex<indicatif::ProgressBar>);

impl Progress for Bar {
    fn start(&self, what: &str, steps: u64) {
        let style = "{msg:40} {wide_bar} {pos}/{len}, {elapsed}, {eta} left";
        let bar = indicatif::ProgressBar::new(steps).with_message(what.to_string());
        bar.set_style(indicatif::ProgressStyle::with_template(style).expect("a template"));
        if bar.is_hidden() {
            println!("{what}: {steps} steps");
        }
        std::mem::replace(&mut *self.0.lock().expect("no panic"), bar).finish();
    }

    fn advance(&self) {
        self.0.lock().expect("no panic").inc(1);
    }
}

/// Map in parallel, on all cores; the results are in the order of the items.
pub fn parallel<T: Sync, R: Send>(items: &[T], map: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < items.len())
                {
                    let result = map(&items[index]);
                    results.lock().expect("no panic")[index] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().expect("no panic");
    results.into_iter().map(|result| result.expect("every item was mapped")).collect()
}

/// Prove that what is decoded follows the combined distribution, and write a report.
#[derive(Parser)]
struct Arguments {
    /// Where the report goes.
    #[arg(long, default_value = "target/conformance")]
    out: std::path::PathBuf,
    /// As much as `make test` does, in a minute.
    #[arg(long)]
    quick: bool,
    /// Only these parts: numbers, joint, sessions, greedy, faults.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Shifts all seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// For a library with a fault in it: print in JSON what fails.
    #[arg(long, hide = true)]
    probe: bool,
    /// With a part and the index of a comparison: how often it fails, of so many repetitions with other seeds.
    #[arg(long, hide = true)]
    repeat: Option<String>,
    #[arg(long, hide = true, default_value_t = 20)]
    times: u64,
}

/// A part of the suite that faults are shown to, with few draws.
pub struct Probe {
    pub part: &'static str,
    run: fn() -> Section,
    /// One of its comparisons again, by its index, with a seed.
    repeat: fn(usize, u64) -> results::Comparison,
}

pub const PROBES: [Probe; 3] = [
    Probe {
        part: "random numbers",
        run: || generator::run(50_000, &Silent),
        repeat: |index, _| generator::repeat(index, 50_000),
    },
    Probe {
        part: "joint distributions",
        run: || sampled::run(sampled::Effort::PROBE, &Silent),
        repeat: |index, seed| sampled::repeat(index, sampled::Effort::PROBE, seed),
    },
    Probe {
        part: "whole sessions",
        run: || sequences::run(1_000, 0, &Silent),
        repeat: |index, seed| sequences::repeat(index, 1_000, seed),
    },
];

/// Below which bound a comparison of a probe fails: as strict as the longest run.
pub const STRICTEST: f64 = stats::FAMILY_ERROR / 20_000.0;

/// What fails in each part: how many of its comparisons, and the index of the worst.
fn probe() -> serde_json::Value {
    let found = PROBES.iter().map(|Probe { part, run, .. }| {
        let section = run();
        let bounds: Vec<f64> = section.comparisons.iter().map(|comparison| comparison.fit.bound).collect();
        let failed = bounds.iter().filter(|bound| **bound < STRICTEST).count();
        let worst = (0..bounds.len()).min_by(|&a, &b| bounds[a].total_cmp(&bounds[b]));
        let worst = worst.expect("every part compares something");
        (*part, json!({ "failed": failed, "of": bounds.len(), "worst": worst, "bound": bounds[worst] }))
    });
    json!(found.collect::<BTreeMap<_, _>>())
}

/// How often a comparison fails, with the draws and the threshold of a probe, given as its part and index.
fn repeat(what: &str, times: u64) -> u64 {
    let (part, index) = what.rsplit_once(':').expect("a part and an index");
    let probe = PROBES.iter().find(|probe| probe.part == part).expect("a part");
    let index = index.parse().expect("an index");
    (1..=times).filter(|&seed| !(probe.repeat)(index, seed).fits(STRICTEST)).count() as u64
}

/// What was run on what.
fn facts(arguments: &Arguments) -> Vec<(String, String)> {
    let read = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string()).filter(|text| !text.is_empty())
    };
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let commit = read("git", &["describe", "--always", "--dirty"]).unwrap_or("unknown".into());
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    [
        ("CoS", format!("{}, commit {commit}", env!("CARGO_PKG_VERSION"))),
        ("machine", format!("{cores} cores, {}", processor.map_or("unknown", |(_, name)| name))),
        ("system", read("uname", &["-srm"]).unwrap_or_default()),
        ("compiler", read("rustc", &["--version"]).unwrap_or_default()),
        ("seeds", format!("fixed, shifted by {}", arguments.seed)),
        ("command", format!("conformance {command}").trim_end().to_string()),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .to_vec()
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.probe || arguments.repeat.is_some() {
        std::panic::set_hook(Box::new(|_| {})); // panics are counted, not shown
        match &arguments.repeat {
            Some(what) => println!("{}", repeat(what, arguments.times)),
            None => println!("{}", probe()),
        }
        return ExitCode::SUCCESS;
    }
    let (quick, seed, bar) = (arguments.quick, arguments.seed, Bar(Mutex::new(indicatif::ProgressBar::hidden())));
    let mut run = Run::default();
    let mut part = |name: &str, section: &dyn Fn() -> Section| {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            let started = Instant::now();
            let section = section();
            run.sections.push(Section { seconds: started.elapsed().as_secs_f64(), ..section });
        }
    };
    let effort = if quick { sampled::Effort::QUICK } else { sampled::Effort::LONG };
    part("numbers", &|| generator::run(if quick { 50_000 } else { 5_000_000 }, &bar));
    part("joint", &|| sampled::run(sampled::Effort { seed, ..effort }, &bar));
    part("sessions", &|| sequences::run(if quick { 2_000 } else { 50_000 }, seed, &bar));
    part("greedy", &|| greedy::run(if quick { greedy::Effort::QUICK } else { greedy::Effort::LONG }, &bar));
    part("faults", &|| faults::run(if quick { faults::Effort::Quick } else { faults::Effort::Long }, &bar));
    for section in &run.sections {
        println!("{} ({:.0} s): {}", section.title, section.seconds, section.headline);
        for table in &section.tables {
            for row in &table.rows {
                println!("    {}", row.join(" | "));
            }
        }
    }
    run.facts = facts(&arguments);
    report::write(&run, &arguments.out).expect("a folder that can be written to");
    println!("{}", arguments.out.join("index.html").display());
    let failures = run.failures();
    failures.iter().for_each(|failure| println!("FAILED: {failure}"));
    ExitCode::from(u8::from(!failures.is_empty()))
}
