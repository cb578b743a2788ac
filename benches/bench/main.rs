//! `make bench`: compares the strategies of CoS with each other and with other ways of decoding, and writes a report.
//!
//! `cargo bench --bench bench -- --help` lists the arguments. With engine configurations as arguments, it compares the
//! strategies on those.

pub mod cases;
pub mod cuda;
mod hostile;
pub mod measure;
pub mod peers;
pub mod quality;
mod raw;
pub mod report;
pub mod results;
pub mod theory;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use cos::config::{Combine, Config, ExportConfig, ModelConfig, ProviderName};
use cos::engine::Engine;
use cos::engine::participant::Participant;
use cos::engine::session::{Session, State};
use cos::model::Model;

use cases::{Decoder, Peers, Task};
use measure::{Effort, Result};
use peers::{Started, Worker};
use results::{Results, Spread};

/// Compare the strategies with each other and with other ways of decoding, and write a report.
#[derive(Parser)]
pub struct Arguments {
    /// Engine configurations to compare instead of the whole benchmark. Ratios are over the first one's `standard`.
    configs: Vec<PathBuf>,
    /// The folder of the report. Exports and Python are there too, where scripts/bench-setup puts them.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// A folder of Hugging Face models that scripts/bench-setup has exported. By default, the demo models are used.
    #[arg(long)]
    models: Option<PathBuf>,
    /// Use only these models of the folder. If several fit a case, the first ones are used.
    #[arg(long, value_delimiter = ',')]
    names: Vec<String>,
    /// Measure little, in two or three minutes.
    #[arg(long)]
    quick: bool,
    /// Leave out other ways of decoding.
    #[arg(long)]
    no_peers: bool,
    /// Measure only cases whose title contains one of these words, separated by ;
    #[arg(long, value_delimiter = ';')]
    cases: Vec<String>,
    /// Measure only rows with these names, separated by ; and `standard`.
    #[arg(long, value_delimiter = ';')]
    only: Vec<String>,
    /// The number of prompts of a case.
    #[arg(long)]
    prompts: Option<usize>,
    /// The number of tokens that are decoded for a prompt.
    #[arg(long)]
    tokens: Option<usize>,
    /// The number of rounds.
    #[arg(long)]
    rounds: Option<usize>,
    /// For configurations: the temperature.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// For configurations: top-k.
    #[arg(long, default_value_t = 0)]
    top_k: i32,
    /// For configurations: top-p.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// For configurations: min-p.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// For configurations: the set of prompts.
    #[arg(long, default_value = "gsm8k")]
    prompt_set: PromptSet,
    /// For configurations: measure the quality of text instead of time.
    #[arg(long, requires = "configs")]
    quality: bool,
    /// For configurations: measure the memory of so many open sessions instead of time.
    #[arg(long)]
    sessions: Option<usize>,
    /// A folder of finished exports, such as those of scripts/bench-cuda. Measures strategies and peers on GSM8K.
    /// `--models` may name a folder of the same models in Hugging Face's format, for peers.
    #[arg(long, conflicts_with = "configs")]
    exports: Option<PathBuf>,
    /// With `--exports`: compare only passes with those of plain ONNX Runtime.
    #[arg(long, requires = "exports")]
    passes: bool,
    /// With `--exports`: the provider that they run on.
    #[arg(long, default_value = "cpu")]
    provider: Provider,
    /// With `--exports`: start no case that is likely to end later than so many seconds after the start.
    #[arg(long)]
    budget: Option<u64>,
    /// Measure nothing. Write cuda.md and its plots to `--out`, from the results of scripts/bench-cuda in this folder.
    #[arg(long, conflicts_with_all = ["configs", "exports"])]
    cuda_report: Option<PathBuf>,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub enum Provider {
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PromptSet {
    Gsm8k,
    Humaneval,
}

fn main() -> Result<()> {
    run(&Arguments::parse())
}

/// Run the benchmark.
pub fn run(arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    if let Some(folder) = &arguments.cuda_report {
        return cuda::write(folder, &arguments.out);
    }
    if arguments.quality {
        return quality(arguments);
    }
    let mut results = Results::default();
    let (engine, mut tasks) =
        if arguments.configs.is_empty() { whole(arguments, &mut results)? } else { own(arguments)? };
    if !arguments.only.is_empty() {
        let wanted = |plan: &cases::Plan| plan.name == "standard" || arguments.only.contains(&plan.name);
        tasks.iter_mut().for_each(|task| task.plans.retain(wanted));
    }
    if arguments.no_peers {
        tasks.iter_mut().for_each(|task| task.plans.retain(|plan| matches!(plan.decoder, Decoder::Ours(_))));
    }
    if !arguments.cases.is_empty() {
        tasks.retain(|task| arguments.cases.iter().any(|part| task.title.contains(part)));
    }
    if tasks.is_empty() {
        return Err("there is nothing to compare: no case has that name, or there are too few models".into());
    }
    if let Some(count) = arguments.sessions {
        let prompt = prompts(&engine, tasks[0].prompts, 1)?.remove(0);
        return memory(&tasks[0], &prompt, arguments.tokens.unwrap_or(96), count);
    }
    if arguments.passes {
        results.prompts = prompt_costs(&engine, &prompts(&engine, tasks[0].prompts, 1)?[0])?;
        results.raw = raw_costs(arguments, &engine, &tasks[0], &mut results.notes)?;
        results.facts = facts(&engine, Vec::new(), arguments.provider);
        return report::write(&results, &arguments.out);
    }
    if arguments.exports.is_some() && arguments.provider == Provider::Cuda {
        prepare(&tasks, arguments)?;
    }
    let (mut workers, versions) = workers(arguments, &tasks, &mut results.notes);
    results.facts = facts(&engine, versions, arguments.provider);
    measure_cases(arguments, &tasks, &mut workers, &mut results, began)?;
    if !arguments.configs.is_empty() {
        println!("{}", report::markdown(&results)?);
    }
    println!("{}", arguments.out.join("index.html").display());
    Ok(())
}

/// Measure all cases, and write a report after each, so that a stopped run leaves one.
fn measure_cases(
    arguments: &Arguments,
    tasks: &[Task],
    workers: &mut [Started],
    results: &mut Results,
    began: Instant,
) -> Result<()> {
    let (count, rounds, tokens) = if arguments.quick { (1, 2, 32) } else { (3, 5, 96) };
    let count = arguments.prompts.unwrap_or(count);
    let effort = Effort {
        tokens: arguments.tokens.unwrap_or(tokens),
        rounds: arguments.rounds.unwrap_or(rounds),
        peer_prompts: count.div_ceil(3),
    };
    let runs = |task: &Task| (task.plans.len() * (1 + effort.rounds * count)) as u64;
    let bar = indicatif::ProgressBar::new(tasks.iter().map(runs).sum());
    let style = "{msg:60!} {wide_bar} {pos}/{len}, {elapsed}, {eta} left";
    bar.set_style(indicatif::ProgressStyle::with_template(style).expect("a template"));
    let mut longest = Duration::ZERO;
    for (index, task) in tasks.iter().enumerate() {
        if arguments.budget.is_some_and(|budget| began.elapsed() + longest > Duration::from_secs(budget)) {
            results.notes.push(format!("left out for want of time: {}", task.title));
            report::write(results, &arguments.out)?;
            continue;
        }
        let started = Instant::now();
        if bar.is_hidden() {
            println!("{}/{}: {}", index + 1, tasks.len(), task.title);
        }
        let tick = |row: &str| {
            bar.set_message(format!("{}: {row}", task.title));
            bar.inc(1);
        };
        let prompts = prompts(&task.engine, task.prompts, count)?;
        match measure::run(task, &prompts, &effort, workers, &tick) {
            Ok(case) => results.cases.push(case),
            // Other cases may succeed, and time on a GPU is scarce.
            Err(error) if arguments.exports.is_some() => {
                results.notes.push(format!("{} failed: {error}", task.title));
            }
            Err(error) => return Err(error),
        }
        longest = longest.max(started.elapsed());
        report::write(results, &arguments.out)?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// The project's folder. The environment names it at run time if the program was built elsewhere.
pub fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The whole benchmark, over a folder of models or the demo models.
fn whole(arguments: &Arguments, results: &mut Results) -> Result<(Arc<Engine>, Vec<Task>)> {
    let (exports, names) = exports(arguments, &mut results.notes)?;
    let all = load(&exports, &names, arguments.provider, 0)?;
    let path = |folder: PathBuf| folder.canonicalize().unwrap_or(folder).to_string_lossy().into_owned();
    let folder = |name: &String| {
        let original = arguments.models.as_ref().map(|originals| originals.join(name));
        (path(exports.join(name)), original.filter(|folder| folder.join("config.json").is_file()).map(path))
    };
    let peers = Peers {
        folders: names.iter().map(folder).collect(),
        sizes: all.participants().iter().map(Participant::cost).collect(),
        settings: !arguments.quick,
        cuda: arguments.provider == Provider::Cuda,
    };
    if arguments.exports.is_some() {
        let second = match arguments.provider {
            Provider::Cuda if !arguments.passes && raw::devices()? > 1 => {
                Some(load(&exports, &names, arguments.provider, 1)?)
            }
            _ => None,
        };
        let tasks = cases::on_gpu(&all, second.as_ref(), &peers)?;
        return Ok((all, tasks));
    }
    if arguments.models.is_none() {
        results.notes.push(
            "transformers: skipped, because the demo models are not available in its format (MODELS= names others)"
                .into(),
        );
    }
    let mut tasks = cases::all(&all, &peers, arguments.quick)?;
    let wide = arguments.out.join("wide");
    let widened: Vec<String> =
        names.iter().filter(|name| wide.join(name).join("model.onnx").is_file()).take(2).cloned().collect();
    if arguments.models.is_some() && !arguments.quick && widened.len() == 2 {
        tasks.extend(cases::long_rows(&load(&wide, &widened, arguments.provider, 0)?)?);
    }
    Ok((all, tasks))
}

/// The folder of exports, and the names of those that share a vocabulary.
fn exports(arguments: &Arguments, notes: &mut Vec<String>) -> Result<(PathBuf, Vec<String>)> {
    let exports = match (&arguments.exports, &arguments.models) {
        (Some(exports), _) => exports.clone(),
        (None, Some(_)) => arguments.out.join("models"),
        (None, None) => root().join("models/demo"),
    };
    let wanted = |name: &String| match &arguments.models {
        Some(originals) if arguments.exports.is_none() => originals.join(name).join("config.json").is_file(),
        _ => true,
    };
    let mut names: Vec<String> = std::fs::read_dir(&exports)
        .map_err(|error| format!("{}: {error}; run scripts/bench-setup first, or make bench", exports.display()))?
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().join("model.onnx").is_file()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(wanted)
        .collect();
    names.sort();
    if !arguments.names.is_empty() {
        names = arguments.names.clone();
    }
    // Models can only be combined if they share a vocabulary, so those with the first one's are used.
    let tokenizer = |name: &String| std::fs::read(exports.join(name).join("tokenizer.json")).unwrap_or_default();
    let first = names.first().map(tokenizer).unwrap_or_default();
    let (names, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| tokenizer(name) == first);
    if !others.is_empty() {
        notes.push(format!("left out, because their tokenizer is not that of {}: {}", names[0], others.join(", ")));
    }
    if names.is_empty() {
        return Err(format!(
            "{} has no folder with a model.onnx; run scripts/bench-setup first, or make bench",
            exports.display()
        )
        .into());
    }
    Ok((exports, names))
}

/// An engine with all exports of a folder, whose models other engines use.
fn load(folder: &Path, names: &[String], provider: Provider, device: i32) -> Result<Arc<Engine>> {
    let export = |name: &String| {
        ModelConfig::Onnx(ExportConfig {
            path: folder.join(name),
            provider: match provider {
                Provider::Cpu => ProviderName::Cpu,
                Provider::Cuda => ProviderName::Cuda,
            },
            device_id: device,
            options: Default::default(),
            name: Some(name.clone()),
            scoring: None,
            rows: None,
            context_length: None,
            cache_bytes: None,
        })
    };
    Ok(Arc::new(Engine::load(&Config {
        combine: Combine::Target { model: 0 },
        models: names.iter().map(export).collect(),
        threads: 0,
        spinning: None,
        overlap: None,
        greedy_below: 0.0,
        when_full: Default::default(),
        routes: None,
        onnxruntime: None,
    })?))
}

/// One case with the strategies on all configurations of the caller.
fn own(arguments: &Arguments) -> Result<(Arc<Engine>, Vec<Task>)> {
    let mut plans = Vec::new();
    for (index, config) in arguments.configs.iter().enumerate() {
        let engine = Arc::new(Engine::load(&Config::open(config)?)?);
        let stem = config.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        plans.extend(cases::strategies(&engine, arguments.temperature == 0.0).into_iter().map(|mut plan| {
            if index > 0 {
                plan.name = format!("{}, {stem}", plan.name);
            }
            plan
        }));
    }
    let Decoder::Ours(first) = &plans[0].decoder else { unreachable!("configurations have no peers") };
    let engine = first.engine.clone();
    let task = Task {
        title: arguments.configs.iter().map(|config| config.to_string_lossy()).collect::<Vec<_>>().join(", "),
        about: String::new(),
        kind: String::new(),
        engine: engine.clone(),
        temperature: arguments.temperature,
        filters: (arguments.top_k, arguments.top_p, arguments.min_p),
        prompts: match arguments.prompt_set {
            PromptSet::Gsm8k => "gsm8k",
            PromptSet::Humaneval => "humaneval",
        },
        sweep: None,
        judge: None,
        plans,
    };
    Ok((engine, vec![task]))
}

/// Print the quality of configurations on both sets of prompts.
fn quality(arguments: &Arguments) -> Result<()> {
    let (count, tokens) = if arguments.quick { (2, 32) } else { (20, 128) };
    let (count, tokens) = (arguments.prompts.unwrap_or(count), arguments.tokens.unwrap_or(tokens));
    for config in &arguments.configs {
        let engine = Engine::load(&Config::open(config)?)?;
        for set in ["gsm8k", "humaneval"] {
            println!("{}, {count} prompts of {set}\n", config.display());
            println!("{}", quality::table(&engine, &prompts(&engine, set, count)?, tokens)?);
        }
    }
    Ok(())
}

/// The tokens of the first prompts of a set.
pub fn prompts(engine: &Engine, set: &str, count: usize) -> Result<Vec<Vec<i32>>> {
    let file = root().join("models/demo/prompts").join(set).with_extension("jsonl");
    let text = engine.text()?;
    std::fs::read_to_string(&file)
        .map_err(|error| format!("{}: {error}; run in a checkout, which has the prompts", file.display()))?
        .lines()
        .take(count)
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line)?;
            Ok(text.encode(line["prompt"].as_str().ok_or("a line has no prompt")?, true)?)
        })
        .collect()
}

/// Start the workers that rows need, and note why others cannot be started. The second value has versions of packages.
fn workers(arguments: &Arguments, tasks: &[Task], notes: &mut Vec<String>) -> (Vec<Started>, Vec<(String, String)>) {
    let own = arguments.out.join("venv/bin/python");
    let python = std::env::var_os("BENCH_PYTHON").filter(|path| !path.is_empty()).map_or(own, PathBuf::from);
    let needs = |index: usize| {
        let decoders = tasks.iter().flat_map(|task| &task.plans).map(|plan| &plan.decoder);
        decoders.into_iter().any(|decoder| matches!(decoder, Decoder::Peer { worker, .. } if *worker == index))
    };
    let mut versions = Vec::new();
    let start = |(index, (name, words)): (usize, &(&str, &[&str]))| {
        if !needs(index) {
            return Err("not needed".to_string());
        }
        let started = Worker::start(&python, &root().join("scripts/bench_peers.py"), words);
        match &started {
            Ok(worker) => versions.extend(worker.versions.clone()),
            Err(error) => {
                let note = format!("{name}: skipped, because {error}");
                println!("{note}");
                notes.push(note);
            }
        }
        started
    };
    let workers = peers::WORKERS.iter().enumerate().map(start).collect();
    versions.sort();
    versions.dedup();
    (workers, versions)
}

/// Versions, machine, models and command, for the report.
pub fn facts(engine: &Engine, versions: Vec<(String, String)>, provider: Provider) -> Vec<(String, String)> {
    let read = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string()).filter(|text| !text.is_empty())
    };
    let line = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim().to_string()))
    };
    let describe = engine.describe();
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let library = describe["onnxruntime"].as_str().unwrap_or_default().rsplit(".so.").next().unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let mut facts = vec![
        (
            "CoS".to_string(),
            format!(
                "{}, commit {}",
                env!("CARGO_PKG_VERSION"),
                // Without a repository, the environment names the commit.
                std::env::var("COS_COMMIT")
                    .ok()
                    .or_else(|| read("git", &["describe", "--always", "--dirty"]))
                    .unwrap_or("unknown".into())
            ),
        ),
        ("ONNX Runtime".to_string(), library.to_string()),
    ];
    facts.extend(versions);
    if provider == Provider::Cuda {
        let asked = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "--id=0"];
        let gpu = read("nvidia-smi", &asked).unwrap_or("unknown".into());
        facts.push(("GPU, driver, memory".into(), gpu));
        if let Ok(value) = std::env::var("ORT_ENABLE_XQA") {
            facts.push(("ORT_ENABLE_XQA".into(), value));
        }
    }
    facts.extend([
        (
            "machine".to_string(),
            format!("{cores} cores, {}", line("/proc/cpuinfo", "model name").unwrap_or("unknown".into())),
        ),
        ("memory".to_string(), line("/proc/meminfo", "MemTotal").unwrap_or_default()),
        ("threads".to_string(), describe["threads"].to_string()),
        ("load at the start".to_string(), load.to_string()),
        ("system".to_string(), read("uname", &["-srm"]).unwrap_or_default()),
        ("models".to_string(), models(engine)),
        (
            "command".to_string(),
            format!("{} {}", env!("CARGO_CRATE_NAME"), std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
        ),
    ]);
    facts
}

fn models(engine: &Engine) -> String {
    let scoring = engine.models();
    scoring
        .map(|model| format!("{} ({:.1} MB)", model.name(), model.cost() as f64 / 1e6))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Times of passes in CoS and in plain ONNX Runtime, which loads each model once more.
fn raw_costs(
    arguments: &Arguments,
    engine: &Engine,
    task: &Task,
    notes: &mut Vec<String>,
) -> Result<Vec<results::RawCost>> {
    let folder = arguments.exports.as_deref().unwrap_or(Path::new(""));
    let text = prompts(engine, task.prompts, 1)?.remove(0);
    let turn = if arguments.quick { 0.01 } else { 0.12 };
    let mut costs = Vec::new();
    for model in engine.models() {
        let file = folder.join(model.name()).join("model.onnx");
        match raw::compare(model, &file, arguments.provider == Provider::Cuda, &text, turn) {
            Ok(own) => costs.extend(own),
            Err(error) => notes.push(format!("plain ONNX Runtime with {}: {error}", model.name())),
        }
    }
    Ok(costs)
}

/// Times of prompts whose length the process has not met, and of the same lengths again. cuDNN plans each new length.
fn prompt_costs(engine: &Engine, text: &[i32]) -> Result<Vec<results::PromptCost>> {
    const SHORTEST: usize = 201;
    const LENGTHS: usize = 40;
    let text: Vec<i32> = text.iter().copied().cycle().take(SHORTEST + LENGTHS).collect();
    let mut costs = Vec::new();
    for model in engine.models() {
        let read = |tokens: usize| {
            let mut sequence = model.start(&Arc::default())?;
            let started = Instant::now();
            measure::extend(model, sequence.as_mut(), &text[..tokens])?;
            Result::Ok(1e3 * started.elapsed().as_secs_f64())
        };
        read(SHORTEST - 1)?; // allocates memory
        let all = || (SHORTEST..SHORTEST + LENGTHS).map(read).collect::<Result<Vec<_>>>().map(Spread::of);
        costs.push(results::PromptCost { model: model.name().into(), tokens: SHORTEST, first: all()?, again: all()? });
    }
    Ok(costs)
}

/// Run passes of all widths on top of a prompt and on top of the longest text, so that cuDNN plans them before anything
/// is timed. That takes up to 90 ms for each width and size of the cache, once for a process.
fn prepare(tasks: &[Task], arguments: &Arguments) -> Result<()> {
    const WIDEST: usize = 20;
    let prompt = prompts(&tasks[0].engine, tasks[0].prompts, 1)?.remove(0);
    let tokens = arguments.tokens.unwrap_or(96) + WIDEST;
    let text: Vec<i32> = prompt.iter().copied().cycle().take(prompt.len() + tokens).collect();
    let mut prepared: Vec<&dyn Model> = Vec::new();
    for plan in tasks.iter().flat_map(|task| &task.plans) {
        let Decoder::Ours(ours) = &plan.decoder else { continue };
        for model in ours.engine.models() {
            if prepared.iter().any(|other| std::ptr::addr_eq(*other, model)) {
                continue;
            }
            prepared.push(model);
            let mut sequence = model.start(&Arc::default())?;
            for end in [prompt.len(), text.len()] {
                let seen = sequence.len();
                measure::extend(model, sequence.as_mut(), &text[seen..end])?;
                for width in 1..=WIDEST.min(end) {
                    for _ in 0..2 {
                        measure::extend(model, sequence.as_mut(), &text[..width])?;
                        sequence.truncate(end);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Print the memory of open sessions for each strategy.
fn memory(task: &Task, prompt: &[i32], tokens: usize, count: usize) -> Result<()> {
    println!("| strategy | tokens of each session | KiB of each of {count} sessions |\n| --- | ---: | ---: |");
    for plan in &task.plans {
        let Decoder::Ours(ours) = &plan.decoder else { continue };
        let open = || -> Result<Session> {
            let mut session = Session::new(&ours.engine, &measure::options(ours, task, tokens, 0)?)?;
            session.prompt(prompt)?;
            while session.step()?.1 == State::Open {}
            Ok(session)
        };
        open()?; // ONNX Runtime's own memory does not belong to a session
        let before = kibibytes(std::process::id(), "VmRSS")?;
        let sessions = (0..count).map(|_| open()).collect::<Result<Vec<_>>>()?;
        let tokens = sessions[0].decoder().committed().len();
        println!(
            "| {} | {tokens} | {} |",
            plan.name,
            (kibibytes(std::process::id(), "VmRSS")? - before).max(0.0) as u64 / count as u64
        );
    }
    Ok(())
}

/// A line of a process's status that has KiB: `VmRSS` is its resident memory, `VmHWM` the peak of it.
pub fn kibibytes(process: u32, name: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
