//! Greedy decoding of the demo models: every strategy decodes the tokens of the standard strategy, on every prompt. It
//! may differ only at a near tie of the two best tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cos::config::{Combine, Config};
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::model::{Cancel, Model, Pass};
use cos::rows::{Filter, NEAR_TIE};

use super::Progress;
use super::results::{Section, Table};
use crate::common::{Sampling, oracle};

/// How much is decoded.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// One of so many prompts is decoded.
    pub stride: usize,
    /// So many prompts are decoded by all strategies, the others by one strategy in turn.
    pub thorough: usize,
    /// The number of tokens to decode.
    pub tokens: usize,
    /// The longest prompt. The context of the models has 1,024 tokens.
    pub longest: usize,
}

impl Effort {
    /// For `make test`.
    pub const QUICK: Effort = Effort { stride: 12, thorough: 5, tokens: 20, longest: 60 };
    /// For `make conformance`.
    pub const LONG: Effort = Effort { stride: 1, thorough: usize::MAX, tokens: 20, longest: 900 };
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

fn engine(config: &str, combine: Option<Combine>) -> Arc<Engine> {
    let mut config = Config::open(&demo().join(config)).expect("a configuration of the demo");
    config.combine = combine.unwrap_or(config.combine);
    Arc::new(Engine::load(&config).expect("the demo models"))
}

/// All prompts of the demo as tokens, cut off at `longest` tokens.
fn prompts(engine: &Engine, longest: usize) -> Vec<Vec<i32>> {
    let mut prompts = Vec::new();
    for file in ["gsm8k.jsonl", "humaneval.jsonl"] {
        let lines = std::fs::read_to_string(demo().join("prompts").join(file)).expect("prompts of the demo");
        for line in lines.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            let text = line["prompt"].as_str().expect("a prompt");
            let mut prompt = engine.text().expect("a tokenizer").encode(text, true).expect("text");
            prompt.truncate(longest);
            prompts.push(prompt);
        }
    }
    prompts
}

fn strategies(models: usize) -> Vec<Options> {
    let of = |strategy, lengths: &[i32]| Options {
        strategy,
        proposal_lengths: (!lengths.is_empty()).then(|| lengths[..models].to_vec()),
        ..Options::default()
    };
    vec![
        of(Strategy::Auto, &[]),
        of(Strategy::Speculative, &[0, 4, 0]),
        of(Strategy::Speculative, &[2, 0, 0]),
        of(Strategy::Cos, &[1, 1, 1]),
        of(Strategy::Cos, &[3, 2, 1]),
    ]
}

fn label(options: &Options) -> String {
    match &options.proposal_lengths {
        Some(lengths) => format!("{:?}, γ = {lengths:?}", options.strategy).to_lowercase(),
        None => format!("{:?}", options.strategy).to_lowercase(),
    }
}

/// Decodes a prompt to the end. Returns the tokens and the number of near ties.
fn decode(engine: &Arc<Engine>, prompt: &[i32], options: &Options) -> (Vec<i32>, u64) {
    let mut session = Session::new(engine, options).expect("options that are right");
    session.prompt(prompt).expect("a prompt that fits");
    let mut tokens = Vec::new();
    loop {
        let (new, state) = session.step().expect("models that do not fail");
        tokens.extend_from_slice(new);
        if state != State::Open {
            return (tokens, session.stats().counters.near_ties);
        }
    }
}

/// The difference of the oracle's log-probabilities of two tokens after a context, by which near ties are counted. The
/// rows come from fresh sequences that keep all rows and so reuse nothing of others: no cache can be wrong.
fn margin(engine: &Engine, context: &[i32], a: i32, b: i32) -> f64 {
    let row = |model: &dyn Model| {
        let mut sequence = model.start(&Arc::new(Cancel::default())).expect("memory");
        for tokens in context.chunks(model.max_pass()) {
            let mut pass =
                [Pass { sequence: sequence.as_mut(), tokens, keep: 1, filter: Filter::plain(1.0), uniforms: None }];
            model.forward(&mut pass).expect("models that do not fail");
        }
        sequence.row(context.len()).scores().expect("a row on the host").to_vec()
    };
    let rows: Vec<Vec<f32>> = engine.models().map(row).collect();
    let plain = oracle(&rows, &engine.combination(None).expect("the engine's own"), Sampling::PLAIN);
    plain[a as usize].ln() - plain[b as usize].ln()
}

/// What the runs of one strategy gave.
#[derive(Default, Clone)]
struct Counts {
    runs: u64,
    tokens: u64,
    equal: u64,
    parted: u64,
    near_ties: u64,
}

impl Counts {
    /// Decodes a prompt by a strategy, and compares the tokens with those of the standard strategy. Returns what is
    /// wrong.
    fn compare(
        &mut self,
        engine: &Arc<Engine>,
        prompt: &[i32],
        strategy: &Options,
        expected: &[i32],
    ) -> Result<(), String> {
        let (found, near_ties) = decode(engine, prompt, strategy);
        let at = found.iter().zip(expected).position(|(f, e)| f != e);
        let equal = at.is_none() && found.len() == expected.len();
        self.runs += 1;
        self.tokens += found.len() as u64;
        self.equal += u64::from(equal);
        self.parted += u64::from(at.is_some());
        self.near_ties += near_ties;
        let off = at.map_or(0.0, |at| {
            let context = [prompt, &expected[..at]].concat();
            margin(engine, &context, expected[at], found[at]).abs()
        });
        if equal || (at.is_some() && off < f64::from(NEAR_TIE)) {
            return Ok(());
        }
        let token = at.unwrap_or(found.len());
        let (found, expected) = (found.len(), expected.len());
        Err(format!("token {token} differs by a margin of {off:.1e}, {found} tokens instead of {expected}"))
    }
}

/// The name of a combination, its configuration, what it combines instead, and the number of its models.
type Case = (&'static str, &'static str, Option<Combine>, usize);

fn cases() -> [Case; 3] {
    let three = Combine::Logits { weights: vec![1.0, 0.5, -0.5] };
    [
        ("weighted, base and math", "engine.json", None, 2),
        ("contrastive, base − 0.1 small", "contrastive.json", None, 2),
        ("logits, base + 0.5 math − 0.5 small", "three.json", Some(three), 3),
    ]
}

pub fn run(effort: Effort, progress: &dyn Progress) -> Section {
    let mut table = Table {
        caption:
            "Greedy runs compared with the standard strategy. Parting at a near tie is no failure: it is a choice \
                  between two scores within 1e-3."
                .into(),
        head: ["combination", "strategy", "runs", "tokens", "equal", "parted at a near tie", "near ties met"]
            .map(String::from)
            .to_vec(),
        rows: Vec::new(),
    };
    let (mut failures, mut total) = (Vec::new(), Counts::default());
    for (name, config, combine, models) in cases() {
        let engine = engine(config, combine);
        // Three models take as long as both pairs.
        let stride = if models > 2 { 3 * effort.stride } else { effort.stride };
        let prompts: Vec<Vec<i32>> = prompts(&engine, effort.longest).into_iter().step_by(stride).collect();
        progress.start(&format!("greedy: {name}"), prompts.len() as u64);
        let strategies = strategies(models);
        let mut counts = vec![Counts::default(); strategies.len()];
        for (index, prompt) in prompts.iter().enumerate() {
            let standard = Options { strategy: Strategy::Standard, max_tokens: effort.tokens, ..Options::default() };
            let (expected, _) = decode(&engine, prompt, &standard);
            for (number, strategy) in strategies.iter().enumerate() {
                if index >= effort.thorough && index % strategies.len() != number {
                    continue;
                }
                let options = Options { max_tokens: effort.tokens, ..strategy.clone() };
                if let Err(wrong) = counts[number].compare(&engine, prompt, &options, &expected) {
                    failures.push(format!("{name}, {}, prompt {index}: {wrong}", label(strategy)));
                }
            }
            progress.advance();
        }
        for (strategy, Counts { runs, tokens, equal, parted, near_ties }) in strategies.iter().zip(counts) {
            let numbers = [runs, tokens, equal, parted, near_ties].map(|count| count.to_string());
            table.rows.push([name.to_string(), label(strategy)].into_iter().chain(numbers).collect());
            total.runs += runs;
            total.tokens += tokens;
            total.parted += parted;
        }
    }
    let Counts { runs, tokens, parted, .. } = total;
    Section {
        title: "Greedy decoding of the demo models".into(),
        about: format!(
            "Every strategy decodes prompts of GSM8K and HumanEval in models/demo/prompts, {} tokens each (three \
             models a third of the prompts), and must give the tokens of the standard strategy. The highest score \
             wins, and of equal scores the lowest token. Passes of other widths run other kernels with other last \
             bits, so two scores within {NEAR_TIE} may be ranked differently. Such choices are counted (near_ties of \
             cos_stats). Parting anywhere else is a failure.",
            effort.tokens
        ),
        headline: format!("{runs} runs of {tokens} tokens equal the standard decode; {parted} parted at a near tie"),
        tables: vec![table],
        failures,
        ..Section::default()
    }
}
