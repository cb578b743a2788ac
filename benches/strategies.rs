//! Strategies side by side on real models: tokens per second as ratios to `standard`, within one run.
//!
//! `cargo bench --bench strategies -- CONFIG PROMPTS [--prompts N] [--tokens N] [--rounds N] [--temperature T]
//! [--only NAME,NAME]`; `standard` is always run.
//!
//! Each round decodes the same prompts with every strategy in turn, so that noise of the machine hits all alike; the
//! ratios are medians over rounds of the ratios within a round.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cos::config::Config;
use cos::decode::policy::{Strategy, Targets};
use cos::decode::sampling::Sampler;
use cos::engine::Engine;
use cos::session::{Options, Session, State, Stats};

struct Arguments {
    config: PathBuf,
    prompts: PathBuf,
    count: usize,
    tokens: usize,
    rounds: usize,
    temperature: f32,
    only: Vec<String>,
}

fn arguments() -> Arguments {
    let mut free = Vec::new();
    let (mut count, mut tokens, mut rounds, mut temperature) = (6, 128, 5, 1.0);
    let mut only = Vec::new();
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
            _ => free.push(PathBuf::from(word)),
        }
    }
    let [config, prompts] = <[PathBuf; 2]>::try_from(free).unwrap_or_else(|_| usage());
    Arguments { config, prompts, count, tokens, rounds, temperature, only }
}

fn usage() -> ! {
    eprintln!(
        "usage: strategies CONFIG PROMPTS [--prompts N] [--tokens N] [--rounds N] [--temperature T] [--only NAME,NAME]"
    );
    std::process::exit(2)
}

#[derive(Default)]
struct Total {
    seconds: Vec<f64>,
    stats: Stats,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments();
    let engine = Arc::new(Engine::load(&Config::open(&arguments.config)?)?);
    let text = engine.text()?;
    let prompts: Vec<Vec<i32>> = std::fs::read_to_string(&arguments.prompts)?
        .lines()
        .take(arguments.count)
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line)?;
            Ok(text.encode(line["prompt"].as_str().ok_or("a line without a prompt")?, true)?)
        })
        .collect::<Result<_, Box<dyn std::error::Error>>>()?;
    let ones = vec![1; engine.models().len()];
    let mut variants = vec![
        ("standard", Strategy::Standard, None, None),
        ("speculative γ=1", Strategy::Speculative, None, Some(ones.clone())),
        ("speculative γ=5", Strategy::Speculative, None, Some(vec![5; ones.len()])),
        ("cos γ=1", Strategy::Cos, None, Some(ones)),
        ("cos", Strategy::Cos, None, None),
        ("auto", Strategy::Auto, None, None),
    ];
    if arguments.temperature > 0.0 && matches!(engine.combine(), cos::config::Combine::Weighted { .. }) {
        variants.push(("cos γ=1 routed", Strategy::Cos, Some(Targets::Routed), Some(vec![1; engine.models().len()])));
    }
    let only = &arguments.only;
    variants.retain(|(name, ..)| *name == "standard" || only.is_empty() || only.iter().any(|only| only == name));
    let mut totals: Vec<Total> = variants.iter().map(|_| Total::default()).collect();
    for round in 0..=arguments.rounds {
        for ((_, strategy, targets, lengths), total) in variants.iter().zip(&mut totals) {
            let mut seconds = 0.0;
            for (seed, prompt) in prompts.iter().enumerate() {
                let options = Options {
                    strategy: *strategy,
                    targets: *targets,
                    proposal_lengths: lengths.clone(),
                    sampler: Sampler::new(arguments.temperature, 0, 0.0, 0.0)?,
                    seed: seed as u64 + 1000 * round as u64,
                    max_tokens: arguments.tokens,
                    stop_tokens: Some(Vec::new()),
                    ..Options::default()
                };
                let mut session = Session::new(&engine, &options)?;
                session.prompt(prompt)?;
                session.step()?; // the prompt is not timed
                let before = session.stats();
                let started = Instant::now();
                while session.step()?.1 == State::Open {}
                seconds += started.elapsed().as_secs_f64();
                if round > 0 {
                    add(&mut total.stats, &session.stats(), &before);
                }
            }
            if round > 0 {
                total.seconds.push(seconds); // round 0 warms up
            }
        }
    }
    println!(
        "{} models, temperature {}, {} prompts × {} tokens, medians of {} rounds",
        engine.models().len(),
        arguments.temperature,
        prompts.len(),
        arguments.tokens,
        arguments.rounds
    );
    println!(
        "| strategy | tokens/s | × standard (range) | accepted of tested | passes/token | positions/pass | host share |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for ((name, ..), total) in variants.iter().zip(&totals) {
        let c = total.stats.counters;
        // Tokens of all rounds differ slightly, since steps before the clock starts may commit more than one.
        let per_round = c.tokens as f64 / arguments.rounds as f64;
        let ratios = sorted(totals[0].seconds.iter().zip(&total.seconds).map(|(standard, own)| standard / own));
        let ratio = |index: usize| {
            ratios[index] * per_round / (totals[0].stats.counters.tokens as f64 / arguments.rounds as f64)
        };
        println!(
            "| {name} | {:.0} | {:.2} ({:.2}–{:.2}) | {} | {:.2} | {:.2} | {:.1}% |",
            per_round / sorted(total.seconds.iter().copied())[arguments.rounds / 2],
            ratio(arguments.rounds / 2),
            ratio(0),
            ratio(arguments.rounds - 1),
            if c.tested == 0 { "–".into() } else { format!("{:.2}", c.accepted as f64 / c.tested as f64) },
            c.forwards as f64 / c.tokens as f64,
            c.positions as f64 / c.forwards as f64,
            100.0 * (1.0 - total.stats.model_ns as f64 / total.stats.total_ns as f64),
        );
    }
    Ok(())
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
