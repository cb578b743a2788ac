//! Runs the rows of a case. Within each round they take turns, so that noise of the machine affects all alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use cos::decode::combine::Combination;
use cos::decode::decoder::Counters;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::engine::stats::Stats;
use cos::model::{Cancel, Interrupt, Model, Pass, Sequence};
use cos::rows::Sampler;
use serde_json::{Value, json};

use super::cases::{Decoder, Ours, Task};
use super::peers::{Answer, Started};
use super::quality::log_likelihood;
use super::results::{Case, PassCost, Row, Sample, Spread, Theory, paired, speed};
use super::theory::{self, Event, Policy, Setup};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How much of a case is measured.
pub struct Effort {
    pub tokens: usize,
    pub rounds: usize,
    /// The number of prompts that peers decode. They are slow.
    pub peer_prompts: usize,
}

/// Passes that are timed for each width, in each round.
const REPETITIONS: usize = 5;

/// The measurements of a row so far.
#[derive(Default)]
struct Measured {
    failed: Option<String>,
    /// For each round and prompt.
    samples: Vec<Vec<Sample>>,
    stats: Stats,
    /// For each model, its proposals that were tested and accepted.
    tests: Vec<[u64; 2]>,
    /// The text for each prompt in the last round.
    tokens: Vec<Vec<i32>>,
    /// The plan that the last session chose.
    chosen: Option<String>,
    /// The sum of log-likelihoods, and the number of tokens.
    likelihood: (f64, usize),
    /// The most memory of a session, in bytes.
    memory: usize,
}

/// Seconds of a pass by model and width, in one round.
type Costs = BTreeMap<(usize, usize), f64>;

/// The options of a session.
pub fn options(ours: &Ours, task: &Task, tokens: usize, seed: u64) -> Result<Options> {
    let (top_k, top_p, min_p) = task.filters;
    Ok(Options {
        strategy: ours.strategy,
        targets: ours.targets,
        proposal_lengths: ours.lengths.clone(),
        weights: ours.weights.clone(),
        sampler: Sampler::new(task.temperature, top_k, top_p, min_p)?,
        seed,
        max_tokens: tokens,
        stop_tokens: Some(Vec::new()),
        ..Options::default()
    })
}

/// Measure a case. `tick` is called with the name of each row before it decodes a prompt.
pub fn run(
    task: &Task,
    prompts: &[Vec<i32>],
    effort: &Effort,
    workers: &mut [Started],
    tick: &dyn Fn(&str),
) -> Result<Case> {
    // Passes are timed for the models of the case only. Rows with other models have no theory.
    let setups = task.plans.iter().map(|plan| plan.decoder.theory(&task.engine)).collect::<Vec<_>>();
    let widths = widths(&setups, task);
    let mut rows: Vec<Measured> = task.plans.iter().map(|_| Measured::default()).collect();
    let mut costs = Vec::new();
    for round in 0..=effort.rounds {
        let warm_up = round == 0;
        let of_round = if warm_up { &prompts[..1] } else { prompts };
        rows.iter_mut().for_each(|row| {
            row.tokens.clear();
            row.samples.extend((!warm_up).then(Vec::new));
        });
        for (index, prompt) in of_round.iter().enumerate() {
            for turn in 0..rows.len() {
                let current = (turn + round) % rows.len(); // no row always comes after the same one
                let (plan, row) = (&task.plans[current], &mut rows[current]);
                tick(&plan.name);
                let peer = matches!(plan.decoder, Decoder::Peer { .. });
                if row.failed.is_some() || peer && index >= effort.peer_prompts {
                    continue;
                }
                let seed = index as u64 + 1000 * round as u64;
                let tokens = if warm_up { 16.min(effort.tokens) } else { effort.tokens };
                let done = match &plan.decoder {
                    Decoder::Ours(ours) => decode(ours, task, prompt, tokens, seed).and_then(|decoded| {
                        let stats = decoded.session.stats();
                        let text = decoded.session.decoder().committed()[prompt.len()..].to_vec();
                        if !warm_up {
                            row.add(&decoded, setups[current].as_ref());
                            if let Some(judge) = &task.judge {
                                let all = decoded.session.decoder().committed();
                                let judge = (std::slice::from_ref(judge), &Combination::target(1, 0)?);
                                row.likelihood.0 += log_likelihood(judge.0, judge.1, all, prompt.len())?;
                                row.likelihood.1 += text.len();
                            }
                        }
                        let tokens = stats.counters.tokens - decoded.before.counters.tokens;
                        Ok((Sample { tokens, seconds: decoded.seconds }, text))
                    }),
                    Decoder::Peer { worker, request } => ask(&mut workers[*worker], request, prompt, tokens, seed),
                };
                match done {
                    Ok((sample, text)) if !warm_up => {
                        row.samples[round - 1].push(sample);
                        row.tokens.push(text);
                    }
                    Ok(_) => {}
                    // Without `standard` there are no ratios.
                    Err(error) if current == 0 => return Err(error),
                    Err(error) => row.failed = Some(error.to_string()),
                }
            }
        }
        if !warm_up && !widths.is_empty() {
            let context: Vec<i32> = prompts[0].iter().chain(&rows[0].tokens[0][..effort.tokens / 2]).copied().collect();
            costs.push(pass_costs(task.engine.participants(), &widths, &context)?);
        }
    }
    Ok(summary(task, &rows, &setups, &costs, prompts.len(), effort))
}

/// Let a peer decode a prompt.
fn ask(worker: &mut Started, request: &Value, prompt: &[i32], tokens: usize, seed: u64) -> Result<(Sample, Vec<i32>)> {
    let mut request = request.clone();
    request["prompt"] = json!(prompt);
    request["tokens"] = json!(tokens);
    request["seed"] = json!(seed);
    match worker.as_mut().map_err(|reason| reason.clone())?.ask(&request)? {
        // The first token is not timed.
        Answer::Done { tokens, seconds } => Ok((Sample { tokens: tokens.len() as u64 - 1, seconds }, tokens)),
        Answer::Failed { error } => Err(error.into()),
    }
}

/// The most steps that are not timed.
const FIRST_STEPS: usize = 16;

/// Decode a prompt. Timing starts when all models that are needed have read the prompt, since a prompt takes as long as
/// many tokens. With `standard`, that is after the first step; with routed targets, some steps later.
fn decode(ours: &Ours, task: &Task, prompt: &[i32], tokens: usize, seed: u64) -> Result<Decoded> {
    let mut session = Session::new(&ours.engine, &options(ours, task, tokens, seed)?)?;
    session.prompt(prompt)?;
    let mut steps = Vec::with_capacity(tokens + 1);
    steps.push(session.stats().counters);
    let needed = |session: &Session| {
        let (decoder, models) = (session.decoder(), ours.engine.participants().len());
        let combination = &decoder.settings().combination;
        let read = |model: usize| decoder.gap(model) <= decoder.committed().len() - prompt.len();
        (0..models).all(|model| !combination.needs(model) || read(model))
    };
    for _ in 0..FIRST_STEPS.min(tokens / 4) {
        session.step()?;
        steps.push(session.stats().counters);
        if needed(&session) {
            break;
        }
    }
    let before = session.stats();
    let started = Instant::now();
    while session.step()?.1 == State::Open {
        steps.push(session.stats().counters);
    }
    Ok(Decoded { seconds: started.elapsed().as_secs_f64(), session, before, steps })
}

/// A decoded prompt.
struct Decoded {
    session: Session,
    seconds: f64,
    /// The statistics when timing started.
    before: Stats,
    /// The counters after each step.
    steps: Vec<Counters>,
}

impl Measured {
    fn add(&mut self, decoded: &Decoded, setup: Option<&Setup>) {
        let Decoded { session, before, steps, .. } = decoded;
        self.stats.advance(before, &session.stats());
        if let Some(setup) = setup {
            self.tests.resize(setup.needed.len(), [0; 2]);
            attribute(setup, steps, &mut self.tests);
        }
        self.chosen = Some(chosen(session));
        self.memory = self.memory.max(session.memory().peak_bytes);
    }
}

/// The plan that a session chose, in words.
fn chosen(session: &Session) -> String {
    let plan = session.describe();
    let gain = plan["expected_gain"].as_f64().map_or(String::new(), |gain| format!(", expects {gain:.2}"));
    let word = |key: &str| plan[key].as_str().unwrap_or_default();
    format!("{} {} {}{gain}", word("targets"), word("strategy"), plan["proposal_lengths"])
}

/// Add tested and accepted proposals of each model, from the counters after each step. The path of the theory tells
/// which model made a proposal.
pub fn attribute(setup: &Setup, steps: &[Counters], tests: &mut [[u64; 2]]) {
    let decisions = || {
        setup.path().filter_map(|event| match event {
            Event::Decision(proposer) => Some(proposer),
            Event::Pass { .. } => None,
        })
    };
    let mut path = decisions();
    for pair in steps.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        let (tested, accepted) = (after.tested - before.tested, after.accepted - before.accepted);
        let committed = path.by_ref().take((after.tokens - before.tokens) as usize);
        let proposers: Vec<usize> = committed.flatten().collect();
        if proposers.len() as u64 != tested {
            return; // near the end, proposals are cut short, and the path differs
        }
        for (index, model) in proposers.into_iter().enumerate() {
            tests[model][0] += 1;
            tests[model][1] += u64::from((index as u64) < accepted);
        }
        if accepted < tested {
            path = decisions();
        }
    }
}

/// The widths of the passes in the theory.
fn widths(setups: &[Option<Setup>], task: &Task) -> BTreeSet<usize> {
    let mut widths = BTreeSet::new();
    for setup in setups.iter().flatten().filter(|_| task.sweep.is_none()) {
        widths.insert(1);
        widths.extend(setup.path().take(200).filter_map(|event| match event {
            Event::Pass { width, .. } => Some(width),
            Event::Decision(_) => None,
        }));
    }
    widths
}

/// Time passes of all models by width on a cache of this context, the models in turn, as strategies run them.
fn pass_costs(participants: &[Participant], widths: &BTreeSet<usize>, context: &[i32]) -> Result<Costs> {
    let cancel = Arc::new(Cancel::default());
    let scoring = || participants.iter().enumerate().filter_map(|(index, each)| Some((index, each.model()?)));
    let mut sequences = BTreeMap::new();
    for (index, model) in scoring() {
        let mut sequence = model.start(&cancel)?;
        extend(model, sequence.as_mut(), context)?;
        sequences.insert(index, sequence);
    }
    let mut times: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for _ in 0..REPETITIONS {
        for &width in widths {
            for (index, model) in scoring() {
                let sequence = sequences.get_mut(&index).expect("started").as_mut();
                let started = Instant::now();
                extend(model, sequence, &context[..width])?;
                times.entry((index, width)).or_default().push(started.elapsed().as_secs_f64());
                sequence.truncate(context.len());
            }
        }
    }
    Ok(times.into_iter().map(|(key, times)| (key, Spread::of(times).median)).collect())
}

/// Run tokens in as many passes as they need.
pub fn extend(model: &dyn Model, sequence: &mut dyn Sequence, tokens: &[i32]) -> Result<()> {
    for tokens in tokens.chunks(model.max_pass()) {
        model.forward(&mut [Pass::plain(sequence, tokens)]).map_err(|interrupt| match interrupt {
            Interrupt::Failed(error) => error.to_string(),
            Interrupt::Cancelled => "cancelled".into(),
        })?;
    }
    Ok(())
}

/// The case that was measured.
fn summary(
    task: &Task,
    rows: &[Measured],
    setups: &[Option<Setup>],
    costs: &[Costs],
    prompts: usize,
    effort: &Effort,
) -> Case {
    let models = task.engine.participants();
    let standard = &rows[0];
    let row = |(index, measured): (usize, &Measured)| {
        let mut row = row(task, index, measured, standard);
        if let (Some(setup), false) = (&setups[index], costs.is_empty() || row.failed.is_some()) {
            row.theory = Some(theory(setup, &row, standard, costs));
        }
        row
    };
    let widths: BTreeSet<(usize, usize)> = costs.iter().flat_map(|costs| costs.keys().copied()).collect();
    let pass_costs = widths.into_iter().map(|(model, width)| PassCost {
        model: models[model].name().into(),
        width,
        milliseconds: Spread::of(costs.iter().map(|costs| 1e3 * costs[&(model, width)])),
    });
    Case {
        title: task.title.clone(),
        about: task.about.clone(),
        models: models.iter().map(|model| model.name().into()).collect(),
        kind: task.kind.clone(),
        temperature: task.temperature,
        prompts: task.prompts.into(),
        prompts_count: prompts,
        tokens: effort.tokens,
        rounds: effort.rounds,
        sweep: task.sweep.clone(),
        judge: task.judge.as_ref().map(|judge| judge.name().into()),
        pass_costs: pass_costs.collect(),
        rows: rows.iter().enumerate().map(row).collect(),
    }
}

/// A row that was measured, without the theory.
fn row(task: &Task, index: usize, measured: &Measured, standard: &Measured) -> Row {
    let plan = &task.plans[index];
    let peer = matches!(plan.decoder, Decoder::Peer { .. });
    let failed = measured.failed.clone();
    let plain =
        Row { name: plan.name.clone(), peer, series: plan.series.clone(), at: plan.at, failed, ..Row::default() };
    if plain.failed.is_some() {
        return plain;
    }
    let ratios = paired(&measured.samples, &standard.samples);
    let Stats { counters: c, total_ns, model_ns, .. } = &measured.stats;
    let rate = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let (sum, count) = measured.likelihood;
    Row {
        tokens_per_second: Spread::of(measured.samples.iter().map(speed)),
        ratio: Spread::of(ratios.iter().copied()),
        ratios,
        accepted: rate(c.accepted, c.tested),
        acceptance: measured.tests.iter().map(|[tested, accepted]| rate(*accepted, *tested)).collect(),
        passes_per_token: rate(c.forwards, c.tokens),
        positions_per_pass: rate(c.positions, c.forwards),
        host_share: rate(total_ns - model_ns.min(total_ns), *total_ns),
        equal: (task.temperature == 0.0 && task.sweep.is_none()).then(|| {
            let same = measured.tokens.iter().zip(&standard.tokens).filter(|(own, other)| own == other);
            (same.count(), measured.tokens.len())
        }),
        chosen: measured.chosen.clone().filter(|_| plan.decoder.is_auto()),
        likelihood: (count > 0).then(|| sum / count as f64),
        memory: (!peer).then_some(measured.memory),
        ..plain
    }
}

/// The expected gain of a row, from the pass costs of each round, and the measured one.
fn theory(setup: &Setup, row: &Row, standard: &Measured, costs: &[Costs]) -> Theory {
    let mean = row.accepted.unwrap_or(0.0);
    let acceptance: Vec<f64> =
        (0..setup.needed.len()).map(|k| row.acceptance.get(k).copied().flatten().unwrap_or(mean)).collect();
    let needed = || (0..setup.needed.len()).filter(|&model| setup.needed[model]);
    let expected = |costs: &Costs| {
        let together: f64 = needed().map(|model| costs[&(model, 1)]).sum();
        together / setup.expected(&acceptance, |model, width| cost(costs, model, width)).seconds
    };
    let theorem = |costs: &Costs| {
        let c = |proposer: usize, verifier: usize| costs[&(proposer, 1)] / costs[&(verifier, 1)];
        match &setup.policy {
            _ if setup.needed != [true, true] => None,
            Policy::Speculative { proposer, length } => {
                Some(theory::theorem_3_1(mean, c(*proposer, 1 - proposer), *length))
            }
            Policy::Cos { lengths, order } => {
                let (proposer, verifier) = (order[0], order[1]);
                Some(theory::theorem_3_6(mean, c(proposer, verifier), lengths[proposer], lengths[verifier]))
            }
        }
    };
    let expectations: Vec<f64> = costs.iter().map(expected).collect();
    let reached = Spread::of(row.ratios.iter().zip(&expectations).map(|(measured, expected)| measured / expected));
    let busy = |host: Option<f64>| 1.0 - host.unwrap_or(0.0);
    let of_standard = 1.0 - (standard.stats.total_ns - standard.stats.model_ns) as f64 / standard.stats.total_ns as f64;
    let host = busy(row.host_share) / of_standard;
    let passes = setup.expected(&acceptance, |_, _| 1.0).passes / row.passes_per_token.unwrap_or(f64::NAN);
    let theorems: Option<Vec<f64>> = costs.iter().map(theorem).collect();
    Theory {
        theorem: theorems.map(|theorems| Spread::of(theorems).median),
        expected: Spread::of(expectations).median,
        reached,
        host,
        passes,
        rest: reached.median / host / passes,
    }
}

/// The cost of a pass, taken from the nearest width that was measured.
fn cost(costs: &Costs, model: usize, width: usize) -> f64 {
    let nearest = costs.range((model, width)..(model + 1, 0)).next();
    nearest.or_else(|| costs.range((model, 0)..(model, width)).next_back()).map_or(f64::NAN, |(_, seconds)| *seconds)
}
