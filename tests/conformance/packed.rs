//! Common passes: sequences of real exports that share passes, blocks of caches and prefixes, against the same exports
//! alone, and the distributions of sessions that are decoded together.

use std::borrow::{Borrow, BorrowMut};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use cos::config::Combine;
use cos::decode::combine::Combination;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::export::Scoring;
use cos::model::{Cancel, Model, Pass, Sequence};
use cos::onnx::{CacheSize, LoadOptions, OnnxModel, environment};
use cos::rows::Filter;

use super::results::{Comparison, Section, Table};
use super::{Progress, branches};
use crate::common::{Sampling, oracle, root};

/// Exports with plain attention, windows, capped scores, sinks, norms, 4-bit weights, and rotation before attention.
const EXPORTS: [&str; 7] = [
    "llama/builder-fp32",
    "llama/builder-int4",
    "mistral/builder-fp32",
    "gemma2/builder-fp32",
    "gpt_oss/builder-fp32",
    "qwen3/builder-fp32",
    "variants/rotary",
];
/// The exports of the sessions.
const PAIR: [&str; 2] = ["llama/builder-fp32", "qwen2/builder-fp32"];
const WEIGHTS: [f32; 2] = [0.6, 0.4];
const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 2, top_p: 0.0, min_p: 0.0 };

/// The largest difference of a logit that is rounding.
const TOLERANCE: f32 = 1e-3;
/// Sequences that share passes.
const TOGETHER: usize = 8;
/// Tokens of a block, on which the texts are built: they share some blocks.
pub const BLOCK: usize = 32;
/// Tokens of a text.
pub const TEXT: usize = 120;
/// Tokens that a session draws.
const DRAWN: usize = 3;

/// Load an export. Its sequences share passes, unless each is to be scored one by one.
pub fn load(name: &str, alone: bool) -> Result<OnnxModel, String> {
    load_at(&root().join("tests/exports").join(name), alone, CacheSize::default(), None)
}

/// The same for the export at a path, with a cache of a given size, and perhaps another context length.
pub fn load_at(path: &Path, alone: bool, cache: CacheSize, context: Option<usize>) -> Result<OnnxModel, String> {
    let name = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let scoring = alone.then_some(Scoring::OneByOne);
    let options = LoadOptions { scoring, cache, context_length: context, ..LoadOptions::default() };
    let failed = |error: cos::error::Error| format!("{name}: {error}");
    environment(None, 0, None).map_err(failed)?;
    let model = OnnxModel::load(path, &name, &options).map_err(failed)?;
    if model.batches() == alone {
        return Err(format!(
            "{name}: batching is {}, {}",
            model.describe()["batching"],
            model.describe()["no_batching"]
        ));
    }
    Ok(model)
}

/// Tokens that the first and the third text have in common at the beginning.
pub const COMMON: usize = BLOCK + BLOCK / 2;

/// Texts that differ in one place: the second one in its first block, the third one in the rest of its second block.
/// What is in later blocks depends on it, though they hold the same tokens.
pub fn texts(vocab: usize) -> [Vec<i32>; 3] {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut random = |len: usize| -> Vec<i32> { (0..len).map(|_| rng.i32(3..vocab as i32)).collect() };
    let first = random(TEXT);
    let second = [&random(BLOCK)[..], &first[BLOCK..]].concat();
    let third = [&first[..COMMON], &random(2 * BLOCK - COMMON), &first[2 * BLOCK..]].concat();
    [first, second, third]
}

/// All rows of a text, from a sequence of its own.
pub fn rows(model: &OnnxModel, text: &[i32]) -> Vec<Vec<f32>> {
    let mut sequence = model.start(&Arc::new(Cancel::default())).expect("memory");
    text.chunks(model.max_pass()).for_each(|tokens| {
        let mut pass =
            [Pass { sequence: sequence.as_mut(), tokens, keep: 1, filter: Filter::plain(1.0), uniforms: None }];
        model.forward(&mut pass).expect("models that do not fail");
    });
    (1..=text.len()).map(|position| sequence.row(position).scores().expect("a row on the host").to_vec()).collect()
}

/// A sequence that follows a text.
pub struct Reader {
    pub text: usize,
    pub sequence: Box<dyn Sequence>,
}

/// What a reader does in a pass.
pub struct Turn {
    pub tokens: Vec<i32>,
    pub keep: usize,
    /// The tokens are not those of the text, and are taken back.
    pub strays: bool,
}

/// What was compared.
#[derive(Default)]
pub struct Tally {
    pub passes: usize,
    pub rows: usize,
    pub worst: f32,
    /// Tokens that were computed anew.
    pub recomputed: u64,
}

impl Tally {
    /// Compare the row of a position with that of the text.
    pub fn compare(&mut self, sequence: &dyn Sequence, position: usize, expected: &[Vec<f32>]) {
        let found = sequence.row(position).scores().expect("a row on the host");
        let off = found.iter().zip(&expected[position - 1]).map(|(a, b)| (a - b).abs());
        // What is not a number is not smaller either.
        self.worst = off.fold(self.worst, |worst, off| if off <= worst { worst } else { off });
        self.rows += 1;
    }

    /// A row of the report.
    fn row(&self, name: &str) -> Vec<String> {
        vec![name.into(), self.passes.to_string(), self.rows.to_string(), format!("{:.1e}", self.worst)]
    }

    /// An error if a row differs by more than rounding.
    pub fn check(self, name: &str) -> Result<Self, String> {
        if self.worst <= TOLERANCE {
            return Ok(self);
        }
        Err(format!("{name}: a row among strangers differs by {} from the row alone", self.worst))
    }
}

/// Two sequences follow the first text. One is taken back into its second block, and goes on as the third text. Then
/// others follow either text from the beginning. Blocks of the one must not be found by the other.
fn detour(model: &OnnxModel, texts: &[Vec<i32>; 3], expected: &[Vec<Vec<f32>>], tally: &mut Tally) {
    let start = || model.start(&Arc::new(Cancel::default())).expect("memory");
    let mut run = |sequence: &mut Box<dyn Sequence>, text: usize, end: usize| {
        let start = sequence.len();
        let (sequence, tokens) = (sequence.as_mut(), &texts[text][start..end]);
        let mut pass = [Pass { sequence, tokens, keep: end, filter: Filter::plain(1.0), uniforms: None }];
        model.forward(&mut pass).expect("models that do not fail");
        tally.compare(pass[0].sequence, end, &expected[text]);
        tally.passes += 1;
    };
    let (mut sequence, mut other) = (start(), start());
    run(&mut sequence, 0, 2 * BLOCK + 6);
    run(&mut other, 0, 2 * BLOCK + 6);
    sequence.truncate(COMMON - 8);
    run(&mut sequence, 2, TEXT);
    run(&mut start(), 0, TEXT);
    run(&mut start(), 2, TEXT);
}

/// Runs random passes over several sequences, with rollbacks and sequences that begin as others do, and compares all
/// rows with those of the export alone.
fn company(name: &str, passes: usize) -> Result<Tally, String> {
    let texts = texts(96);
    let expected: Vec<Vec<Vec<f32>>> = {
        let alone = load(name, true)?;
        texts.iter().map(|text| rows(&alone, text)).collect()
    };
    let model = load(name, false)?;
    let mut rng = fastrand::Rng::with_seed(name.len() as u64);
    let start = |text: usize| Reader { text, sequence: model.start(&Arc::new(Cancel::default())).expect("memory") };
    let mut readers: Vec<Reader> = (0..TOGETHER).map(|index| start(index % texts.len())).collect();
    let mut tally = Tally::default();
    detour(&model, &texts, &expected, &mut tally);
    while tally.passes < passes {
        rng.shuffle(&mut readers);
        let (count, mut room) = (rng.usize(1..=TOGETHER - 2), model.max_batch_tokens());
        let mut turns = Vec::new();
        for reader in &mut readers[..count] {
            if reader.sequence.len() == TEXT || rng.u8(..10) == 0 {
                *reader = start(rng.usize(..texts.len()));
            } else if reader.text != 1 && reader.sequence.len() <= COMMON {
                reader.text = [0, 2][rng.usize(..2)];
            }
            let turn = turn(&mut rng, reader.sequence.len(), &texts[reader.text], room);
            room -= turn.as_ref().map_or(0, |turn| turn.tokens.len());
            turns.push(turn);
        }
        let chosen = readers.iter_mut().zip(&turns).filter_map(|(reader, turn)| Some((reader, turn.as_ref()?)));
        let mut batch: Vec<Pass<'_>> = chosen
            .map(|(Reader { sequence, .. }, Turn { tokens, keep, .. })| Pass {
                sequence: sequence.as_mut(),
                tokens,
                keep: *keep,
                filter: Filter::plain(1.0),
                uniforms: None,
            })
            .collect();
        if batch.is_empty() {
            continue;
        }
        model.forward(&mut batch).map_err(|interrupt| format!("{name}: {interrupt:?}"))?;
        drop(batch);
        tally.passes += 1;
        for (Reader { text, sequence }, turn) in readers.iter_mut().zip(turns) {
            let Some(Turn { tokens, keep, strays }) = turn else { continue };
            let len = sequence.len();
            if strays {
                sequence.truncate(len - tokens.len());
                continue;
            }
            (keep..=len).for_each(|position| tally.compare(sequence.as_ref(), position, &expected[*text]));
            if rng.u8(..3) == 0 {
                sequence.truncate(rng.usize(..=len));
            }
        }
    }
    tally.check(name)
}

/// The next tokens of a reader: a part of a prompt, of which only the last row is wanted, a few tokens, or strays. At
/// most `room` tokens.
pub fn turn(rng: &mut fastrand::Rng, len: usize, text: &[i32], room: usize) -> Option<Turn> {
    let left = (text.len() - len).min(room);
    if left == 0 {
        return None;
    }
    if rng.u8(..4) == 0 {
        let tokens: Vec<i32> = (0..rng.usize(1..=left.min(6))).map(|_| rng.i32(3..96)).collect();
        return Some(Turn { keep: len + tokens.len(), tokens, strays: true });
    }
    let is_prompt = len == 0 || rng.u8(..3) == 0;
    let width = if is_prompt { rng.usize(1..=left) } else { [1, 1, 2, 3, 5][rng.usize(..5)].min(left) };
    let keep = if is_prompt { len + width } else { len + 1 };
    Some(Turn { tokens: text[len..len + width].to_vec(), keep, strays: false })
}

/// A session, and what it has drawn.
struct Drawing {
    session: Session,
    prompt: usize,
    tokens: Vec<i32>,
    is_open: bool,
}

impl Borrow<Session> for Drawing {
    fn borrow(&self) -> &Session {
        &self.session
    }
}

impl BorrowMut<Session> for Drawing {
    fn borrow_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// How often each text came behind each prompt.
type Counts = BTreeMap<(usize, Vec<i32>), u64>;

/// Draws with many sessions at a time. `draws` is the number of sessions for each prompt.
fn draw(engine: &Arc<Engine>, prompts: &[&[i32]], options: &Options, draws: u64) -> Counts {
    let (mut counts, total) = (Counts::new(), draws * prompts.len() as u64);
    let (mut next, mut drawings) = (0, Vec::new());
    while next < total || !drawings.is_empty() {
        while drawings.len() < TOGETHER && next < total {
            let options = Options { seed: next, ..options.clone() };
            let mut session = Session::new(engine, &options).expect("options that are right");
            let prompt = next as usize % prompts.len();
            session.prompt(prompts[prompt]).expect("a prompt that fits");
            drawings.push(Drawing { session, prompt, tokens: Vec::new(), is_open: true });
            next += 1;
        }
        step_many(&mut drawings, |drawing: &mut Drawing, state| {
            drawing.is_open = state.expect("models that do not fail") == State::Open;
            drawing.tokens.extend_from_slice(drawing.session.tokens());
        });
        drawings.retain_mut(|drawing| {
            if !drawing.is_open {
                *counts.entry((drawing.prompt, std::mem::take(&mut drawing.tokens))).or_default() += 1;
            }
            drawing.is_open
        });
    }
    counts
}

/// The probability of each text behind a prompt.
fn expected(alone: &[OnnxModel], combination: &Combination, prompt: &[i32]) -> BTreeMap<Vec<i32>, f64> {
    let mut cells = BTreeMap::from([(Vec::new(), 1.0)]);
    for _ in 0..DRAWN {
        let mut longer = BTreeMap::new();
        for (tokens, probability) in cells {
            let context = [prompt, &tokens[..]].concat();
            let last: Vec<Vec<f32>> = alone.iter().map(|model| rows(model, &context).pop().expect("a row")).collect();
            for (token, p) in oracle(&last, combination, SAMPLING).into_iter().enumerate().filter(|(_, p)| *p > 0.0) {
                longer.insert([&tokens[..], &[token as i32]].concat(), probability * p);
            }
        }
        cells = longer;
    }
    cells
}

/// The distributions of sessions that are decoded together.
fn sessions(draws: u64) -> Result<Vec<Comparison>, String> {
    let alone = PAIR.map(|name| load(name, true)).into_iter().collect::<Result<Vec<_>, _>>()?;
    let [first, second, third] = &texts(96);
    let prompts = [&first[..70], &second[..70], &third[..70], &first[..33]];
    let models = PAIR.map(|name| load(name, false).map(|model| Arc::new(model) as Arc<dyn Model>));
    let models = models.into_iter().collect::<Result<Vec<_>, _>>()?;
    let combine = Combine::Weighted { weights: WEIGHTS.to_vec() };
    let engine = Arc::new(Engine::new(models, combine, Vec::new(), None).map_err(|error| error.to_string())?);
    let combination = engine.combination(None).map_err(|error| error.to_string())?;
    let expected = prompts.map(|prompt| expected(&alone, &combination, prompt));
    let mut comparisons = Vec::new();
    for (strategy, targets, lengths) in [
        (Strategy::Standard, Targets::Combined, [1, 1]),
        (Strategy::Standard, Targets::Routed, [1, 1]),
        (Strategy::Speculative, Targets::Combined, [0, 3]),
        (Strategy::Cos, Targets::Combined, [2, 1]),
        (Strategy::Cos, Targets::Routed, [1, 2]),
    ] {
        let options = Options {
            strategy,
            targets: Some(targets),
            sampler: SAMPLING.sampler(),
            max_tokens: DRAWN,
            proposal_lengths: Some(lengths.to_vec()),
            stop_tokens: Some(Vec::new()),
            ..Options::default()
        };
        let name = format!("{strategy:?} {lengths:?}, {targets:?}");
        match catch_unwind(AssertUnwindSafe(|| draw(&engine, &prompts, &options, draws))) {
            Err(panic) => comparisons.push(Comparison::stopped(&name, panic.as_ref())),
            Ok(counts) => comparisons.extend(expected.iter().enumerate().map(|(prompt, expected)| {
                let drawn = counts.keys().filter(|(of, _)| *of == prompt).map(|(_, tokens)| tokens);
                let cells: BTreeMap<&Vec<i32>, f64> = drawn.map(|tokens| (tokens, 0.0)).collect();
                let cells = cells.into_iter().chain(expected.iter().map(|(tokens, p)| (tokens, *p)));
                let cells: BTreeMap<&Vec<i32>, f64> = cells.collect();
                let count = |tokens: &Vec<i32>| counts.get(&(prompt, tokens.clone())).copied().unwrap_or(0);
                let cells = cells.into_iter().map(|(tokens, p)| (format!("{tokens:?}"), p, count(tokens)));
                Comparison::new(format!("{name}, prompt {prompt}"), cells)
            })),
        }
    }
    Ok(comparisons)
}

/// `passes` is the number of passes over each export, `draws` that of sessions for each prompt.
pub fn run(passes: usize, draws: u64, progress: &dyn Progress) -> Section {
    let mut section = Section {
        title: "Common passes".into(),
        about: "Sequences of one export share passes, blocks of the cache, and the computed beginnings of texts. \
                Passes over one to six of eight sequences are run in random order and width, with rollbacks, stray \
                tokens that are taken back, and texts that share a beginning or a block in the middle. All rows are \
                compared with those of the export alone, by ONNX Runtime's own attention. So are those of forks and of \
                sequences that compute again what others took from them. Then sessions are decoded eight at a time, \
                and what they draw is compared with the oracle's joint distribution of three tokens."
            .into(),
        ..Section::default()
    };
    let mut table = Table {
        caption: "The greatest difference between a logit among strangers and alone.".into(),
        head: ["export", "passes", "rows", "difference"].map(String::from).to_vec(),
        rows: Vec::new(),
    };
    progress.start("common passes", EXPORTS.len() as u64 + 2);
    for name in EXPORTS {
        match catch_unwind(|| company(name, passes)).unwrap_or_else(|_| Err(format!("{name}: a panic"))) {
            Ok(tally) => table.rows.push(tally.row(name)),
            Err(failure) => section.failures.push(failure),
        }
        progress.advance();
    }
    match catch_unwind(|| branches::run(passes)).unwrap_or_else(|_| Err("forks: a panic".into())) {
        Ok(found) => table.rows.extend(found.into_iter().map(|(name, tally)| tally.row(name))),
        Err(failure) => section.failures.push(failure),
    }
    progress.advance();
    match catch_unwind(|| sessions(draws)).unwrap_or_else(|_| Err("a panic".into())) {
        Ok(comparisons) => section.comparisons = comparisons,
        Err(failure) => section.failures.push(failure),
    }
    progress.advance();
    section.headline = format!(
        "{} passes over each of {} exports; {} sessions, eight at a time",
        passes,
        EXPORTS.len(),
        section.comparisons.iter().map(|comparison| comparison.fit.draws).sum::<u64>()
    );
    section.tables.push(table);
    section
}
