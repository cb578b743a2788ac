//! `make conformance`: proves that decoded text follows the combined distribution, and writes a report. `main.rs` has
//! the same checks with few draws as tests.

#[path = "../common/mod.rs"]
mod common;
#[path = "suite.rs"]
mod suite;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser;
use serde_json::json;

use suite::results::{Run, Section};
use suite::{
    PROBES, Probe, Progress, STRICTEST, faults, generator, greedy, packed, programs, reference, report, results,
    sampled, sequences, vectors,
};

/// A bar in a terminal, lines of text elsewhere.
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

/// Prove that decoded text follows the combined distribution, and write a report.
#[derive(Parser)]
struct Arguments {
    /// The folder of the report.
    #[arg(long, default_value = "target/conformance")]
    out: std::path::PathBuf,
    /// Only as many draws as `make test`, which takes minutes.
    #[arg(long)]
    quick: bool,
    /// Only these parts: numbers, joint, sessions, vectors, greedy, packed, simulation, faults.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Shifts all seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// For a library with a planted fault: print the failures as JSON.
    #[arg(long, hide = true)]
    probe: bool,
    #[arg(long, hide = true)]
    exports: bool,
    /// Stop at the first failure.
    #[arg(long, hide = true)]
    first: bool,
    /// A part and the index of a comparison: print how often it fails in `times` repetitions with other seeds.
    #[arg(long, hide = true)]
    repeat: Option<String>,
    #[arg(long, hide = true, default_value_t = 20)]
    times: u64,
}

/// The vectors of both folders, with so many draws from each case.
pub fn reference_vectors(tiny: usize, demo: usize, progress: &dyn Progress) -> Vec<Section> {
    progress.start("reference vectors: files", 17);
    let mut advance = |_: &str| progress.advance();
    vec![
        vectors::replay(&reference("tiny"), tiny, &mut advance),
        vectors::replay(&reference("demo"), demo, &mut advance),
    ]
}

/// Runs the simulation, which is part of another program.
fn simulate(rounds: u64, progress: &dyn Progress) -> Section {
    progress.start("simulation", 1);
    let mut section = Section {
        title: "Simulation".into(),
        about: "A seed determines models, options, the calls of a caller and what goes wrong: passes that fail, rows \
                that are no numbers, panics, cancels, callbacks that fail or call back. After every call the promises \
                of cos.h are checked: committed tokens never change, nothing is committed on an error, caches hold \
                what was committed, counters are consistent, sequences end where they should, a poisoned session stays \
                so. A failure names its seed."
            .into(),
        ..Section::default()
    };
    let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = programs::build(package, &["--test", "algorithm"]);
    match built
        .and_then(|mut programs| programs.remove("algorithm").ok_or("cargo built no test of the algorithm".into()))
    {
        Err(error) => section.failures.push(error),
        Ok(program) => {
            let variables = [("COS_SIMULATION_ROUNDS", rounds.to_string())];
            match programs::run(&program, &["simulation::promises", "--nocapture"], &variables) {
                None => section.failures.push("it does not end".into()),
                Some(done) if !done.success => section.failures.push(done.text),
                Some(done) => {
                    let lines = || done.text.lines();
                    section.headline = lines().find(|line| line.contains("rounds in")).unwrap_or("").to_string();
                    let pairs = lines().filter_map(|line| line.strip_prefix("  ")?.rsplit_once(": "));
                    section.tables.push(results::Table {
                        caption: "What happened how often".into(),
                        head: vec!["event".into(), "count".into()],
                        rows: pairs.map(|(what, count)| vec![what.into(), count.into()]).collect(),
                    });
                }
            }
        }
    }
    progress.advance();
    section
}

/// The failures of each part: the number of failed comparisons, and the index of the worst. With `first`, stops after a
/// part that fails.
fn probe(exports: bool, first: bool) -> serde_json::Value {
    let mut found = BTreeMap::new();
    for Probe { part, run, .. } in PROBES.iter().filter(|probe| !probe.exports || exports) {
        let section = run(first);
        let bounds: Vec<f64> = section.comparisons.iter().map(|comparison| comparison.fit.bound).collect();
        let failed = bounds.iter().filter(|bound| **bound < STRICTEST).count();
        let worst = (0..bounds.len()).min_by(|&a, &b| bounds[a].total_cmp(&bounds[b]));
        let bound = worst.map_or(1.0, |worst| bounds[worst]);
        // All other failures count as one.
        let failed = failed + usize::from(!section.failures.is_empty());
        found.insert(*part, json!({ "failed": failed, "of": bounds.len(), "worst": worst, "bound": bound }));
        if first && failed > 0 {
            break;
        }
    }
    json!(found)
}

/// How often a comparison fails with the draws and the threshold of a probe. `what` is its part and index.
fn repeat(what: &str, times: u64) -> u64 {
    let (part, index) = what.rsplit_once(':').expect("a part and an index");
    let probe = PROBES.iter().find(|probe| probe.part == part).expect("a part");
    let index = index.parse().expect("an index");
    (1..=times).filter(|&seed| !(probe.repeat)(index, seed).fits(STRICTEST)).count() as u64
}

/// Facts about this run and this machine.
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
        std::panic::set_hook(Box::new(|_| {})); // panics are counted, not printed
        match &arguments.repeat {
            Some(what) => println!("{}", repeat(what, arguments.times)),
            None => println!("{}", probe(arguments.exports, arguments.first)),
        }
        return ExitCode::SUCCESS;
    }
    let (quick, seed, bar) = (arguments.quick, arguments.seed, Bar(Mutex::new(indicatif::ProgressBar::hidden())));
    let mut run = Run::default();
    let mut part = |name: &str, sections: &dyn Fn() -> Vec<Section>| {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            let started = Instant::now();
            let mut sections = sections();
            if let [section] = &mut sections[..] {
                section.seconds = started.elapsed().as_secs_f64();
            }
            run.sections.extend(sections);
        }
    };
    let effort = if quick { sampled::Effort::QUICK } else { sampled::Effort::LONG };
    part("numbers", &|| vec![generator::run(if quick { 50_000 } else { 5_000_000 }, &bar)]);
    part("joint", &|| vec![sampled::run(sampled::Effort { seed, ..effort }, &bar)]);
    part("sessions", &|| vec![sequences::run(if quick { 2_000 } else { 50_000 }, seed, &bar)]);
    part("vectors", &|| if quick { reference_vectors(20, 4, &bar) } else { reference_vectors(400, 100, &bar) });
    part("greedy", &|| vec![greedy::run(if quick { greedy::Effort::QUICK } else { greedy::Effort::LONG }, &bar)]);
    part("packed", &|| vec![if quick { packed::run(300, 250, &bar) } else { packed::run(3_000, 20_000, &bar) }]);
    part("simulation", &|| vec![simulate(if quick { 1_000_000 } else { 5_000_000 }, &bar)]);
    part("faults", &|| vec![faults::run(if quick { faults::Effort::Quick } else { faults::Effort::Long }, &bar)]);
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
