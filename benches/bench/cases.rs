//! The cases of the benchmark: which models are combined, and which strategies decode them.

use std::sync::Arc;

use cos::config::Combine;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::participant::Participant;
use serde_json::json;

use super::hostile::{Hostile, NEVER};
use super::theory::{Policy, Setup};

/// Models whose sizes are within this factor count as equally large.
const EQUAL: f64 = 1.25;
/// A model that is smaller by this factor may draft, or be subtracted.
const SMALL: f64 = 2.0;

/// The groups of models that are combined, by index.
#[derive(Debug, PartialEq)]
pub struct Picks {
    /// The two models nearest in size, if they are about equally large.
    pub pair: Option<Vec<usize>>,
    /// The three models nearest in size.
    pub triple: Option<Vec<usize>>,
    /// The largest and the smallest model, if they differ enough.
    pub contrast: Option<Vec<usize>>,
}

impl Picks {
    /// Pick groups by the sizes of models. Among equally good groups, the first one is picked.
    pub fn new(sizes: &[u64]) -> Picks {
        let spread = |group: &[usize]| {
            let sizes = || group.iter().map(|&model| sizes[model] as f64);
            sizes().fold(0.0, f64::max) / sizes().fold(f64::INFINITY, f64::min)
        };
        let nearest = |groups: Vec<Vec<usize>>| groups.into_iter().min_by(|a, b| spread(a).total_cmp(&spread(b)));
        let all = 0..sizes.len();
        let pairs: Vec<Vec<usize>> = all.clone().flat_map(|a| (a + 1..sizes.len()).map(move |b| vec![a, b])).collect();
        let last = |pair: &Vec<usize>| pair[1] + 1..sizes.len();
        let triples = pairs.iter().flat_map(|pair| last(pair).map(|c| vec![pair[0], pair[1], c])).collect();
        // `max_by_key` would take the last of several largest models.
        let largest = all.clone().min_by_key(|&model| std::cmp::Reverse(sizes[model]));
        let smallest = all.min_by_key(|&model| sizes[model]);
        let contrast = largest.zip(smallest).map(|(large, small)| vec![large, small]);
        Picks {
            pair: nearest(pairs).filter(|pair| spread(pair) <= EQUAL),
            triple: nearest(triples),
            contrast: contrast.filter(|pair| spread(pair) >= SMALL),
        }
    }
}

/// How CoS decodes for a row.
#[derive(Clone)]
pub struct Ours {
    pub engine: Arc<Engine>,
    pub strategy: Strategy,
    pub targets: Option<Targets>,
    pub lengths: Option<Vec<i32>>,
    pub weights: Option<Vec<f32>>,
}

/// The decoder of a row.
pub enum Decoder {
    Ours(Ours),
    /// A worker by its index in [`super::peers::WORKERS`], and its request without prompt and seed.
    Peer {
        worker: usize,
        request: serde_json::Value,
    },
}

impl Decoder {
    pub fn is_auto(&self) -> bool {
        matches!(self, Decoder::Ours(ours) if ours.strategy == Strategy::Auto)
    }

    /// The input of the theory. `None` if the theory does not cover it, or another engine runs it.
    pub fn theory(&self, engine: &Arc<Engine>) -> Option<Setup> {
        match self {
            Decoder::Ours(ours) if Arc::ptr_eq(&ours.engine, engine) => ours.theory(),
            _ => None,
        }
    }
}

/// A row of a case before it is measured. In a sweep, `series` is the curve, and `at` the place on it.
pub struct Plan {
    pub name: String,
    pub series: String,
    pub at: f64,
    pub decoder: Decoder,
}

/// Values of top-k, top-p and min-p that keep all tokens.
const UNFILTERED: (i32, f32, f32) = (0, 1.0, 0.0);

/// Rows that are measured side by side. The first one is `standard`.
pub struct Task {
    pub title: String,
    pub about: String,
    pub kind: String,
    pub engine: Arc<Engine>,
    pub temperature: f32,
    /// Top-k, top-p and min-p.
    pub filters: (i32, f32, f32),
    /// The name of the set of prompts.
    pub prompts: &'static str,
    pub sweep: Option<String>,
    /// The model whose likelihood judges the text.
    pub judge: Option<Participant>,
    pub plans: Vec<Plan>,
}

pub fn ours(name: &str, ours: Ours) -> Plan {
    Plan { name: name.into(), series: String::new(), at: 0.0, decoder: Decoder::Ours(ours) }
}

fn row(engine: &Arc<Engine>, strategy: Strategy, lengths: Option<Vec<i32>>) -> Ours {
    Ours { engine: engine.clone(), strategy, targets: None, lengths, weights: None }
}

/// All strategies of an engine.
pub fn strategies(engine: &Arc<Engine>, greedy: bool) -> Vec<Plan> {
    let models = engine.participants();
    let each = |length: i32| vec![length; models.len()];
    let mut plans = vec![ours("standard", row(engine, Strategy::Standard, None))];
    let mut add = |name: &str, strategy, lengths| plans.push(ours(name, row(engine, strategy, lengths)));
    if models.len() > 1 {
        for length in [1, 5] {
            add(&format!("speculative γ={length}"), Strategy::Speculative, Some(each(length)));
        }
        if !matches!(engine.combine(), Combine::Target { .. }) {
            let cheapest = (0..models.len()).min_by_key(|&model| models[model].cost()).expect("models");
            let mut mixed = each(1);
            mixed[cheapest] = 5;
            let written = mixed.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
            add("cos γ=1", Strategy::Cos, Some(each(1)));
            add("cos γ=5", Strategy::Cos, Some(each(5)));
            add(&format!("cos γ={written}"), Strategy::Cos, Some(mixed));
        }
    }
    if !greedy && matches!(engine.combine(), Combine::Weighted { .. }) {
        for (name, strategy, lengths) in
            [("routed", Strategy::Standard, None), ("routed, cos γ=1", Strategy::Cos, Some(each(1)))]
        {
            plans.push(ours(name, Ours { targets: Some(Targets::Routed), ..row(engine, strategy, lengths) }));
        }
    }
    plans.push(ours("auto", row(engine, Strategy::Auto, None)));
    plans
}

/// An engine with some models of another one, followed by drafters of weight 0.
pub fn engine(
    all: &Arc<Engine>,
    group: &[usize],
    drafters: &[Participant],
    combine: &Combine,
) -> cos::error::Result<Arc<Engine>> {
    let mut models: Vec<_> = group.iter().map(|&model| all.participants()[model].clone()).collect();
    models.extend(drafters.iter().cloned());
    let combine = match combine {
        Combine::Weighted { weights } => {
            Combine::Weighted { weights: weights.iter().copied().chain(drafters.iter().map(|_| 0.0)).collect() }
        }
        // A contrastive combination takes exactly two models, a sum of logits any number.
        Combine::Contrastive { mu, plausibility: 0.0 } if !drafters.is_empty() => {
            Combine::Logits { weights: [1.0, -mu].into_iter().chain(drafters.iter().map(|_| 0.0)).collect() }
        }
        other => other.clone(),
    };
    Ok(Arc::new(Engine::new(models, combine, all.stop_tokens().to_vec(), all.text().ok().cloned())?))
}

/// The end of the names of rows whose passes may overlap. In other rows, passes run one after the other.
pub const OVERLAPPING: &str = ", overlapping";

/// The end of the names of rows with models on two GPUs, whose passes may overlap.
pub const TWO_GPUS: &str = ", two GPUs";

/// An engine with models of two others, alternately. Passes overlap if that pays.
fn overlapping(by_turns: [&Arc<Engine>; 2], group: &[usize], combine: &Combine) -> cos::error::Result<Arc<Engine>> {
    let [all, _] = by_turns;
    let models =
        group.iter().zip(by_turns.iter().cycle()).map(|(&model, of)| of.participants()[model].clone()).collect();
    let engine = Engine::new(models, combine.clone(), all.stop_tokens().to_vec(), all.text().ok().cloned())?;
    engine.with_overlap(None).map(Arc::new)
}

/// The models of an engine for peers.
pub struct Peers {
    /// For each model, the folder of the export, and that of the original in Hugging Face's format.
    pub folders: Vec<(String, Option<String>)>,
    pub sizes: Vec<u64>,
    /// Whether to run the genai loop with all settings, or with the defaults only.
    pub settings: bool,
    /// Whether peers run on a GPU.
    pub cuda: bool,
}

impl Peers {
    /// The peers' rows for a group of models.
    fn plans(&self, group: &[usize], combine: &Combine, temperature: f32, lengths: &[i32]) -> Vec<Plan> {
        let plan = |name: &str, worker, method: &str, models: Vec<&String>| {
            let request = json!({
                "method": method, "models": models, "combine": combine, "temperature": temperature, "lengths": lengths,
                "sizes": group.iter().map(|&model| self.sizes[model]).collect::<Vec<_>>(),
            });
            let decoder = Decoder::Peer { worker, request };
            Plan { name: name.into(), series: String::new(), at: 0.0, decoder }
        };
        let exports: Vec<&String> = group.iter().map(|&model| &self.folders[model].0).collect();
        let originals: Option<Vec<&String>> = group.iter().map(|&model| self.folders[model].1.as_ref()).collect();
        if self.cuda {
            // Each worker keeps all its models in GPU memory, so there are few kinds.
            let mut plans = Vec::new();
            match (group.len(), combine) {
                (1, _) => {
                    plans.push(plan("genai", 4, "generate", exports.clone()));
                    plans.push(plan("genai, CUDA graphs", 5, "generate", exports.clone()));
                    plans.push(plan("genai, logits read by Python", 4, "standard", exports));
                }
                (2, Combine::Weighted { .. }) => plans.push(plan("genai loop", 4, "standard", exports)),
                _ => return plans,
            }
            plans.extend(originals.map(|originals| plan("transformers, standard", 6, "standard", originals)));
            return plans;
        }
        let mut plans = vec![
            plan("genai loop", 0, "standard", exports.clone()),
            plan("genai loop, spinning off", 1, "standard", exports.clone()),
        ];
        if self.settings {
            plans.push(plan("genai loop, one thread each", 2, "standard", exports));
        }
        if let Some(originals) = originals {
            plans.push(plan("transformers, standard", 3, "standard", originals.clone()));
            if group.len() > 1 {
                plans.push(plan(&format!("transformers, Algorithm {}", group.len().min(3) - 1), 3, "cos", originals));
            }
        }
        plans
    }
}

const PROMPTS: [(&str, &str); 2] = [("gsm8k", "GSM8K"), ("humaneval", "HumanEval")];

/// The cases of the whole benchmark.
pub fn all(all: &Arc<Engine>, peers: &Peers, quick: bool) -> cos::error::Result<Vec<Task>> {
    let picks = Picks::new(&sizes(all));
    let mut tasks = combinations(all, None, peers, &picks, if quick { 1 } else { 2 })?;
    if !quick {
        sweeps(all, &picks, &mut tasks)?;
    }
    hostile(all, &picks, &mut tasks)?;
    Ok(tasks)
}

/// The cases of `make bench-cuda`, the most important first, because time may run out. `second` has the same models on
/// another GPU.
pub fn on_gpu(all: &Arc<Engine>, second: Option<&Arc<Engine>>, peers: &Peers) -> cos::error::Result<Vec<Task>> {
    let picks = Picks::new(&sizes(all));
    let mut tasks = combinations(all, second, peers, &picks, 1)?;
    let (first, combine) = (picks.pair.as_ref().map_or(0, |pair| pair[0]), Combine::Target { model: 0 });
    let alone = engine(all, &[first], &[], &combine)?;
    let mut plans = vec![ours("standard", row(&alone, Strategy::Standard, None))];
    plans.extend(peers.plans(&[first], &combine, 0.0, &[0]));
    tasks.push(Task {
        title: "one model: greedy, GSM8K".into(),
        about: "One model by itself, without speculation.".into(),
        kind: ALONE.into(),
        engine: alone,
        temperature: 0.0,
        filters: UNFILTERED,
        prompts: "gsm8k",
        sweep: None,
        judge: None,
        plans,
    });
    let drafted = |task: &Task| task.kind == "target with a drafter";
    tasks.sort_by_key(|task| (task.kind != ALONE && task.temperature == 0.0, drafted(task)));
    Ok(tasks)
}

/// The kind of a case with one model.
pub const ALONE: &str = "one model";

fn sizes(all: &Arc<Engine>) -> Vec<u64> {
    all.participants().iter().map(|model| model.cost()).collect()
}

/// All strategies on all kinds of combinations, on the first `sets` sets of prompts. `second` has the same models on
/// another GPU.
fn combinations(
    all: &Arc<Engine>,
    second: Option<&Arc<Engine>>,
    peers: &Peers,
    picks: &Picks,
    sets: usize,
) -> cos::error::Result<Vec<Task>> {
    let equal = |models: usize| Combine::Weighted { weights: vec![1.0 / models as f32; models] };
    let contrastive = Combine::Contrastive { mu: 0.1, plausibility: 0.0 };
    let target = Combine::Target { model: 0 };
    let mut tasks = Vec::new();
    let groups = [
        ("weighted, two models", &picks.pair, equal(2), "Equal weights, λ = 1/2 each."),
        ("weighted, three models", &picks.triple, equal(3), "Equal weights, λ = 1/3 each."),
        ("contrastive", &picks.contrast, contrastive, "The largest minus μ = 0.1 times the smallest."),
        ("target with a drafter", &picks.contrast, target, "The largest; the smallest only drafts."),
    ];
    for (kind, group, combine, about) in groups {
        let Some(group) = group else { continue };
        let plain = engine(all, group, &[], &combine)?;
        for (temperature, sampled) in [(1.0, "sampled"), (0.0, "greedy")] {
            for (prompts, written) in PROMPTS.into_iter().take(sets) {
                let mut plans = strategies(&plain, temperature == 0.0);
                plans.extend(drafted(all, group, &combine)?);
                if peers.cuda && group.len() > 1 {
                    plans.extend(on_several_streams(all, second, group, &combine)?);
                }
                if prompts == "gsm8k" {
                    plans.extend(peers.plans(group, &combine, temperature, &peer_lengths(all, group, &combine)));
                }
                tasks.push(Task {
                    title: format!("{kind}: {sampled}, {written}"),
                    about: about.into(),
                    kind: kind.into(),
                    engine: plain.clone(),
                    temperature,
                    filters: UNFILTERED,
                    prompts,
                    sweep: None,
                    judge: None,
                    plans,
                });
            }
        }
    }
    Ok(tasks)
}

/// Rows with further drafters: a look-up, and the smallest model if it is much smaller than all of the group.
fn drafted(all: &Arc<Engine>, group: &[usize], combine: &Combine) -> cos::error::Result<Vec<Plan>> {
    let sizes = sizes(all);
    let small = (0..sizes.len())
        .min_by_key(|&model| sizes[model])
        .filter(|small| group.iter().all(|&model| sizes[model] as f64 >= SMALL * sizes[*small] as f64));
    let mut plans = Vec::new();
    let mut draft = |name: &str, drafters: &[Participant], strategy, length: Option<i32>| {
        let engine = engine(all, group, drafters, combine)?;
        let models = engine.participants().len();
        let drafts = |length| (0..models).map(|model| i32::from(model == models - 1) * length).collect();
        plans.push(ours(name, row(&engine, strategy, length.map(drafts))));
        cos::error::Result::Ok(())
    };
    let look_up: Participant = Participant::LookUp("look-up".into());
    draft("look-up γ=5", std::slice::from_ref(&look_up), Strategy::Speculative, Some(5))?;
    if let Some(small) = small {
        let small = all.participants()[small].clone();
        let name = format!("{} drafts γ=4", small.name());
        draft(&name, std::slice::from_ref(&small), Strategy::Speculative, Some(4))?;
        draft("auto, with both drafters", &[look_up, small], Strategy::Auto, None)?;
    } else {
        draft("auto, with look-up", &[look_up], Strategy::Auto, None)?;
    }
    Ok(plans)
}

/// Rows whose passes overlap, on one GPU and on two.
fn on_several_streams(
    all: &Arc<Engine>,
    second: Option<&Arc<Engine>>,
    group: &[usize],
    combine: &Combine,
) -> cos::error::Result<Vec<Plan>> {
    let mut engines = vec![(OVERLAPPING, overlapping([all, all], group, combine)?)];
    if let Some(second) = second {
        engines.push((TWO_GPUS, overlapping([all, second], group, combine)?));
    }
    let mut plans = Vec::new();
    for (end, engine) in &engines {
        for (name, strategy) in [("standard", Strategy::Standard), ("auto", Strategy::Auto)] {
            plans.push(ours(&format!("{name}{end}"), row(engine, strategy, None)));
        }
    }
    Ok(plans)
}

/// The lengths of drafts that peers use: 5 for much smaller models, 1 for others. A target does not draft for itself.
fn peer_lengths(all: &Arc<Engine>, group: &[usize], combine: &Combine) -> Vec<i32> {
    let sizes = sizes(all);
    let length = |&model: &usize| match matches!(combine, Combine::Target { .. }) {
        true if model == group[0] => 0,
        _ if sizes[model] as f64 * SMALL <= sizes[group[0]] as f64 => 5,
        _ => 1,
    };
    group.iter().map(length).collect()
}

/// Cases with long rows of logits, over two models that have them.
pub fn long_rows(wide: &Arc<Engine>) -> cos::error::Result<Vec<Task>> {
    let half = Combine::Weighted { weights: vec![0.5; 2] };
    let contrastive = Combine::Contrastive { mu: 0.1, plausibility: 0.0 };
    let mut tasks = Vec::new();
    for (kind, combine) in [("weighted", half), ("contrastive", contrastive)] {
        let engine = engine(wide, &[0, 1], &[], &combine)?;
        for (temperature, sampled) in [(1.0, "sampled"), (0.0, "greedy")] {
            tasks.push(Task {
                title: format!("{} tokens, {kind}: {sampled}", wide.vocab_size()),
                about: "Two models whose vocabulary was extended by tokens of negligible probability.".into(),
                kind: "long rows".into(),
                engine: engine.clone(),
                temperature,
                filters: UNFILTERED,
                prompts: "gsm8k",
                sweep: None,
                judge: None,
                plans: strategies(&engine, temperature == 0.0),
            });
        }
    }
    Ok(tasks)
}

/// Cases in which speculation fails, or begins to fail in the middle of the text. `auto` must notice.
fn hostile(all: &Arc<Engine>, picks: &Picks, tasks: &mut Vec<Task>) -> cos::error::Result<()> {
    /// A position within the text: prompts have 50 to 130 tokens.
    const MIDDLE: usize = 160;
    let half = Combine::Weighted { weights: vec![0.5; 2] };
    let (contrastive, target) = (Combine::Contrastive { mu: 0.1, plausibility: 0.0 }, Combine::Target { model: 0 });
    let groups = [
        ("unrelated models, weighted", &picks.pair, &half, 0, NEVER),
        ("an unrelated amateur, contrastive", &picks.contrast, &contrastive, 0, NEVER),
        ("a drafter that is always wrong", &picks.contrast, &target, 0, NEVER),
        ("a drafter that is wrong from the middle on", &picks.contrast, &target, MIDDLE, NEVER),
        ("a drafter that is slow from the middle on", &picks.contrast, &target, NEVER, MIDDLE),
    ];
    for (title, group, combine, wrong_from, slow_from) in groups {
        let Some(group) = group else { continue };
        let Participant::Model(inner) = all.participants()[group[1]].clone() else { continue };
        let models: Vec<Participant> =
            vec![all.participants()[group[0]].clone(), Arc::new(Hostile { inner, wrong_from, slow_from }).into()];
        let text = all.text().ok().cloned();
        let engine = Arc::new(Engine::new(models, combine.clone(), all.stop_tokens().to_vec(), text)?);
        for (temperature, sampled) in [(1.0, "sampled"), (0.0, "greedy")] {
            let lengths = Some(vec![i32::from(wrong_from == 0 && *combine != target), 4]);
            tasks.push(Task {
                title: format!("hostile: {title}, {sampled}"),
                about: "The second model's logits are those of other tokens, or its passes take 16 times as long."
                    .into(),
                kind: "hostile".into(),
                engine: engine.clone(),
                temperature,
                filters: UNFILTERED,
                prompts: "gsm8k",
                sweep: None,
                judge: None,
                plans: vec![
                    ours("standard", row(&engine, Strategy::Standard, None)),
                    ours("cos", row(&engine, Strategy::Cos, lengths)),
                    ours("auto", row(&engine, Strategy::Auto, None)),
                ],
            });
        }
    }
    Ok(())
}

/// Sweeps like those of Figures 4 to 6 and Appendix C.1 of the paper.
fn sweeps(all: &Arc<Engine>, picks: &Picks, tasks: &mut Vec<Task>) -> cos::error::Result<()> {
    if let Some(pair) = &picks.pair {
        tasks.extend(weighted_sweeps(&engine(all, pair, &[], &Combine::Weighted { weights: vec![0.5; 2] })?));
    }
    if let Some(pair) = &picks.contrast {
        tasks.extend(contrastive_sweeps(all, pair)?);
        tasks.push(quality_sweep(&engine(all, pair, &[], &Combine::Weighted { weights: vec![1.0, 0.0] })?));
    }
    Ok(())
}

/// Lengths of drafts that sweeps try.
const GAMMAS: [i32; 6] = [1, 2, 3, 4, 5, 7];

/// A sweep that has no points yet.
fn sweep(title: &str, about: &str, symbol: &str, engine: &Arc<Engine>, temperature: f32) -> Task {
    Task {
        title: title.into(),
        about: about.into(),
        kind: "sweep".into(),
        engine: engine.clone(),
        temperature,
        filters: UNFILTERED,
        prompts: "gsm8k",
        sweep: Some(symbol.into()),
        judge: None,
        plans: vec![ours("standard", row(engine, Strategy::Standard, None))],
    }
}

/// A point of a curve.
fn point(series: &str, symbol: &str, at: f32, ours: Ours) -> Plan {
    let name = format!("{series}, {symbol} = {at}");
    Plan { name, series: series.into(), at: f64::from(at), decoder: Decoder::Ours(ours) }
}

/// Sweeps of γ and λ over a weighted combination of two models.
fn weighted_sweeps(engine: &Arc<Engine>) -> [Task; 2] {
    let mut lengths = sweep("γ sweep, weighted, sampled", "Both models propose γ tokens.", "γ", engine, 1.0);
    for gamma in GAMMAS {
        let at = gamma as f32;
        let by = |strategy| row(engine, strategy, Some(vec![gamma; 2]));
        let routed = Ours { targets: Some(Targets::Routed), ..by(Strategy::Cos) };
        lengths.plans.push(point("speculative", "γ", at, by(Strategy::Speculative)));
        lengths.plans.push(point("cos", "γ", at, by(Strategy::Cos)));
        lengths.plans.push(point("routed, cos", "γ", at, routed));
    }
    let mut weights = sweep("λ sweep, weighted, sampled", "λ is the first model's weight.", "λ", engine, 1.0);
    for lambda in [0.1f32, 0.3, 0.5, 0.7, 0.9] {
        let own = Some(vec![lambda, 1.0 - lambda]);
        let by = |strategy, lengths| Ours { weights: own.clone(), ..row(engine, strategy, lengths) };
        weights.plans.push(point("speculative γ=1", "λ", lambda, by(Strategy::Speculative, Some(vec![1; 2]))));
        weights.plans.push(point("cos γ=1", "λ", lambda, by(Strategy::Cos, Some(vec![1; 2]))));
        weights.plans.push(point("auto", "λ", lambda, by(Strategy::Auto, None)));
    }
    [lengths, weights]
}

/// Sweeps of γ and μ over a contrastive combination of a large and a small model.
fn contrastive_sweeps(all: &Arc<Engine>, pair: &[usize]) -> cos::error::Result<Vec<Task>> {
    let contrastive = |mu| engine(all, pair, &[], &Combine::Contrastive { mu, plausibility: 0.0 });
    let base = contrastive(0.1)?;
    let mut tasks = Vec::new();
    for (temperature, sampled) in [(1.0, "sampled"), (0.0, "greedy")] {
        let title = format!("γ sweep, contrastive, {sampled}");
        let about = "The smaller model proposes γ tokens, the larger one the token behind them.";
        let mut lengths = sweep(&title, about, "γ", &base, temperature);
        for gamma in GAMMAS {
            let by = |strategy| row(&base, strategy, Some(vec![1, gamma]));
            lengths.plans.push(point("speculative", "γ", gamma as f32, by(Strategy::Speculative)));
            lengths.plans.push(point("cos", "γ", gamma as f32, by(Strategy::Cos)));
        }
        tasks.push(lengths);
    }
    let about = "μ is how much of the smaller model is subtracted.";
    let mut weights = sweep("μ sweep, contrastive, sampled", about, "μ", &base, 1.0);
    for mu in [0.05, 0.1, 0.2, 0.3, 0.5] {
        let engine = contrastive(mu)?;
        for gamma in [1, 3] {
            let ours = row(&engine, Strategy::Cos, Some(vec![1, gamma]));
            weights.plans.push(point(&format!("cos γ=1,{gamma}"), "μ", mu, ours));
        }
        let ours = row(&engine, Strategy::Speculative, Some(vec![0, 3]));
        weights.plans.push(point("speculative γ=3", "μ", mu, ours));
        weights.plans.push(point("auto", "μ", mu, row(&engine, Strategy::Auto, None)));
    }
    tasks.push(weights);
    Ok(tasks)
}

/// Quality against speed. The baseline of speed is the large model alone, λ = 0.
fn quality_sweep(mixture: &Arc<Engine>) -> Task {
    let mut task = sweep(
        "Quality against speed",
        "A mixture of the largest and the smallest model; λ is the weight of the smallest. Quality is the mean \
         log-likelihood of a token under the largest model. The baseline of speed is the largest model alone.",
        "λ",
        mixture,
        1.0,
    );
    task.judge = Some(mixture.participants()[0].clone());
    for lambda in [0.0f32, 0.1, 0.25, 0.5, 0.75, 0.9] {
        let weights = Some(vec![1.0 - lambda, lambda]);
        let by = |strategy, lengths| Ours { weights: weights.clone(), ..row(mixture, strategy, lengths) };
        task.plans.push(point("cos γ=1,3", "λ", lambda, by(Strategy::Cos, Some(vec![1, 3]))));
        task.plans.push(point("auto", "λ", lambda, by(Strategy::Auto, None)));
    }
    task
}

impl Ours {
    /// The input of the theory. `None` for `standard`, `auto`, routed targets and look-ups.
    pub fn theory(&self) -> Option<Setup> {
        let models = self.engine.participants();
        let combination = self.engine.combination(self.weights.as_deref()).ok()?;
        let lengths: Vec<usize> = self.lengths.as_ref()?.iter().map(|&length| length as usize).collect();
        let needed: Vec<bool> = (0..models.len()).map(|model| combination.needs(model)).collect();
        // If only one model is needed, its own proposals would not speed it up.
        let alone = needed.iter().filter(|needed| **needed).count() == 1;
        let length = |model: usize| if alone && needed[model] { 0 } else { lengths[model] };
        let drafts = |model: &usize| length(*model) > 0;
        if self.targets.is_some() || (0..models.len()).any(|model| length(model) > 0 && models[model].model().is_none())
        {
            return None;
        }
        let cost = |model: usize| (models[model].cost(), model);
        let policy = match self.strategy {
            Strategy::Speculative => {
                let proposer = (0..models.len()).filter(drafts).min_by_key(|&model| (needed[model], cost(model)))?;
                Policy::Speculative { proposer, length: length(proposer) }
            }
            Strategy::Cos => {
                let mut order: Vec<usize> = (0..models.len()).filter(|&k| needed[k] || length(k) > 0).collect();
                order.sort_by_key(|&model| (length(model) == 0, cost(model)));
                order.first().filter(|model| drafts(model))?;
                Policy::Cos { lengths: (0..models.len()).map(length).collect(), order }
            }
            _ => return None,
        };
        Some(Setup { needed, policy })
    }
}
