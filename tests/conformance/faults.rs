//! Planted faults: each one must be noticed by some part of the suite.
//!
//! A fault is an edit of the sources. One copy of the library holds all of them, each behind a switch, so it is built
//! only once and the library itself stays clean. If the text that an edit replaces is gone, that is an error: write the
//! new text into the fault.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::programs::{self, Done};
use super::results::{Section, Table};
use super::{PROBES, Probe, Progress};

/// A fault and its place.
pub struct Fault {
    pub name: &'static str,
    pub file: &'static str,
    /// The right text, which must occur once in the file: an expression or statements.
    pub right: &'static str,
    /// The wrong text. If an `if` around both texts does not compile, it holds the condition itself as `PLANTED`.
    pub wrong: &'static str,
    /// Whether only exports, which ONNX Runtime runs, can show the fault.
    pub needs_exports: bool,
}

const fn fault(name: &'static str, file: &'static str, right: &'static str, wrong: &'static str) -> Fault {
    Fault { name, file, right, wrong, needs_exports: false }
}

/// A fault that only exports show.
const fn export_fault(name: &'static str, file: &'static str, right: &'static str, wrong: &'static str) -> Fault {
    Fault { needs_exports: true, ..fault(name, file, right, wrong) }
}

const SCHEDULE: &str = "src/decode/schedule.rs";
const DECODER: &str = "src/decode/decoder.rs";
const STATE: &str = "src/decode/state.rs";
const TARGET: &str = "src/decode/target.rs";
const LANE: &str = "src/decode/lane.rs";
const EDITOR: &str = "src/control/editor.rs";
const VERIFY: &str = "src/decode/verify.rs";
const COMBINE: &str = "src/decode/combine.rs";
const SAMPLING: &str = "src/rows/sampling.rs";
const CHANCE: &str = "src/decode/chance.rs";
const HOLDING: &str = "src/onnx/packed/holding.rs";
const POOL: &str = "src/onnx/packed/pool.rs";
const BRANCH: &str = "src/decode/decoder/branch.rs";
const ROUTES: &str = "src/decode/routes.rs";
const PASSES: &str = "src/onnx/packed/passes.rs";

#[rustfmt::skip]
pub const FAULTS: &[Fault] = &[
    fault("stale row after a role swap: rows that were rolled back still count", LANE,
        "stamps.filter(|stamp| **stamp > len).for_each(|stamp| *stamp = NO_ROW);", "drop(stamps);"),
    fault("weights in the wrong order", COMBINE,
        "(model, self.weights()[model])", "(model, self.weights()[self.weights().len() - 1 - model])"),
    fault("no residual: a rejected proposal is replaced from the target", VERIFY,
        "proposal.add(scores, -1.0, target);", ""),
    fault("residual not normalised", CHANCE,
        "u * weights.total()", "u"),
    fault("residual the wrong way round: from q − t", VERIFY,
        "kernels::keep_positive(target)",
        "{ target.iter_mut().for_each(|t| *t = -*t); kernels::keep_positive(target) }"),
    fault("a verifier's own proposal is accepted unverified", TARGET,
        "Target::Row(model) if model == proposer => return Ok(None),",
        "Target::Row(model) if model == proposer => return Ok(None),
         _ if PLANTED && self.settings.combination.needs(proposer) => return Ok(None),"),
    fault("every third position accepts its proposal unseen", TARGET,
        "let t = self.probability(target, token)?;",
        "if PLANTED && self.position.is_multiple_of(3) { return Ok(None); }
         let t = self.probability(target, token)?;"),
    fault("off-by-one rollback: one rejected token stays in every cache", LANE,
        "self.sequence.truncate(len);", "self.sequence.truncate(len + 1);"),
    fault("the cache of one model is not rolled back", STATE,
        "self.lanes.iter_mut().flatten().for_each(|lane| lane.truncate(from));",
        "self.lanes.iter_mut().flatten().skip(1).for_each(|lane| lane.truncate(from));"),
    fault("acceptance 1% too generous", VERIFY,
        "(f64::from(t) / f64::from(q)).min(1.0)", "(1.01 * f64::from(t) / f64::from(q)).min(1.0)"),
    fault("acceptance 1% too generous, in the random numbers", CHANCE,
        "self.uniform(key) < probability", "self.uniform(key) < 1.01 * probability"),
    fault("acceptance forgets q: min(1, t)", VERIFY,
        "(f64::from(t) / f64::from(q)).min(1.0)", "f64::from(t)"),
    fault("random numbers reused after a rejection", STATE,
        "Key { position, purpose, epoch: self.epoch }", "Key { position, purpose, epoch: self.route_epoch }"),
    fault("the number that drew a proposal also accepts it", TARGET,
        "self.key(Purpose::Acceptance)", "self.key(Purpose::Proposal)"),
    fault("the number that accepts also draws the residual", TARGET,
        "let key = self.key(Purpose::Residual);",
        "let key = self.key(if PLANTED { Purpose::Acceptance } else { Purpose::Residual });"),
    fault("a proposer's row lacks its edits", STATE,
        "edits.map_or(Ok(()), |edits| lane.edit(position, edits, &mut self.workspace.candidates))?;", ""),
    fault("a sum of logits lacks its edits", COMBINE,
        "self.scores(row, out, |_| ())?;
        edits.apply(out, candidates);", "self.scores(row, out, |_| ())?;"),
    fault("penalties count tokens that were taken back", EDITOR,
        "self.text[kept..].iter().rev().for_each(|&token| self.tally.pop(token as u32));", ""),
    fault("edits of a position outlive the tokens before it", EDITOR,
        "self.slots.iter_mut().filter(|slot| slot.position > len).for_each(|slot| slot.position = NO_POSITION);", ""),
    fault("a constraint keeps a token that was taken back", EDITOR,
        "constraint.pop(dropped)", "constraint.pop(dropped - 1)"),
    fault("a pass draws with the number that accepts a proposal", LANE,
        "share(proposes, Purpose::Proposal)?", "share(proposes, Purpose::Acceptance)?"),
    fault("a question loses the proposal that it is about", SCHEDULE,
        "self.asks = true;", "self.asks = true; self.pending.pop_front();"),
    fault("positions share their random numbers", CHANCE,
        "self.number(key.position as u64, key.epoch, key.purpose as u8)",
        "self.number(key.position as u64 / 2, key.epoch, key.purpose as u8)"),
    fault("top-p measured before top-k instead of after", SAMPLING,
        "if top_k { weights(&all, &candidates.keys) } else { kernels::sum_exp(scores, max, all.rate) }",
        "kernels::sum_exp(scores, max, all.rate)"),
    fault("top-p keeps one token too many", SAMPLING,
        "return index + 1;", "return (index + 2).min(keys.len());"),
    fault("temperature twice", SAMPLING,
        "(1.0 / self.temperature).min(f32::MAX)", "(1.0 / self.temperature / self.temperature).min(f32::MAX)"),
    fault("min-p half as strict again", SAMPLING,
        "self.min_p.ln()", "(self.min_p * 1.5).min(1.0).ln()"),
    fault("a mixture of one model is what all others get", TARGET,
        "return Ok(Target::Mixture);",
        "return Ok(Target::Row(combination.needed().next().unwrap_or(0)));"),
    fault("plausibility judged by the wrong model", COMBINE,
        "Some((row(judge.model).scores()?, judge))", "Some((row(1 - judge.model).scores()?, judge))"),
    fault("greedy mixtures rank sums of logits", COMBINE,
        "Distribution::softmax(logits)?.add(logits, weight, out);",
        "kernels::add_scaled(logits, weight, out);"),
    fault("greedy proposals are never rejected", TARGET,
        "(best.token != token).then_some(best.token)", "None"),
    fault("stop token ignored behind an accepted run", STATE,
        "self.settings.stop_tokens.contains(&token)",
        "self.settings.stop_tokens.contains(&token) && self.tokens.len() == committed"),
    fault("a draft ends a sequence that has no limit", STATE,
        "self.has_all(committed)",
        "committed - self.prompt_end() == self.settings.max_tokens + usize::from(self.tokens.len() > committed)"),
    fault("a shared route replaced by that of a later pass", ROUTES,
        "self.number(next).is_none()", "true"),
    fault("a shared route for a position whose route was looked at", ROUTES,
        "front + 1", "front"),
    fault("a shared route by equal weights", STATE,
        "chance::quantile(weights, number)", "chance::quantile(&vec![1.0; weights.len()][..], number)"),
    fault("routing drawn again after a rejection", STATE,
        "Key { position, purpose: Purpose::Route, epoch: self.state.route_epoch }",
        "Key { position, purpose: Purpose::Route, epoch: self.state.epoch }"),
    fault("routes ignore the weights", STATE,
        "self.state.chance.pick(key, weights)",
        "self.state.chance.pick(key, &weights.iter().map(|w| w.sqrt()).collect::<Vec<_>>()[..])"),
    fault("the end of a round tells where the next token is routed", SCHEDULE,
        "self.needed.iter().all(|&model| self.has_scored(model))",
        "self.missing(plan, world).is_none()"),
    fault("a look-up's rejected token may be drawn again", VERIFY,
        "target[token] = 0.0;", ""),
    fault("a second prompt leaves old proposals in the caches", DECODER,
        "self.drop_pending();\n        let state = &mut self.state;\n        state.tokens.extend_from_slice(tokens);",
        "if !PLANTED { self.drop_pending(); }
         let state = &mut self.state; state.tokens.truncate(committed); state.tokens.extend_from_slice(tokens);"),
    fault("a cancelled round keeps its proposals", DECODER,
        "state.drop_pending(start);", ""),
    fault("new weights keep the proposals of another plan", DECODER,
        "if !fits {", "if !fits && !PLANTED {"),
    export_fault("padding columns are sampled", "src/engine/mod.rs",
        "exports.iter_mut().for_each(|model| model.limit_vocabulary(vocab_size));", ""),
    export_fault("the cache of an export keeps a rolled back entry", "src/onnx/sequence.rs",
        "self.cache.truncate(len);", "self.cache.truncate((len + 1).min(self.cache.len()));"),
    export_fault("rows of a pass over several positions are one off", "src/onnx/logits.rs",
        "&self.rows[start..start + self.columns]",
        "&self.rows[start - start.min(self.columns)..][..self.columns]"),
    export_fault("all sequences of a common pass get the rows of the first", "src/onnx/packed/passes.rs",
        "sequence.keep_rows(buffer, row, wanted + 1, end - wanted, several);",
        "sequence.keep_rows(buffer, 0, wanted + 1, end - wanted, several);"),
    export_fault("a block table begins with the last block of another sequence", "src/onnx/packed/host_runner.rs",
        "blocks[part.blocks.clone()].as_ptr()", "blocks[part.blocks.start.saturating_sub(1)..].as_ptr()"),
    export_fault("the tokens of a sequence begin one too early in a common pass", "src/onnx/packed/layout.rs",
        "(self.tokens.len(), self.blocks.len())", "(self.tokens.len().saturating_sub(1), self.blocks.len())"),
    export_fault("queries of all sequences but the first are one off", "src/onnx/packed/attention.rs",
        "self.inputs.query.head(share.first + token, head, size)",
        "self.inputs.query.head(share.first + token - usize::from(share.first > 0), head, size)"),
    export_fault("a block that was rolled back and written over is found by its old tokens", HOLDING,
        "self.forget(from);", ""),
    export_fault("a rollback leaves the chain of what was published", HOLDING,
        "holding.chains.truncate(holding.len / size);", ""),
    export_fault("a shared block is written to", HOLDING,
        "if self.is_shared(from) {", "if self.is_shared(from) && !PLANTED {"),
    export_fault("the copy of a shared block lacks its last token", "src/onnx/packed/host.rs",
        "layer.copy(from, to, tokens)", "layer.copy(from, to, tokens - 1)"),
    export_fault("another text with the same hash is taken as found", POOL,
        "let hash = self.hasher.hash_one((before, tokens));
        let block = *self.known.get(&hash).ok_or(hash)?;
        let held = self.states[block.0 as usize].held.filter(|held| held.before == before).ok_or(hash)?;
        let is_same = self.tokens[block.0 as usize * self.size..][..self.size] == *tokens;",
        "let hash = if PLANTED { tokens[0] as u64 % 16 } else { self.hasher.hash_one((before, tokens)) };
        let block = *self.known.get(&hash).ok_or(hash)?;
        let held = self.states[block.0 as usize].held.filter(|held| PLANTED || held.before == before).ok_or(hash)?;
        let is_same = PLANTED || self.tokens[block.0 as usize * self.size..][..self.size] == *tokens;"),
    export_fault("positions are counted in the pass instead of in the sequence", "src/onnx/packed/layout.rs",
        "past as i64..(past + tokens.len()) as i64", "first as i64..(first + tokens.len()) as i64"),
    fault("a fork keeps the proposals that are pending in its parent", BRANCH,
        "state.lanes.iter_mut().flatten().for_each(|lane| lane.abandon(committed.saturating_sub(1)));", ""),
    fault("going back keeps the cache behind", BRANCH,
        "state.lanes.iter_mut().flatten().for_each(|lane| lane.abandon(length.saturating_sub(1)));",
        "if !PLANTED { state.lanes.iter_mut().flatten().for_each(|lane| lane.abandon(length.saturating_sub(1))); }"),
    fault("what is decoded again takes the old routes", BRANCH,
        "state.route_epoch = state.epoch;", ""),
    fault("a fork draws the numbers of its parent", CHANCE,
        "branch: self.number(forks, 0, BRANCH)",
        "branch: if PLANTED { self.branch } else { self.number(forks, 0, BRANCH) }"),
    export_fault("a fork is no user of its blocks, so its parent writes to them and gives them away", HOLDING,
        "self.share(block);", ""),
    export_fault("a fork goes on in the block that it has copied", HOLDING,
        "self.holding_mut(id).blocks[len / size] = to;", ""),
    export_fault("a shared block is not copied, only replaced", HOLDING,
        "self.copies.push(BlockCopy { from, to, tokens });", ""),
    export_fault("a fork shares one block too few", HOLDING,
        "for index in 0..len.div_ceil(size) {",
        "for index in 0..if PLANTED { len / size } else { len.div_ceil(size) } {"),
    export_fault("a fork forgets its scope", HOLDING,
        "self.open(self.empty(id), age)", "self.open(Chain::EMPTY, age)"),
    export_fault("a scope is ignored", "src/onnx/packed/sequence.rs",
        "pool.scope(scope)", "pool.scope(\"\")"),
    export_fault("a session that was set back loses its first token", PASSES,
        "let past = pool.len(holding);",
        "let past = pool.len(holding) + usize::from(PLANTED && start > 0 && pool.len(holding) == 0);"),
    export_fault("a session that was set back loses a token between two passes", PASSES,
        "past: past.min(end), end,", "past: (past + usize::from(PLANTED && past > 0)).min(end), end,"),
];

/// The library with all faults. An environment variable enables one of them.
struct Planted {
    /// The program of the suite, linked with this library.
    suite: PathBuf,
    /// The tests of the algorithm, linked with this library: the enumeration and the simulation.
    tests: PathBuf,
}

/// How many parts are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Stop when one part notices the fault.
    Quick,
    /// Try all parts, and measure how reliably the best one notices.
    Long,
}

/// The environment variable with the index of the enabled fault.
const VARIABLE: &str = "COS_PLANTED";

/// The number of parts: those of this program, the enumeration and the simulation.
const PARTS: usize = PROBES.len() + 2;

/// The environment variable with texts between commas. If it is set, only faults whose names hold one are planted.
const ONLY: &str = "COS_FAULTS";

/// Rounds of the simulation for each fault.
const SIMULATED: u64 = 100_000;

/// Tests of the algorithm that run with each fault: of the enumeration, and of rows that answer.
const ENUMERATION: [&str; 13] = [
    "answers::passes_are_told_of_every_draw",
    "questions::answers_to_questions_give_the_text_of_rows",
    "questions::rows_that_are_edited_there_give_the_text_of_rows",
    "exact::controls::penalties_are_exact",
    "exact::controls::constraints_are_exact",
    "exact::strategies::longer_sequences",
    "exact::drafters::look_ups_draft_exactly",
    "exact::changes::weights_change_exactly",
    "exact::sequences::later_prompts_continue_the_sequence",
    "exact::sequences::sequences_end_where_they_should",
    "exact::branches::forks_are_independent",
    "exact::shared::shared_routes_change_no_distribution",
    "exact::branches::what_is_decoded_again_is_drawn_anew",
];

impl Planted {
    /// Makes the copy in the target folder, and builds what has changed since the last time.
    fn build() -> Result<Planted, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let copy = programs::target().join("conformance/planted");
        let io = |error: std::io::Error| format!("{}: {error}", copy.display());
        std::fs::create_dir_all(&copy).map_err(io)?;
        for name in ["README.md", "benches", "kernels", "models", "tests", "include", "cbindgen.toml"] {
            let link = copy.join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(root.join(name), link).map_err(io)?;
        }
        // The package has another name and no shared library, so it does not overwrite the right one.
        let manifest = std::fs::read_to_string(root.join("Cargo.toml")).map_err(io)?;
        let manifest = manifest
            .replacen("name = \"cos\"", "name = \"cos-planted\"", 1)
            .replacen("crate-type = [\"cdylib\", \"rlib\"]", "crate-type = [\"rlib\"]", 1)
            .replacen("name = \"conformance\"", "name = \"conformance-planted\"", 1)
            .replacen("[profile.release.package.cos]\ncodegen-units = 1\n", "", 1);
        write(&copy.join("Cargo.toml"), &manifest).map_err(io)?;
        let lock = std::fs::read_to_string(root.join("Cargo.lock")).map_err(io)?;
        write(&copy.join("Cargo.lock"), &lock.replacen("name = \"cos\"\n", "name = \"cos-planted\"\n", 1))
            .map_err(io)?;
        let mut sources = planted_sources()?;
        let library = sources.get_mut(&root.join("src/lib.rs")).expect("the library");
        library.insert_str(0, "#![allow(warnings)]\n");
        library.push_str(&format!(
            "\n/// Whether a fault is planted.\npub fn planted(fault: usize) -> bool {{\n    \
             static PLANTED: std::sync::LazyLock<Option<usize>> =\n        \
             std::sync::LazyLock::new(|| std::env::var({VARIABLE:?}).ok()?.parse().ok());\n    \
             *PLANTED == Some(fault)\n}}\n"
        ));
        // A file of an earlier copy would be a second source of its module.
        let mut old = BTreeMap::new();
        let _ = read_folder(&copy.join("src"), &mut old);
        for path in old.keys().filter(|old| !sources.contains_key(&root.join(old.strip_prefix(&copy).expect("inside"))))
        {
            std::fs::remove_file(path).map_err(io)?;
        }
        for (path, source) in &sources {
            let path = copy.join(path.strip_prefix(root).expect("a source of ours"));
            std::fs::create_dir_all(path.parent().expect("a folder")).map_err(io)?;
            write(&path, source).map_err(io)?;
        }
        let parts = ["--example", "conformance-planted", "--test", "algorithm"];
        let mut programs = programs::build(&copy, &parts)?;
        let mut program = |name| programs.remove(name).ok_or(format!("cargo built no {name}"));
        Ok(Planted { suite: program("conformance-planted")?, tests: program("algorithm")? })
    }

    /// Runs a program with a fault. `None` if it does not end.
    fn run(&self, program: &Path, fault: Option<usize>, arguments: &[&str]) -> Option<Done> {
        let planted = fault.map_or(String::new(), |fault| fault.to_string());
        programs::run(program, arguments, &[(VARIABLE, planted), ("COS_SIMULATION_ROUNDS", SIMULATED.to_string())])
    }

    /// What each part finds in a few words, empty if it finds nothing, and how often the best part would find it.
    fn probe(&self, fault: Option<usize>, effort: Effort) -> (Vec<String>, String) {
        let mut found = vec![String::new(); PARTS];
        let mut power = String::new();
        // Vectors take long, so they run only for the faults that need them.
        let exports = fault.is_none_or(|fault| FAULTS[fault].needs_exports);
        let mut arguments = vec!["--probe"];
        arguments.extend(exports.then_some("--exports"));
        arguments.extend((effort == Effort::Quick && fault.is_some()).then_some("--first"));
        let mut best = (1.0, String::new());
        match self.run(&self.suite, fault, &arguments).map(|done| serde_json::from_str::<Value>(&done.text)) {
            None => found[0] = "does not end".into(),
            Some(Err(_)) => found[0] = "ends the process".into(),
            Some(Ok(parts)) => {
                for (Probe { part, .. }, found) in PROBES.iter().zip(&mut found) {
                    let Some(result) = parts.get(part) else { continue };
                    let (failed, of, bound) = (&result["failed"], &result["of"], result["bound"].as_f64());
                    if failed.as_u64() > Some(0) {
                        *found = if of.as_u64() > Some(0) { format!("{failed} of {of}") } else { "refused".into() };
                        if bound < Some(best.0) {
                            best = (bound.unwrap_or(0.0), format!("{part}:{}", result["worst"]));
                        }
                    }
                }
            }
        }
        let caught = |found: &[String]| found.iter().any(|found| !found.is_empty());
        let ends = |found: &[String], effort| effort == Effort::Quick && fault.is_some() && caught(found);
        if fault.is_some() && exports {
            return (found, "certain".into()); // log-probabilities differ, or a model does not load
        }
        if ends(&found, effort) {
            return (found, power);
        }
        if !best.1.is_empty() {
            let times = self.run(&self.suite, fault, &["--repeat", &best.1, "--times", "20"]);
            power = times.map_or("does not end".into(), |times| format!("{} of 20", times.text.trim()));
        }
        let tests = self.run(&self.tests, fault, &[&ENUMERATION[..], &["--exact"]].concat());
        let failed = tests.map(|done| done.text.lines().filter(|line| line.ends_with("... FAILED")).count());
        found[PROBES.len()] = match failed {
            None => "does not end".into(),
            Some(0) => String::new(),
            Some(failed) => format!("{failed} of {}", ENUMERATION.len()),
        };
        if power.is_empty() && failed > Some(0) {
            power = "certain".into(); // the enumeration draws nothing
        }
        if ends(&found, effort) {
            return (found, power);
        }
        found[PROBES.len() + 1] = match self.run(&self.tests, fault, &["simulation::promises", "--test-threads=1"]) {
            None => "does not end".into(),
            Some(done) if done.success => String::new(),
            Some(done) => {
                let seed = done.text.split("COS_SEED=").nth(1).and_then(|rest| rest.split_whitespace().next());
                seed.map_or("found".into(), |seed| format!("seed {seed}"))
            }
        };
        (found, power)
    }
}

impl Fault {
    /// The text that replaces the right one: both texts behind a switch.
    fn planted(&self, index: usize) -> String {
        let condition = format!("crate::planted({index})");
        if self.wrong.contains("PLANTED") {
            return self.wrong.replace("PLANTED", &condition);
        }
        let (right, wrong) = (self.right, self.wrong);
        let choice = format!("if {condition} {{ {wrong} }} else {{ {right} }}");
        if right.ends_with(';') { choice } else { format!("({choice})") }
    }
}

/// The sources with all faults. It is an error if they have no place for one.
pub fn planted_sources() -> Result<BTreeMap<PathBuf, String>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = BTreeMap::new();
    read_folder(&root.join("src"), &mut sources).map_err(|error| format!("src: {error}"))?;
    for (index, fault) in FAULTS.iter().enumerate() {
        let source = sources.get_mut(&root.join(fault.file)).ok_or(format!("{} is gone", fault.file))?;
        if source.matches(fault.right).count() != 1 {
            return Err(format!(
                "the fault {:?} has no place: {} must hold this once: {}",
                fault.name, fault.file, fault.right
            ));
        }
        *source = source.replacen(fault.right, &fault.planted(index), 1);
    }
    Ok(sources)
}

/// Writes a file unless it already has this text, because cargo compares times.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) { Ok(()) } else { std::fs::write(path, text) }
}

fn read_folder(folder: &Path, files: &mut BTreeMap<PathBuf, String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_folder(&path, files)?;
        } else {
            files.insert(path.clone(), std::fs::read_to_string(path)?);
        }
    }
    Ok(())
}

pub fn run(effort: Effort, progress: &dyn Progress) -> Section {
    let mut section = Section {
        title: "Planted faults".into(),
        about: "A suite that finds nothing proves little until it has found something. Each fault is put into a copy \
                of the library, and the parts of the suite run on it with the few draws of `make test`. The table says \
                how many comparisons or tests of each part fail. The power is how often the best comparison fails in \
                20 repetitions with other random numbers."
            .into(),
        ..Section::default()
    };
    let only = std::env::var(ONLY).unwrap_or_default();
    let is_chosen = |&index: &usize| only.split(',').any(|text| FAULTS[index].name.contains(text));
    let chosen: Vec<usize> = (0..FAULTS.len()).filter(is_chosen).collect();
    progress.start("planted faults", chosen.len() as u64 + 1);
    let planted = match Planted::build() {
        Ok(planted) => planted,
        Err(error) => {
            section.failures.push(error);
            return section;
        }
    };
    let mut head = vec!["fault".to_string()];
    head.extend(PROBES.iter().map(|probe| probe.part.to_string()));
    head.extend(["enumeration", "simulation", "power"].map(String::from));
    let faults: Vec<Option<usize>> = std::iter::once(None).chain(chosen.iter().copied().map(Some)).collect();
    let mut rows = Vec::new();
    for fault in faults {
        let (found, power) = planted.probe(fault, effort);
        progress.advance();
        let caught = found.iter().any(|found| !found.is_empty());
        let name = match fault {
            Some(fault) => FAULTS[fault].name,
            None => "none: the same copy, right",
        };
        match fault {
            None if caught => section.failures.push(format!("a right library is found faulty: {found:?}")),
            Some(_) if !caught => section.failures.push(format!("not caught: {name}")),
            _ => {}
        }
        let cells = found.into_iter().chain([power]).map(|cell| if cell.is_empty() { "–".into() } else { cell });
        rows.push(std::iter::once(name.to_string()).chain(cells).collect());
    }
    section.headline = format!("{} of {} faults are caught", chosen.len() - section.failures.len(), chosen.len());
    section.tables.push(Table { caption: "What was planted, and what noticed".into(), head, rows });
    section
}
