//! Replays the vectors of `tests/vectors` through the C interface: compares what sessions of every strategy decode with
//! the distributions that PyTorch has computed. `tests/vectors/README.md` defines the files and the checks.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::str::FromStr;
use std::time::Instant;

use cos::ffi::*;

use super::results::{Comparison, Section, Table};
use crate::common::boundary::{options, outcome, result};

/// The number of tokens that a sampled session draws: the length of the longest cells.
const LENGTH: usize = 3;
const WORDS: [&str; LENGTH] = ["next", "pair", "triple"];
/// The number of failures of a file that are printed. Further ones are only counted.
const TOLD: usize = 8;

/// Replays all vector files of a folder. `draws` sessions draw from each sampled case for each kind of targets.
pub fn replay(folder: &Path, draws: usize, progress: &mut dyn FnMut(&str)) -> Section {
    let start = Instant::now();
    let mut section = Section {
        title: format!("Vectors: {}", folder.file_name().unwrap_or(folder.as_os_str()).display()),
        about: "PyTorch computes in float64, from the original models and the definitions alone, the likeliest cells \
                of the joint distribution of the next one, two and three tokens, and greedy continuations. Sessions of \
                every strategy decode the same prompts through the C interface. Greedy tokens must be equal, \
                log-probabilities of greedy and of drawn tokens must be equal up to the rounding of fp32, nothing \
                impossible may be drawn, and how often each cell is drawn must fit its probability."
            .into(),
        ..Section::default()
    };
    let mut total = Tally::default();
    let mut table = Table {
        caption: "The greatest difference |Δ ln r| between a log-probability and its reference.".into(),
        head: ["engine", "greedy: cases", "tokens", "|Δ ln r|", "sampled: draws", "values", "|Δ ln r|", "tolerance"]
            .map(String::from)
            .to_vec(),
        rows: Vec::new(),
    };
    let files = files(folder).unwrap_or_else(|error| {
        section.failures.push(error);
        Vec::new()
    });
    for file in files {
        let name = file.file_stem().unwrap_or_default().display().to_string();
        progress(&name);
        let mut tally = Tally::default();
        let result = Vectors::read(&file).and_then(|vectors| {
            section.comparisons.extend(replay_file(&name, &vectors, draws, &mut tally)?);
            Ok(vectors.tolerance)
        });
        let tolerance = result.unwrap_or_else(|error| {
            tally.failures.push(error);
            0.0
        });
        let numbers = [tally.greedy_cases, tally.greedy.values, tally.draws, tally.drawn.values].map(|n| n.to_string());
        let [cases, tokens, draws, values] = numbers;
        let [greedy, drawn, tolerance] = [tally.greedy.worst, tally.drawn.worst, tolerance].map(|d| format!("{d:.1e}"));
        table.rows.push(vec![name.clone(), cases, tokens, greedy, draws, values, drawn, tolerance]);
        let more = tally.failures.len().saturating_sub(TOLD);
        section.failures.extend(tally.failures.drain(..).take(TOLD).map(|failure| format!("{name}: {failure}")));
        if more > 0 {
            section.failures.push(format!("{name}: and {more} more"));
        }
        total.add(&tally);
    }
    section.headline = format!(
        "Greedy: {} cases, {} values, all tokens and log-probabilities compared; the greatest difference is {:.1e}. \
         Sampled: {} draws, {} values; the greatest difference is {:.1e}.",
        total.greedy_cases, total.greedy.values, total.greedy.worst, total.draws, total.drawn.values, total.drawn.worst
    );
    section.tables.push(table);
    section.seconds = start.elapsed().as_secs_f64();
    section
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "txt")).collect();
    files.sort();
    if files.is_empty() { Err(format!("{}: there are no vectors", folder.display())) } else { Ok(files) }
}

/// Counts of what was compared, and what failed.
#[derive(Default)]
struct Tally {
    greedy_cases: u64,
    greedy: Deviation,
    draws: u64,
    drawn: Deviation,
    failures: Vec<String>,
}

/// The number of log-probabilities that were compared with references, and the greatest difference.
#[derive(Default)]
struct Deviation {
    values: u64,
    worst: f64,
}

impl Deviation {
    /// Whether two values are equal up to a tolerance. NaN equals nothing.
    fn compare(&mut self, found: f64, expected: f64, tolerance: f64) -> bool {
        let difference = (found - expected).abs();
        self.values += 1;
        self.worst = self.worst.max(difference);
        difference <= tolerance
    }

    fn add(&mut self, other: &Deviation) {
        self.values += other.values;
        self.worst = self.worst.max(other.worst);
    }
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.greedy_cases += other.greedy_cases;
        self.greedy.add(&other.greedy);
        self.draws += other.draws;
        self.drawn.add(&other.drawn);
    }
}

// The files.

/// A vector file.
struct Vectors {
    engine: String,
    weighted: bool,
    vocabulary: usize,
    tolerance: f64,
    greedy: Vec<Greedy>,
    sampled: Vec<Sampled>,
}

/// A greedy continuation.
struct Greedy {
    name: String,
    prompt: Vec<i32>,
    tokens: Vec<GreedyToken>,
}

struct GreedyToken {
    token: i32,
    logarithm: f64,
    margin: f64,
}

/// A sampled case: the distribution of what follows a prompt.
struct Sampled {
    name: String,
    prompt: Vec<i32>,
    temperature: f32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    /// The possible next tokens, if the file lists them.
    support: Vec<i32>,
    /// The joint distributions of the next one, two and three tokens.
    joint: [Joint; LENGTH],
}

/// A joint distribution: its likeliest cells with their log-probabilities, and the probability of all other cells.
#[derive(Default)]
struct Joint {
    cells: BTreeMap<Vec<i32>, f64>,
    rest: f64,
}

impl Vectors {
    fn read(file: &Path) -> Result<Vectors, String> {
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
        let mut vectors = Vectors {
            engine: String::new(),
            weighted: false,
            vocabulary: 0,
            tolerance: 0.0,
            greedy: Vec::new(),
            sampled: Vec::new(),
        };
        let mut prompts = HashMap::new();
        let mut ended = false;
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let record = vectors.record(number, line, &mut prompts, &mut ended);
            record.map_err(|error| format!("line {}: {error}", number + 1))?;
        }
        if ended { Ok(vectors) } else { Err("the file is cut off: there is no `end`".into()) }
    }

    fn record(
        &mut self,
        number: usize,
        line: &str,
        prompts: &mut HashMap<String, Vec<i32>>,
        ended: &mut bool,
    ) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if *ended {
            return Err("there is more after `end`".into());
        }
        if (number == 0) != (word == "cos-vectors") {
            return Err("the first line, and no other, must be `cos-vectors 1`".into());
        }
        let prompt = |fields: &[&str]| -> Result<Vec<i32>, String> {
            let name = *fields.first().ok_or("there is no name of a prompt")?;
            prompts.get(name).cloned().ok_or_else(|| format!("prompt {name} is not known"))
        };
        match word {
            "cos-vectors" if fields == ["1"] => {}
            "cos-vectors" => return Err(format!("version {rest} is not known")),
            "engine" => {
                self.engine = rest.into();
                let engine: serde_json::Value = serde_json::from_str(rest).map_err(|error| error.to_string())?;
                self.weighted = engine["combine"]["kind"] == "weighted";
            }
            "vocabulary" => self.vocabulary = field(&fields, 0)?,
            "tolerance" => self.tolerance = field(&fields, 0)?,
            "prompt" => {
                let name: String = field(&fields, 0)?;
                prompts.insert(name, all(&fields[1..])?);
            }
            "greedy" => {
                self.greedy.push(Greedy { name: rest.into(), prompt: prompt(&fields)?, tokens: Vec::new() });
            }
            "token" => {
                let greedy = self.greedy.last_mut().ok_or("there is no `greedy` before")?;
                greedy.tokens.push(GreedyToken {
                    token: field(&fields, 0)?,
                    logarithm: field(&fields, 1)?,
                    margin: field(&fields, 2)?,
                });
            }
            "sampled" => self.sampled.push(Sampled {
                name: rest.into(),
                prompt: prompt(&fields)?,
                temperature: field(&fields, 1)?,
                top_k: field(&fields, 2)?,
                top_p: field(&fields, 3)?,
                min_p: field(&fields, 4)?,
                support: Vec::new(),
                joint: Default::default(),
            }),
            "end" => *ended = true,
            _ => {
                let sampled = self.sampled.last_mut().ok_or("there is no `sampled` before");
                sampled.map_err(String::from).and_then(|sampled| sampled.record(word, &fields))?;
            }
        }
        Ok(())
    }
}

impl Sampled {
    /// Reads a line of the distributions.
    fn record(&mut self, word: &str, fields: &[&str]) -> Result<(), String> {
        let length = |word: &str| WORDS.iter().position(|w| *w == word);
        match word {
            "support" => self.support = all(fields.get(1..).unwrap_or_default())?,
            "rest" => {
                let length = fields.first().and_then(|word| length(word)).ok_or("`rest` of what?")?;
                self.joint[length].rest = field(fields, 1)?;
            }
            _ => {
                let length = length(word).ok_or_else(|| format!("`{word}` is not known"))?;
                let tokens = all(fields.get(1..).unwrap_or_default())?;
                if tokens.len() != length + 1 {
                    return Err(format!("{word} of {} tokens", tokens.len()));
                }
                self.joint[length].cells.insert(tokens, field(fields, 0)?);
            }
        }
        Ok(())
    }
}

fn field<T: FromStr>(fields: &[&str], index: usize) -> Result<T, String> {
    let text = fields.get(index).ok_or("a field is missing")?;
    text.parse().map_err(|_| format!("`{text}` cannot be read"))
}

fn all(fields: &[&str]) -> Result<Vec<i32>, String> {
    (0..fields.len()).map(|index| field(fields, index)).collect()
}

// The C interface.

struct Engine(*mut cos_engine);

impl Engine {
    fn new(config: &str) -> Result<Engine, String> {
        let config = CString::new(config).map_err(|error| error.to_string())?;
        let mut engine = null_mut();
        // SAFETY: both pointers are valid for the call.
        check(unsafe { cos_engine_new(config.as_ptr(), &mut engine) })?;
        Ok(Engine(engine))
    }

    fn models(&self) -> usize {
        // SAFETY: the engine is live.
        unsafe { cos_engine_model_count(self.0) }
    }

    fn vocabulary(&self) -> usize {
        // SAFETY: as above.
        unsafe { cos_engine_vocab_size(self.0) }
    }

    /// Decodes until `max_tokens`. Returns the tokens, and their log-probabilities if the options ask for them.
    fn decode(&self, prompt: &[i32], options: &cos_session_options) -> Result<(Vec<i32>, Vec<f64>), String> {
        let mut session = Session(null_mut());
        let (mut tokens, mut logarithms) = (Vec::new(), Vec::new());
        // SAFETY: what the options point to outlives the call. A step's arrays are copied before the next call.
        unsafe {
            check(cos_session_new(self.0, options, &mut session.0))?;
            check(cos_prompt(session.0, prompt.as_ptr(), prompt.len()))?;
            let mut step = result();
            while step.finish == COS_FINISH_NONE {
                check(cos_step(session.0, &mut step))?;
                tokens.extend_from_slice(std::slice::from_raw_parts(step.tokens, step.tokens_count));
                if !step.log_probabilities.is_null() {
                    let new = std::slice::from_raw_parts(step.log_probabilities, step.tokens_count);
                    logarithms.extend(new.iter().map(|&logarithm| f64::from(logarithm)));
                }
            }
        }
        Ok((tokens, logarithms))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: the pointer has no other owner.
        unsafe { cos_engine_free(self.0) }
    }
}

struct Session(*mut cos_session);

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: as above. NULL is allowed.
        unsafe { cos_free(self.0) }
    }
}

fn check(error: *mut cos_error) -> Result<(), String> {
    match outcome(error) {
        (0, _) => Ok(()),
        (_, message) => Err(message),
    }
}

/// A strategy with proposal lengths.
struct Way {
    strategy: i32,
    lengths: Option<Vec<i32>>,
}

impl Way {
    /// The ways that `tests/vectors/README.md` lists.
    fn all(models: usize) -> Vec<Way> {
        let way = |strategy, lengths| Way { strategy, lengths };
        let drafter = |model| (0..models).map(|other| if other == model { 4 } else { 0 }).collect();
        let mut ways = vec![
            way(COS_STRATEGY_STANDARD, None),
            way(COS_STRATEGY_COS, Some((0..models).map(|model| [3, 2][model % 2]).collect())),
            way(COS_STRATEGY_AUTO, None),
        ];
        ways.extend((0..models).map(|model| way(COS_STRATEGY_SPECULATIVE, Some(drafter(model)))));
        ways
    }

    fn options(&self) -> cos_session_options {
        let mut options = options();
        options.strategy = self.strategy;
        if let Some(lengths) = &self.lengths {
            options.proposal_lengths = lengths.as_ptr();
            options.proposal_lengths_count = lengths.len();
        }
        options.stop_tokens = [].as_ptr(); // no stop tokens, not the engine's
        options
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(["auto", "standard", "speculative", "cos"][self.strategy as usize])?;
        self.lengths.as_ref().map_or(Ok(()), |lengths| write!(f, " {lengths:?}"))
    }
}

// The checks.

fn replay_file(name: &str, vectors: &Vectors, draws: usize, tally: &mut Tally) -> Result<Vec<Comparison>, String> {
    let engine = Engine::new(&vectors.engine)?;
    if engine.vocabulary() != vectors.vocabulary {
        return Err(format!("the engine has {} tokens, not {}", engine.vocabulary(), vectors.vocabulary));
    }
    let ways = Way::all(engine.models());
    for greedy in &vectors.greedy {
        for way in &ways {
            check_greedy(&engine, vectors, greedy, way, tally)?;
        }
    }
    let mut comparisons = Vec::new();
    for (number, sampled) in vectors.sampled.iter().enumerate() {
        for routed in [false, true] {
            if routed && !vectors.weighted {
                continue;
            }
            let mut counts: [HashMap<Vec<i32>, u64>; LENGTH] = Default::default();
            for draw in 0..draws {
                let seed = ((2 * number + usize::from(routed)) as u64) << 32 | draw as u64;
                let tokens = check_drawn(&engine, vectors, sampled, &ways[draw % ways.len()], routed, seed, tally)?;
                for (length, counts) in counts.iter_mut().enumerate() {
                    let cell = &tokens[..=length];
                    let listed = sampled.joint[length].cells.contains_key(cell);
                    *counts.entry(if listed { cell.to_vec() } else { Vec::new() }).or_default() += 1;
                }
            }
            for ((joint, counts), word) in sampled.joint.iter().zip(&counts).zip(WORDS) {
                let targets = if routed { "routed" } else { "combined" };
                comparisons.push(joint.compare(format!("{name}, {}, {targets}, {word}", sampled.name), counts));
            }
        }
    }
    Ok(comparisons)
}

fn check_greedy(
    engine: &Engine,
    vectors: &Vectors,
    greedy: &Greedy,
    way: &Way,
    tally: &mut Tally,
) -> Result<(), String> {
    let options = cos_session_options { max_tokens: greedy.tokens.len() as u32, log_probabilities: 1, ..way.options() };
    let (tokens, logarithms) = engine.decode(&greedy.prompt, &options)?;
    if tokens.len() != greedy.tokens.len() || logarithms.len() != tokens.len() {
        return Err(format!("greedy {}, {way}: {} tokens, not {}", greedy.name, tokens.len(), greedy.tokens.len()));
    }
    tally.greedy_cases += 1;
    for (index, (expected, (token, found))) in greedy.tokens.iter().zip(tokens.iter().zip(&logarithms)).enumerate() {
        let GreedyToken { token: expected, logarithm, margin } = expected;
        let place = || format!("greedy {}, {way}: token {index}", greedy.name);
        if token != expected {
            tally.failures.push(format!("{} is {token}, not {expected} (margin {margin})", place()));
            break;
        }
        if !tally.greedy.compare(*found, *logarithm, vectors.tolerance) {
            tally.failures.push(format!("{}: ln r is {found}, not {logarithm}", place()));
        }
    }
    Ok(())
}

/// Draws the next tokens, and compares what one draw can show.
fn check_drawn(
    engine: &Engine,
    vectors: &Vectors,
    sampled: &Sampled,
    way: &Way,
    routed: bool,
    seed: u64,
    tally: &mut Tally,
) -> Result<Vec<i32>, String> {
    let options = cos_session_options {
        temperature: sampled.temperature,
        top_k: sampled.top_k,
        top_p: sampled.top_p,
        min_p: sampled.min_p,
        seed,
        max_tokens: LENGTH as u32,
        targets: if routed { COS_TARGETS_ROUTED } else { COS_TARGETS_COMBINED },
        log_probabilities: i32::from(!routed),
        ..way.options()
    };
    let (tokens, logarithms) = engine.decode(&sampled.prompt, &options)?;
    let place = || {
        let targets = if routed { "routed" } else { "combined" };
        format!("sampled {}, {way}, {targets}, seed {seed}: {tokens:?}", sampled.name)
    };
    if tokens.len() != LENGTH || logarithms.len() != if routed { 0 } else { LENGTH } {
        return Err(format!("{}: {} tokens, {} log-probabilities", place(), tokens.len(), logarithms.len()));
    }
    tally.draws += 1;
    if !sampled.support.is_empty() && !sampled.support.contains(&tokens[0]) {
        tally.failures.push(format!("{}: the first token is impossible", place()));
    }
    for (length, joint) in sampled.joint.iter().enumerate() {
        let found: Option<f64> = logarithms.get(..=length).map(|logarithms| logarithms.iter().sum());
        let tolerance = (length + 1) as f64 * vectors.tolerance;
        match (joint.cells.get(&tokens[..=length]), found) {
            (Some(expected), Some(found)) if !tally.drawn.compare(found, *expected, tolerance) => {
                tally.failures.push(format!("{}: {} ln r is {found}, not {expected}", place(), WORDS[length]));
            }
            (None, _) if joint.rest == 0.0 => {
                tally.failures.push(format!("{}: the {} is impossible", place(), WORDS[length]));
            }
            // Cells of one token are listed without gaps, likeliest first.
            (None, Some(found)) if length == 0 && found > joint.least() + tolerance => {
                tally.failures.push(format!("{}: next ln r is {found}, which should be listed", place()));
            }
            _ => {}
        }
    }
    Ok(tokens)
}

impl Joint {
    /// The logarithm of the smallest listed probability.
    fn least(&self) -> f64 {
        self.cells.values().copied().fold(f64::INFINITY, f64::min)
    }

    /// Compares counts of the cells with their probabilities. All other cells are counted as the empty cell.
    fn compare(&self, name: String, counts: &HashMap<Vec<i32>, u64>) -> Comparison {
        let count = |cell: &[i32]| counts.get(cell).copied().unwrap_or(0);
        let label = |cell: &[i32]| cell.iter().map(i32::to_string).collect::<Vec<_>>().join(" ");
        let cells = self.cells.iter().map(|(cell, logarithm)| (label(cell), logarithm.exp(), count(cell)));
        let rest = (self.rest > 0.0).then(|| ("all others".to_string(), self.rest, count(&[])));
        Comparison::new(name, cells.chain(rest))
    }
}
