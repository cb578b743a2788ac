//! `make bench-serve`: many clients at once, in a closed loop and by arrivals that come faster and faster.
//!
//! `cargo bench --bench serve -- --help` lists the arguments.

#[allow(dead_code, reason = "the other benchmark uses all of it")]
#[path = "../bench/main.rs"]
mod bench;
mod drive;
mod first;
mod load;
mod peers;
mod report;
mod results;
mod tally;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bench::measure::Result;
use bench::results::Spread;
use clap::{Parser, ValueEnum};
use cos::config::{Config, ModelConfig, ProviderName};
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::Options;
use cos::rows::Sampler;
use first::{First, Prepared};
use load::{Load, Mix};
use peers::Peer;
use results::{Case, Point, Results};
use tally::{Measurement, collapsed, figures, waiting};

/// Serve many clients at once, and measure throughput, latencies and memory.
#[derive(Parser)]
struct Arguments {
    /// Engine configurations. By default, those of the demo models.
    configs: Vec<PathBuf>,
    /// The folder of the report.
    #[arg(long, default_value = "target/bench-serve")]
    out: PathBuf,
    /// Measure little, in less than three minutes.
    #[arg(long)]
    quick: bool,
    /// The strategies.
    #[arg(long, value_delimiter = ',', default_value = "standard,speculative,cos,auto")]
    strategies: Vec<Name>,
    /// Clients of the closed loop. Each asks again as soon as it has been served.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64,256")]
    clients: Vec<usize>,
    /// The most sessions at once in the open loop. Further requests wait.
    #[arg(long, default_value_t = 32)]
    most: usize,
    /// The first rate of the open loop, in requests per second. By default, half of what `standard` served to the
    /// closed loop's clients, of as many as `--most` or the next fewer.
    #[arg(long)]
    rate: Option<f64>,
    /// A rate over the one before.
    #[arg(long, default_value_t = 1.6)]
    factor: f64,
    /// The most rates. Before that, the open loop ends once each strategy has collapsed.
    #[arg(long)]
    rates: Option<usize>,
    /// Seconds that are measured of a closed loop, or longer, until each client has been served once on average. Of an
    /// open loop, five times as many are measured.
    #[arg(long)]
    seconds: Option<f64>,
    /// Rounds of the closed loop, each of which measures everything in turn.
    #[arg(long)]
    rounds: Option<usize>,
    /// Give each session a thread of its own, instead of one thread for all.
    #[arg(long)]
    threads: bool,
    /// The prompts of the closed loop.
    #[arg(long, default_value = "short")]
    closed: Prompts,
    /// The prompts of the open loop.
    #[arg(long, default_value = "long")]
    open: Prompts,
    /// The mean number of tokens that a client wants. Each wants between a half and one and a half of it.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// The temperature.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// The seed of arrivals and lengths.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder of the models in Hugging Face's format, by name, for peers that run these.
    #[arg(long)]
    models: Option<PathBuf>,
    /// Leave out peers.
    #[arg(long)]
    no_peers: bool,
    /// Clients of the peers, of those of the closed loop.
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    peer_clients: Vec<usize>,
    /// Seconds to prepare the engine before it is measured. 0 is not at all. By default, 20 on a GPU and 5 on a CPU.
    #[arg(long)]
    prepare: Option<f64>,
    /// Measure also the first session of a process, by `standard` and `auto`, without preparation and with it.
    #[arg(long)]
    first: bool,
    /// Measure only that, in this process.
    #[arg(long, hide = true, requires_all = ["first_config", "first_prepared"])]
    first_by: Option<Name>,
    #[arg(long, hide = true)]
    first_config: Option<PathBuf>,
    #[arg(long, hide = true)]
    first_prepared: Option<f64>,
    /// Measure nothing. Write the report anew from the results.json of `--out`.
    #[arg(long)]
    report: bool,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A strategy by name.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Name {
    Standard,
    Speculative,
    Cos,
    Auto,
}

/// A set of prompts. `short` are GSM8K and HumanEval, `long` the same with one prompt of 384 to 768 tokens in eight.
#[derive(Clone, Copy, ValueEnum)]
enum Prompts {
    Gsm8k,
    Humaneval,
    Short,
    Long,
}

impl Name {
    fn strategy(self) -> Strategy {
        match self {
            Name::Standard => Strategy::Standard,
            Name::Speculative => Strategy::Speculative,
            Name::Cos => Strategy::Cos,
            Name::Auto => Strategy::Auto,
        }
    }

    fn word(self) -> String {
        self.to_possible_value().expect("no strategy is skipped").get_name().into()
    }
}

/// A configuration that is measured, with all that its measurements have in common.
struct Bench<'a> {
    arguments: &'a Arguments,
    engine: Arc<Engine>,
    prepared: Prepared,
    strategies: Vec<Name>,
    seconds: f64,
    rounds: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.report {
        let results = std::fs::read_to_string(arguments.out.join("results.json"))?;
        return report::write(&serde_json::from_str(&results)?, &arguments.out);
    }
    if let (Some(name), Some(path)) = (arguments.first_by, &arguments.first_config) {
        return Bench::first(&arguments, path, name);
    }
    let demo = ["one", "drafter", "engine", "three", "contrastive"];
    let demo = if arguments.quick { &demo[2..3] } else { &demo };
    let demo = demo.iter().map(|name| bench::root().join("models/demo").join(name).with_extension("json"));
    let configs = if arguments.configs.is_empty() { demo.collect() } else { arguments.configs.clone() };
    let mut results = Results::default();
    let mut versions = Vec::new();
    for (index, path) in configs.iter().enumerate() {
        println!("{}/{}: {}", index + 1, configs.len(), path.display());
        let config = Config::open(path)?;
        let first = firsts(&arguments, path, &config, &mut results.notes);
        let bench = Bench::new(&arguments, &config)?;
        if results.facts.is_empty() {
            results.facts = bench::facts(&bench.engine, Vec::new(), provider(&config));
        }
        let mut peers = Vec::new();
        if !arguments.no_peers {
            peers = peers::start(&config, arguments.models.as_deref(), provider(&config), &mut results.notes);
        }
        versions.extend(peers.iter().flat_map(|peer: &Peer| peer.worker.versions.clone()));
        let case = bench.case(path, &mut peers, &mut results.notes)?;
        results.cases.push(Case { first, ..case });
        report::write(&results, &arguments.out)?;
    }
    versions.sort();
    versions.dedup();
    results.facts.extend(versions);
    report::write(&results, &arguments.out)?;
    println!("{}", arguments.out.join("index.html").display());
    Ok(())
}

fn provider(config: &Config) -> bench::Provider {
    let is_cuda = |model: &ModelConfig| matches!(model, ModelConfig::Onnx(it) if it.provider == ProviderName::Cuda);
    if config.models.iter().any(is_cuda) { bench::Provider::Cuda } else { bench::Provider::Cpu }
}

impl Arguments {
    /// Seconds of preparation.
    fn preparation(&self, config: &Config) -> f64 {
        self.prepare.unwrap_or(if provider(config) == bench::Provider::Cuda { 20.0 } else { 5.0 })
    }

    /// Clients of the closed loop.
    fn clients(&self) -> impl Iterator<Item = usize> {
        self.clients.iter().copied().filter(|&clients| !self.quick || clients <= 16)
    }

    /// Most sessions at the same time.
    fn sessions(&self) -> usize {
        self.clients().chain([self.most]).max().unwrap_or(1)
    }
}

/// The first session of a process, without preparation and with it.
fn firsts(arguments: &Arguments, path: &Path, config: &Config, notes: &mut Vec<String>) -> Vec<First> {
    let mut firsts = Vec::new();
    let chosen = arguments.strategies.iter().copied().filter(|name| [Name::Standard, Name::Auto].contains(name));
    // One model alone has nothing to choose.
    let names = chosen.filter(|&name| config.models.len() > 1 || name == Name::Standard);
    for name in names.filter(|_| arguments.first) {
        for seconds in [0.0, arguments.preparation(config)] {
            match first::in_process(path, &name.word(), seconds) {
                Ok(first) => {
                    println!("    {}", report::first_line(&first));
                    firsts.push(first);
                }
                Err(error) => notes.push(format!("{}, first session by {}: {error}", path.display(), name.word())),
            }
        }
    }
    firsts
}

impl<'a> Bench<'a> {
    /// Measure the first session of this process.
    fn first(arguments: &Arguments, path: &Path, name: Name) -> Result<()> {
        let seconds = arguments.first_prepared.unwrap_or(0.0);
        let arguments = Arguments { prepare: Some(seconds), ..Arguments::parse() };
        let bench = Bench::new(&arguments, &Config::open(path)?)?;
        first::measure(&bench.engine, &bench.options(name)?, &bench.mix(arguments.closed)?, name.word(), bench.prepared)
    }

    fn new(arguments: &'a Arguments, config: &Config) -> Result<Bench<'a>> {
        let engine = Arc::new(Engine::load(config)?);
        let prepared = first::prepared(&engine, arguments.sessions(), arguments.preparation(config))?;
        println!("    {}", report::preparation(&prepared));
        // One model alone has nothing to choose.
        let several = config.models.len() > 1;
        let strategies = arguments.strategies.iter().copied().filter(|&name| several || name == Name::Standard);
        let (seconds, rounds) = if arguments.quick { (1.0, 1) } else { (2.0, 2) };
        Ok(Bench {
            arguments,
            engine,
            prepared,
            strategies: strategies.collect(),
            seconds: arguments.seconds.unwrap_or(seconds),
            rounds: arguments.rounds.unwrap_or(rounds),
        })
    }

    fn case(&self, path: &Path, peers: &mut Vec<Peer>, notes: &mut Vec<String>) -> Result<Case> {
        let mut case = Case {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            about: report::about(&self.engine),
            prepared: self.prepared,
            most: self.arguments.most,
            ..Case::default()
        };
        // This warms up, and `auto` learns the models.
        for &name in &self.strategies {
            self.measure(name, 4, Load::closed(self.mix(self.arguments.closed)?, 4, self.seconds / 2.0))?;
        }
        for clients in self.arguments.clients() {
            let standard = self.closed(clients, &mut case)?;
            if self.arguments.peer_clients.contains(&clients) {
                self.peers(clients, peers, &standard, &mut case, notes)?;
            }
        }
        self.open(&mut case)?;
        Ok(case)
    }

    /// The requests that are drawn from a set of prompts.
    fn mix(&self, prompts: Prompts) -> Result<Mix> {
        let sets: &[&str] = match prompts {
            Prompts::Gsm8k => &["gsm8k"],
            Prompts::Humaneval => &["humaneval"],
            Prompts::Short | Prompts::Long => &["gsm8k", "humaneval"],
        };
        let mut prompts_of_all = Vec::new();
        for set in sets {
            prompts_of_all.extend(bench::prompts(&self.engine, set, 200)?);
        }
        Ok(Mix {
            prompts: prompts_of_all,
            long: if matches!(prompts, Prompts::Long) { 0.125 } else { 0.0 },
            long_lengths: 384..768,
            tokens: self.arguments.tokens,
            seed: self.arguments.seed,
        })
    }

    fn options(&self, name: Name) -> Result<Options> {
        Ok(Options {
            strategy: name.strategy(),
            sampler: Sampler::new(self.arguments.temperature, 0, 0.0, 0.0)?,
            stop_tokens: Some(Vec::new()),
            ..Options::default()
        })
    }

    /// What clients saw, and the peak of the process's memory in MiB.
    fn measure(&self, name: Name, most: usize, load: Load) -> Result<(Measurement, f64)> {
        let options = self.options(name)?;
        peers::forget_peak(std::process::id())?;
        let drive = if self.arguments.threads { drive::by_threads } else { drive::by_one };
        let measurement = drive(&self.engine, &options, most, load)?;
        Ok((measurement, bench::kibibytes(std::process::id(), "VmHWM")? / 1024.0))
    }

    /// All strategies with so many clients. The tokens per second of `standard` are the result.
    fn closed(&self, clients: usize, case: &mut Case) -> Result<Vec<f64>> {
        let mut all: Vec<(Vec<Measurement>, f64)> = self.strategies.iter().map(|_| (Vec::new(), 0.0)).collect();
        for round in 0..self.rounds {
            for turn in 0..all.len() {
                let which = (turn + round) % all.len(); // no strategy always comes after the same one
                let mut mix = self.mix(self.arguments.closed)?;
                mix.seed += round as u64;
                let load = Load::closed(mix, clients, self.seconds);
                let (measurement, peak) = self.measure(self.strategies[which], clients, load)?;
                let (measurements, memory) = &mut all[which];
                measurements.push(measurement);
                *memory = memory.max(peak);
            }
        }
        let mut standard = Vec::new();
        for (name, (measurements, memory)) in self.strategies.iter().zip(all) {
            let figures = figures(&measurements);
            if *name == Name::Standard {
                standard.clone_from(&figures.tokens_per_second);
            }
            let ratio = over(&figures.tokens_per_second, &standard);
            let point = Point { memory, ratio, ..Point::new(&name.word(), clients as f64, &figures) };
            println!("    {}", report::line(&point));
            case.closed.push(point);
        }
        Ok(standard)
    }

    /// All peers with so many clients.
    fn peers(
        &self,
        clients: usize,
        peers: &mut Vec<Peer>,
        standard: &[f64],
        case: &mut Case,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let mix = self.mix(self.arguments.closed)?;
        peers.retain_mut(|peer| match peer.measure(clients, &mix, self.seconds) {
            Ok((measurement, memory)) => {
                let figures = figures(&[measurement]);
                let ratio = over(&figures.tokens_per_second, &[Spread::of(standard.iter().copied()).median]);
                let point = Point { peer: true, memory, ratio, ..Point::new(&peer.name, clients as f64, &figures) };
                println!("    {}", report::line(&point));
                case.closed.push(point);
                true
            }
            Err(error) => {
                notes.push(format!("{}, {}, {clients} clients: {error}", case.name, peer.name));
                false
            }
        });
        notes.extend(peers.iter_mut().filter_map(|peer| peer.note.take()).map(|note| format!("{}: {note}", case.name)));
        Ok(())
    }

    /// Rising rates, until each strategy has collapsed.
    fn open(&self, case: &mut Case) -> Result<()> {
        let served = |point: &&Point| point.name == "standard" && point.load <= self.arguments.most as f64;
        let most = case
            .closed
            .iter()
            .rfind(served)
            .map(|point| 0.5 * point.tokens_per_second.median / self.arguments.tokens as f64);
        let Some(mut rate) = self.arguments.rate.or(most) else { return Ok(()) };
        let mut going = self.strategies.clone();
        for _ in 0..self.arguments.rates.unwrap_or(if self.arguments.quick { 2 } else { 8 }) {
            for name in going.clone() {
                let mix = self.mix(self.arguments.open)?;
                let load = Load::open(mix, rate, 5.0 * self.seconds);
                let (measurement, memory) = self.measure(name, self.arguments.most, load)?;
                let waiting = waiting(&measurement.served, &measurement.window);
                let collapsed = collapsed(&measurement);
                let point = Point::new(&name.word(), rate, &figures(&[measurement]));
                let point = Point { memory, waiting, collapsed, ..point };
                println!("    {}", report::line(&point));
                case.open.push(point);
                going.retain(|other| !collapsed || *other != name);
            }
            if going.is_empty() {
                break;
            }
            rate *= self.arguments.factor;
        }
        Ok(())
    }
}

/// Ratios within each round.
fn over(own: &[f64], standard: &[f64]) -> Spread {
    Spread::of(own.iter().zip(standard).map(|(own, standard)| own / standard))
}
