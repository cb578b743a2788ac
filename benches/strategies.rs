//! Strategies side by side on real models: tokens per second as ratios to `standard`, within one run.
//!
//! `cargo bench --bench strategies -- CONFIG... PROMPTS [--prompts N] [--tokens N] [--rounds N] [--temperature T]
//! [--only NAME,NAME] [--sessions N]`; `standard` is always run.
//!
//! Each round decodes the same prompts with every strategy in turn, so that noise of the machine hits all alike; the
//! ratios are medians over rounds of the ratios within a round. Of several configurations the first one's `standard` is
//! the measure. Greedily, the prompts that got the very tokens of that are counted. With `--sessions`, memory is
//! measured: what so many open sessions take, each with a prompt and its tokens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cos::config::Config;
use cos::decode::policy::{Strategy, Targets};
use cos::decode::sampling::Sampler;
use cos::engine::Engine;
use cos::session::{Options, Session, State};
use cos::stats::Stats;

struct Arguments {
    configs: Vec<PathBuf>,
    prompts: PathBuf,
    count: usize,
    tokens: usize,
    rounds: usize,
    temperature: f32,
    only: Vec<String>,
    sessions: usize,
}

fn arguments() -> Arguments {
    let mut free = Vec::new();
    let (mut count, mut tokens, mut rounds, mut temperature) = (6, 128, 5, 1.0);
    let (mut only, mut sessions) = (Vec::new(), 0);
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        if word == "--only" {
            only = words.next().unwrap_or_else(|| usage()).split(',').map(String::from).collect();
            continue;
        }
        let mut number = || words.next().and_then(|n| n.parse::<f32>().ok()).unwrap_or_else(|| usage());
        match word.as_str() {
            "--prompts" => count = number() as usize,
            "--tokens" => tokens = number() as usize,
            "--rounds" => rounds = number() as usize,
            "--temperature" => temperature = number(),
            "--sessions" => sessions = number() as usize,
            _ => free.push(PathBuf::from(word)),
        }
    }
    let prompts = free.pop().unwrap_or_else(|| usage());
    if free.is_empty() {
        usage();
    }
    Arguments { configs: free, prompts, count, tokens, rounds, temperature, only, sessions }
}

fn usage() -> ! {
    eprintln!(
        "usage: strategies CONFIG... PROMPTS [--prompts N] [--tokens N] [--rounds N] [--temperature T] \
         [--only NAME,NAME] [--sessions N]"
    );
    std::process::exit(2)
}

/// A row of the table: an engine and a strategy.
struct Row {
    name: String,
    engine: Arc<Engine>,
    options: Options,
    seconds: Vec<f64>,
    stats: Stats,
    /// Of each prompt, in the last round.
    tokens: Vec<Vec<i32>>,
}

fn rows(name: &str, engine: &Arc<Engine>, arguments: &Arguments) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let ones = vec![1; engine.models().len()];
    let mut variants = vec![
        ("standard", Strategy::Standard, None, None),
        ("speculative γ=1", Strategy::Speculative, None, Some(ones.clone())),
        ("speculative γ=5", Strategy::Speculative, None, Some(vec![5; ones.len()])),
        ("cos γ=1", Strategy::Cos, None, Some(ones.clone())),
        ("cos", Strategy::Cos, None, None),
        ("auto", Strategy::Auto, None, None),
    ];
    if arguments.temperature > 0.0 && matches!(engine.combine(), cos::config::Combine::Weighted { .. }) {
        variants.push(("cos γ=1 routed", Strategy::Cos, Some(Targets::Routed), Some(ones)));
    }
    let only = &arguments.only;
    variants.retain(|(name, ..)| *name == "standard" || only.is_empty() || only.iter().any(|only| only == name));
    let row = |(strategy_name, strategy, targets, proposal_lengths): (&str, _, _, _)| {
        let options = Options {
            strategy,
            targets,
            proposal_lengths,
            sampler: Sampler::new(arguments.temperature, 0, 0.0, 0.0)?,
            max_tokens: arguments.tokens,
            stop_tokens: Some(Vec::new()),
            ..Options::default()
        };
        let name = format!("{name}{strategy_name}");
        let engine = engine.clone();
        Ok(Row { name, engine, options, seconds: Vec::new(), stats: Stats::default(), tokens: Vec::new() })
    };
    variants.into_iter().map(row).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments();
    let mut table = Vec::new();
    for config in &arguments.configs {
        let engine = Arc::new(Engine::load(&Config::open(config)?)?);
        let stem = config.file_stem().unwrap_or_default().to_string_lossy();
        let name = if arguments.configs.len() > 1 { format!("{stem}: ") } else { String::new() };
        table.extend(rows(&name, &engine, &arguments)?);
    }
    let text = table[0].engine.text()?;
    let prompts: Vec<Vec<i32>> = std::fs::read_to_string(&arguments.prompts)?
        .lines()
        .take(arguments.count)
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line)?;
            Ok(text.encode(line["prompt"].as_str().ok_or("a line without a prompt")?, true)?)
        })
        .collect::<Result<_, Box<dyn std::error::Error>>>()?;
    if arguments.sessions > 0 {
        return memory(&table, &prompts[0], arguments.sessions);
    }
    for round in 0..=arguments.rounds {
        for row in &mut table {
            let mut seconds = 0.0;
            row.tokens.clear();
            for (seed, prompt) in prompts.iter().enumerate() {
                let mut session = Session::new(
                    &row.engine,
                    &Options { seed: seed as u64 + 1000 * round as u64, ..row.options.clone() },
                )?;
                session.prompt(prompt)?;
                session.step()?; // the prompt is not timed
                let before = session.stats();
                let started = Instant::now();
                while session.step()?.1 == State::Open {}
                seconds += started.elapsed().as_secs_f64();
                row.tokens.push(session.decoder().committed()[prompt.len()..].to_vec());
                if round > 0 {
                    add(&mut row.stats, &session.stats(), &before);
                }
            }
            if round > 0 {
                row.seconds.push(seconds); // round 0 warms up
            }
        }
    }
    println!(
        "{} models, temperature {}, {} prompts × {} tokens, medians of {} rounds",
        table[0].engine.models().len(),
        arguments.temperature,
        prompts.len(),
        arguments.tokens,
        arguments.rounds
    );
    let greedy = arguments.temperature == 0.0;
    println!(
        "| strategy | tokens/s | × standard (range) | accepted of tested | passes/token | positions/pass | host share |{}",
        if greedy { " equal |" } else { "" }
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |{}", if greedy { " ---: |" } else { "" });
    for row in &table {
        let c = row.stats.counters;
        // Tokens of all rounds differ slightly, since steps before the clock starts may commit more than one.
        let per_round = c.tokens as f64 / arguments.rounds as f64;
        let ratios = sorted(table[0].seconds.iter().zip(&row.seconds).map(|(standard, own)| standard / own));
        let ratio = |index: usize| {
            ratios[index] * per_round / (table[0].stats.counters.tokens as f64 / arguments.rounds as f64)
        };
        let equal = row.tokens.iter().zip(&table[0].tokens).filter(|(own, standard)| own == standard).count();
        println!(
            "| {} | {:.0} | {:.2} ({:.2}–{:.2}) | {} | {:.2} | {:.2} | {:.1}% |{}",
            row.name,
            per_round / sorted(row.seconds.iter().copied())[arguments.rounds / 2],
            ratio(arguments.rounds / 2),
            ratio(0),
            ratio(arguments.rounds - 1),
            if c.tested == 0 { "–".into() } else { format!("{:.2}", c.accepted as f64 / c.tested as f64) },
            c.forwards as f64 / c.tokens as f64,
            c.positions as f64 / c.forwards as f64,
            100.0 * (1.0 - row.stats.model_ns as f64 / row.stats.total_ns as f64),
            if greedy { format!(" {equal}/{} |", prompts.len()) } else { String::new() }
        );
    }
    Ok(())
}

/// What open sessions take, all of them decoding as the rows say.
fn memory(table: &[Row], prompt: &[i32], count: usize) -> Result<(), Box<dyn std::error::Error>> {
    println!("| strategy | tokens in each | KiB for each of {count} sessions |\n| --- | ---: | ---: |");
    for row in table {
        let open = || -> Result<Session, Box<dyn std::error::Error>> {
            let mut session = Session::new(&row.engine, &row.options)?;
            session.prompt(prompt)?;
            while session.step()?.1 == State::Open {}
            Ok(session)
        };
        open()?; // what ONNX Runtime keeps for itself is not a session's
        let before = resident()?;
        let sessions = (0..count).map(|_| open()).collect::<Result<Vec<_>, _>>()?;
        let tokens = sessions[0].decoder().committed().len();
        println!("| {} | {tokens} | {} |", row.name, resident()?.saturating_sub(before) / count as u64);
    }
    Ok(())
}

/// KiB of memory that the process holds.
fn resident() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn add(total: &mut Stats, after: &Stats, before: &Stats) {
    let (t, a, b) = (&mut total.counters, &after.counters, &before.counters);
    t.tokens += a.tokens - b.tokens;
    t.proposed += a.proposed - b.proposed;
    t.tested += a.tested - b.tested;
    t.accepted += a.accepted - b.accepted;
    t.forwards += a.forwards - b.forwards;
    t.positions += a.positions - b.positions;
    total.model_ns += after.model_ns - before.model_ns;
    total.total_ns += after.total_ns - before.total_ns;
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
