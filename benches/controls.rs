//! What bias, penalties, bans and constraints cost for each token.
//!
//! With a configuration, the models of it decode, and the ratio to a session without any option is printed. Without
//! one, models whose passes cost next to nothing write rows of so many columns, and the additional microseconds of a
//! token are printed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use cos::config::{Combine, Config};
use cos::control::{Constraint, Constraints, Controls, Dry};
use cos::decode::decoder::Counters;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::error::Result;
use cos::grammar::Language;
use cos::model::scripted::Scripted;
use cos::rows::Sampler;

/// Measure the cost of each option.
#[derive(Parser)]
struct Arguments {
    /// A configuration. Without one, scripted models decode.
    config: Option<PathBuf>,
    /// Columns of the rows of scripted models.
    #[arg(long, default_value_t = 4096)]
    columns: usize,
    /// Tokens of each text.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Rounds in which all options take turns; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// standard, cos or auto.
    #[arg(long, default_value = "standard")]
    strategy: String,
    /// Sessions at the same time.
    #[arg(long, default_value_t = 1)]
    sessions: usize,
    /// Threads, each of which drives a part of the sessions.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Allows every second token.
struct Half;

impl Constraint for Half {
    fn reset(&mut self) -> Result<()> {
        Ok(())
    }

    fn push(&mut self, _token: i32) -> Result<()> {
        Ok(())
    }

    fn pop(&mut self, _tokens: usize) -> Result<()> {
        Ok(())
    }

    fn mask(&mut self, mask: &mut [u32]) -> Result<()> {
        mask.fill(0x5555_5555);
        Ok(())
    }

    fn may_end(&self) -> bool {
        false
    }

    fn is_complete(&self) -> bool {
        false
    }
}

/// A schema whose texts are long.
const SCHEMA: &str = r#"{"type": "array", "minItems": 50, "items": {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 40}, "legs": {"type": "integer", "minimum": 0, "maximum": 1000},
    "kind": {"enum": ["cat", "dog", "bird"]}}, "required": ["name", "legs", "kind"], "additionalProperties": false}}"#;

fn scripted(columns: usize) -> Engine {
    let model = |seed: u64| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let rows: Vec<Vec<f32>> = (0..7).map(|_| (0..columns).map(|_| 8.0 * rng.f32()).collect()).collect();
        let script = move |context: &[i32], row: &mut [f32]| {
            row.copy_from_slice(&rows[context.len() % rows.len()]);
            Ok(())
        };
        Participant::Model(Arc::new(Scripted::new(columns, script).with_context_length(4096)))
    };
    Engine::new(vec![model(1), model(2)], Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap()
}

fn options(engine: &Engine, columns: usize) -> Vec<(&'static str, Controls)> {
    let plain = Controls::default;
    let bias = |count: usize| {
        let tokens: Vec<i32> = (0..count as i32).map(|index| index * (columns / count) as i32).collect();
        plain().with_bias(&tokens, &vec![0.25; count]).unwrap()
    };
    let mut options = vec![
        ("plain", plain()),
        ("bias of 10 tokens", bias(10)),
        ("bias of 300 tokens", bias(300)),
        ("repetition penalty", plain().with_penalties(1.2, 0.0, 0.0).unwrap()),
        ("presence and frequency", plain().with_penalties(1.0, 0.5, 0.5).unwrap()),
        ("no repeated 3-gram", Controls { no_repeat_ngram: 3, ..plain() }),
        ("20 banned words", plain().with_banned((0..20).map(|word| vec![word, word + 1]).collect()).unwrap()),
        ("DRY", Controls { dry: Dry::new(0.8, 1.75, 2, &[]).unwrap(), ..plain() }),
        ("typical_p 0.9", plain().with_drops(0.9, 0.0, 0.0).unwrap()),
        ("exclusion of top choices", plain().with_drops(0.0, 0.5, 0.1).unwrap()),
        ("mask of a function", Controls { constraint: Some(Constraints::new(|| Box::new(Half))), ..plain() }),
    ];
    for (name, language, source) in [
        ("JSON schema", Language::JsonSchema, SCHEMA),
        ("regular expression", Language::Regex, "([A-Za-z0-9 ,.\\n]{1,80}\\.\\n)+"),
    ] {
        if let Ok(constraint) = engine.constraint(language, source, &[]) {
            options.push((name, Controls { constraint: Some(constraint), ..plain() }));
        }
    }
    options
}

/// Decode to the end. Returns the seconds of a token, the passes of a token, and the acceptance, without the prompts.
fn measure(mut sessions: Vec<Session>, threads: usize) -> [f64; 3] {
    let tokens = |session: &Session| session.stats().counters.tokens;
    while sessions.iter().any(|session| tokens(session) == 0) {
        step(&mut sessions);
    }
    let sum = |sessions: &[Session], of: fn(&Counters) -> u64| -> f64 {
        sessions.iter().map(|session| of(&session.stats().counters) as f64).sum()
    };
    let [begun, passes] = [|of: &Counters| of.tokens, |of: &Counters| of.forwards].map(|of| sum(&sessions, of));
    let (start, most) = (Instant::now(), sessions.len().div_ceil(threads));
    std::thread::scope(|scope| {
        for part in sessions.chunks_mut(most) {
            scope.spawn(|| while step(part) {});
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let tokens = sum(&sessions, |of| of.tokens) - begun;
    let acceptance = sum(&sessions, |of| of.accepted) / sum(&sessions, |of| of.tested);
    [seconds / tokens, (sum(&sessions, |of| of.forwards) - passes) / tokens, acceptance]
}

/// Let all sessions go on. Returns whether any has not ended.
fn step(sessions: &mut [Session]) -> bool {
    if let [session] = sessions {
        return session.step().unwrap().1 == State::Open;
    }
    let mut open = false;
    let mut news = 0;
    step_many(sessions, |_, state| {
        news += 1;
        open |= state.unwrap() == State::Open;
    });
    open || news < sessions.len()
}

fn main() {
    let arguments = Arguments::parse();
    let engine = Arc::new(match &arguments.config {
        Some(config) => Engine::load(&Config::open(config).unwrap()).unwrap(),
        None => scripted(arguments.columns),
    });
    let columns = engine.vocab_size();
    let prompt: Vec<i32> = match engine.text() {
        Ok(text) => text.encode("Question: How many legs do three cats have?\nAnswer:", true).unwrap(),
        Err(_) => (0..200).map(|index| index % columns as i32).collect(),
    };
    let strategy = match &*arguments.strategy {
        "standard" => Strategy::Standard,
        "cos" => Strategy::Cos,
        _ => Strategy::Auto,
    };
    let cases = options(&engine, columns);
    // By case: seconds of a token, passes of a token, and acceptance, in each round.
    let mut found: Vec<Vec<[f64; 3]>> = vec![Vec::new(); cases.len()];
    for round in 0..=arguments.rounds {
        for ((_, controls), found) in cases.iter().zip(&mut found) {
            let options = |seed: usize| Options {
                strategy,
                targets: (strategy != Strategy::Auto).then_some(Targets::Combined),
                sampler: Sampler::new(arguments.temperature, 0, 0.0, 0.0).unwrap(),
                controls: controls.clone(),
                seed: seed as u64,
                max_tokens: arguments.tokens,
                stop_tokens: Some(Vec::new()),
                ..Options::default()
            };
            let start = |index| {
                let mut session = Session::new(&engine, &options(round * arguments.sessions + index)).unwrap();
                session.prompt(&prompt).unwrap();
                session
            };
            found.push(measure((0..arguments.sessions).map(start).collect(), arguments.threads));
        }
    }
    let median = |found: &[[f64; 3]], which: usize| {
        let mut values: Vec<f64> = found[1..].iter().map(|found| found[which]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let plain = median(&found[0], 0);
    let Arguments { strategy, sessions, threads, temperature, .. } = &arguments;
    println!("{columns} columns, {sessions} sessions, {threads} threads, {strategy}, temperature {temperature}");
    println!(
        "{:24} {:>12} {:>12} {:>8} {:>13} {:>11}",
        "", "µs a token", "more", "ratio", "passes/token", "acceptance"
    );
    for ((name, _), found) in cases.iter().zip(&found) {
        let (seconds, passes, acceptance) = (median(found, 0), median(found, 1), median(found, 2));
        println!(
            "{name:24} {:12.1} {:12.1} {:8.3} {passes:13.2} {acceptance:11.2}",
            seconds * 1e6,
            (seconds - plain) * 1e6,
            plain / seconds
        );
    }
}
