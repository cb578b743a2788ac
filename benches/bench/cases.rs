//! What is compared: which models go together, and with which strategies.

use std::sync::Arc;

use cos::config::Combine;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::participant::Participant;
use serde_json::json;

use super::hostile::{Hostile, NEVER};
use super::theory::{Policy, Setup};

/// Models of weights within this factor count as equally large.
const EQUAL: f64 = 1.25;
/// A model by this factor smaller may draft, or be subtracted.
const SMALL: f64 = 2.0;

/// Which models go together, by index.
#[derive(Debug, PartialEq)]
pub struct Picks {
    /// The two that are nearest in size.
    pub pair: Option<Vec<usize>>,
    /// The three that are nearest in size.
    pub triple: Option<Vec<usize>>,
    /// The largest and the smallest.
    pub contrast: Option<Vec<usize>>,
}

impl Picks {
    /// Of models of these sizes; of equally good ones, those that come first.
    pub fn new(sizes: &[u64]) -> Picks {
        let spread = |group: &[usize]| {
            let sizes = || group.iter().map(|&model| sizes[model] as f64);
            sizes().fold(0.0, f64::max) / sizes().fold(f64::INFINITY, f64::min)
        };
        // the first of those whose spread is least
        let nearest = |groups: Vec<Vec<usize>>| groups.into_iter().min_by(|a, b| spread(a).total_cmp(&spread(b)));
        let all = 0..sizes.len();
        let pairs: Vec<Vec<usize>> = all.clone().flat_map(|a| (a + 1..sizes.len()).map(move |b| vec![a, b])).collect();
        let last = |pair: &Vec<usize>| pair[1] + 1..sizes.len();
        let triples = pairs.iter().flat_map(|pair| last(pair).map(|c| vec![pair[0], pair[1], c])).collect();
        // of several that are largest the first, as max_by_key would take the last
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

/// How CoS decodes a row.
#[derive(Clone)]
pub struct Ours {
    pub engine: Arc<Engine>,
    pub strategy: Strategy,
    pub targets: Option<Targets>,
    pub lengths: Option<Vec<i32>>,
    pub weights: Option<Vec<f32>>,
}

/// What decodes a row.
pub enum Decoder {
    Ours(Ours),
    /// A worker by its index in [`super::peers::WORKERS`], and the request but for prompt and seed.
    Peer {
        worker: usize,
        request: serde_json::Value,
    },
}

impl Decoder {
    pub fn is_auto(&self) -> bool {
        matches!(self, Decoder::Ours(ours) if ours.strategy == Strategy::Auto)
    }

    /// What the theory is told of it, where it says something and this engine runs it.
    pub fn theory(&self, engine: &Arc<Engine>) -> Option<Setup> {
        match self {
            Decoder::Ours(ours) if Arc::ptr_eq(&ours.engine, engine) => ours.theory(),
            _ => None,
        }
    }
}

/// A row of a case, before it is measured.
pub struct Plan {
    pub name: String,
    pub series: String,
    pub at: f64,
    pub decoder: Decoder,
}

/// Top-k, top-p and min-p that keep all tokens.
const UNFILTERED: (i32, f32, f32) = (0, 1.0, 0.0);

/// What is measured side by side. The first row is `standard`.
pub struct Task {
    pub title: String,
    pub about: String,
    pub kind: String,
    pub engine: Arc<Engine>,
    pub temperature: f32,
    /// top-k, top-p and min-p.
    pub filters: (i32, f32, f32),
    /// The name of the prompts.
    pub prompts: &'static str,
    pub sweep: Option<String>,
    /// Whose likelihood judges the text.
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

/// An engine of some of another's models, with drafters of weight 0 behind them.
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
        // logits, because the contrastive combination takes exactly two models
        Combine::Contrastive { mu, plausibility: 0.0 } if !drafters.is_empty() => {
            Combine::Logits { weights: [1.0, -mu].into_iter().chain(drafters.iter().map(|_| 0.0)).collect() }
        }
        other => other.clone(),
    };
    Ok(Arc::new(Engine::new(models, combine, all.stop_tokens().to_vec(), all.text().ok().cloned())?))
}

/// The end of the names of rows whose models run at the same time where they can; those of others run one after the other.
pub const OVERLAPPING: &str = ", overlapping";

/// The same, with models on two GPUs in turn.
pub const TWO_GPUS: &str = ", two GPUs";

/// An engine of these models of two others, which take turns in giving one; they run at the same time where that pays.
fn overlapping(by_turns: [&Arc<Engine>; 2], group: &[usize], combine: &Combine) -> cos::error::Result<Arc<Engine>> {
    let [all, _] = by_turns;
    let models =
        group.iter().zip(by_turns.iter().cycle()).map(|(&model, of)| of.participants()[model].clone()).collect();
    let engine = Engine::new(models, combine.clone(), all.stop_tokens().to_vec(), all.text().ok().cloned())?;
    engine.with_overlap(None).map(Arc::new)
}

/// What the models of an engine are, and where peers find them: exports, and Hugging Face folders.
pub struct Peers {
    pub folders: Vec<(String, Option<String>)>,
    pub sizes: Vec<u64>,
    /// All settings of the genai loop, or the defaults only.
    pub settings: bool,
    /// They run on a GPU too.
    pub cuda: bool,
}

impl Peers {
    /// Rows of a group of models.
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
            // Each kind of worker holds all the models that it decodes with in the GPU's memory.
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

/// The whole comparison over the models of an engine.
pub fn all(all: &Arc<Engine>, peers: &Peers, quick: bool) -> cos::error::Result<Vec<Task>> {
    let picks = Picks::new(&sizes(all));
    let mut tasks = combinations(all, None, peers, &picks, if quick { 1 } else { 2 })?;
    if !quick {
        sweeps(all, &picks, &mut tasks)?;
    }
    hostile(all, &picks, &mut tasks)?;
    Ok(tasks)
}

/// What `make bench-cuda` compares, the most important first: there may not be time for all of it. `second` has the same models on
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

/// The kind of a case of one model.
pub const ALONE: &str = "one model";

fn sizes(all: &Arc<Engine>) -> Vec<u64> {
    all.participants().iter().map(|model| model.cost()).collect()
}

/// All strategies on all kinds of combinations, on so many sets of prompts.
fn combinations(
    all: &Arc<Engine>,
    second: Option<&Arc<Engine>>,
    peers: &Peers,
    picks: &Picks,
    sets: usize,
) -> cos::error::Result<Vec<Task>> {
    let sizes = sizes(all);
    let equal = |models: usize| Combine::Weighted { weights: vec![1.0 / models as f32; models] };
    let contrastive = |mu| Combine::Contrastive { mu, plausibility: 0.0 };
    let mut tasks = Vec::new();
    let groups = [
        ("weighted, two models", &picks.pair, equal(2), "Equal weights, λ = 1/2 each."),
        ("weighted, three models", &picks.triple, equal(3), "Equal weights, λ = 1/3 each."),
        ("contrastive", &picks.contrast, contrastive(0.1), "The largest minus μ = 0.1 times the smallest."),
        (
            "target with a drafter",
            &picks.contrast,
            Combine::Target { model: 0 },
            "The largest; the smallest only drafts.",
        ),
    ];
    for (kind, group, combine, about) in groups {
        let Some(group) = group else { continue };
        let plain = engine(all, group, &[], &combine)?;
        // A model that drafts must be much smaller than all that are needed.
        let small = (0..sizes.len())
            .min_by_key(|&model| sizes[model])
            .filter(|small| group.iter().all(|&model| sizes[model] as f64 >= SMALL * sizes[*small] as f64));
        for (temperature, sampled) in [(1.0, "sampled"), (0.0, "greedy")] {
            for (prompts, written) in PROMPTS.into_iter().take(sets) {
                let mut plans = strategies(&plain, temperature == 0.0);
                let mut draft = |name: &str, drafters: &[Participant], strategy, length: Option<i32>| {
                    let engine = engine(all, group, drafters, &combine)?;
                    let models = engine.participants().len();
                    let drafts = |length| (0..models).map(|model| i32::from(model == models - 1) * length).collect();
                    plans.push(ours(name, row(&engine, strategy, length.map(drafts))));
                    cos::error::Result::Ok(())
                };
                let look_up: Participant = Participant::LookUp("look-up".into());
                draft("look-up γ=5", std::slice::from_ref(&look_up), Strategy::Speculative, Some(5))?;
                if let Some(small) = small {
                    let small_model = all.participants()[small].clone();
                    let name = format!("{} drafts γ=4", small_model.name());
                    draft(&name, std::slice::from_ref(&small_model), Strategy::Speculative, Some(4))?;
                    draft("auto, with both drafters", &[look_up, small_model], Strategy::Auto, None)?;
                } else {
                    draft("auto, with look-up", &[look_up], Strategy::Auto, None)?;
                }
                if peers.cuda && plain.participants().len() > 1 {
                    let mut engines = vec![(OVERLAPPING, overlapping([all, all], group, &combine)?)];
                    if let Some(second) = second {
                        engines.push((TWO_GPUS, overlapping([all, second], group, &combine)?));
                    }
                    for (end, engine) in &engines {
                        for (name, strategy) in [("standard", Strategy::Standard), ("auto", Strategy::Auto)] {
                            plans.push(ours(&format!("{name}{end}"), row(engine, strategy, None)));
                        }
                    }
                }
                if prompts == "gsm8k" {
                    let length = |&model: &usize| match matches!(combine, Combine::Target { .. }) {
                        true if model == group[0] => 0, // it would only verify itself
                        _ if sizes[model] as f64 * SMALL <= sizes[group[0]] as f64 => 5,
                        _ => 1,
                    };
                    let lengths: Vec<i32> = group.iter().map(length).collect();
                    plans.extend(peers.plans(group, &combine, temperature, &lengths));
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

/// What long rows of logits cost, over two models that have them.
pub fn long_rows(wide: &Arc<Engine>) -> cos::error::Result<Vec<Task>> {
    let half = Combine::Weighted { weights: vec![0.5; 2] };
    let contrastive = Combine::Contrastive { mu: 0.1, plausibility: 0.0 };
    let mut tasks = Vec::new();
    for (kind, combine) in [("weighted", half), ("contrastive", contrastive)] {
        let engine = engine(wide, &[0, 1], &[], &combine)?;
        for (temperature, sampled) in [(1.0, "sampled"), (0.0, "greedy")] {
            tasks.push(Task {
                title: format!("{} tokens, {kind}: {sampled}", wide.vocab_size()),
                about: "Two models whose vocabulary was made longer by tokens that are never likely.".into(),
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

/// Where speculation fails, or begins to fail in the middle of the text: `auto` must not lose there what it gains elsewhere.
fn hostile(all: &Arc<Engine>, picks: &Picks, tasks: &mut Vec<Task>) -> cos::error::Result<()> {
    /// Behind prompts of 50 to 130 tokens, this lies within the text.
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

/// Like Figures 4 to 6 and Appendix C.1 of the paper.
fn sweeps(all: &Arc<Engine>, picks: &Picks, tasks: &mut Vec<Task>) -> cos::error::Result<()> {
    let half = Combine::Weighted { weights: vec![0.5; 2] };
    let contrastive = |mu| Combine::Contrastive { mu, plausibility: 0.0 };
    let task = |title: &str, about: &str, sweep: &str, engine: &Arc<Engine>, temperature| Task {
        title: title.into(),
        about: about.into(),
        kind: "sweep".into(),
        engine: engine.clone(),
        temperature,
        filters: UNFILTERED,
        prompts: "gsm8k",
        sweep: Some(sweep.into()),
        judge: None,
        plans: vec![ours("standard", row(engine, Strategy::Standard, None))],
    };
    let point = |series: &str, symbol: &str, at: f32, ours: Ours| Plan {
        name: format!("{series}, {symbol} = {at}"),
        series: series.into(),
        at: f64::from(at),
        decoder: Decoder::Ours(ours),
    };
    let routed = |ours| Ours { targets: Some(Targets::Routed), ..ours };
    let gammas = [1, 2, 3, 4, 5, 7];
    if let Some(pair) = &picks.pair {
        let engine = engine(all, pair, &[], &half)?;
        let mut sweep = task("γ sweep, weighted, sampled", "Both models propose γ tokens.", "γ", &engine, 1.0);
        for gamma in gammas {
            let at = gamma as f32;
            let by = |strategy| row(&engine, strategy, Some(vec![gamma; 2]));
            sweep.plans.push(point("speculative", "γ", at, by(Strategy::Speculative)));
            sweep.plans.push(point("cos", "γ", at, by(Strategy::Cos)));
            sweep.plans.push(point("routed, cos", "γ", at, routed(by(Strategy::Cos))));
        }
        tasks.push(sweep);
        let mut sweep = task("λ sweep, weighted, sampled", "λ is the first model's weight.", "λ", &engine, 1.0);
        for lambda in [0.1f32, 0.3, 0.5, 0.7, 0.9] {
            let weights = Some(vec![lambda, 1.0 - lambda]);
            let by = |strategy, lengths| Ours { weights: weights.clone(), ..row(&engine, strategy, lengths) };
            sweep.plans.push(point("speculative γ=1", "λ", lambda, by(Strategy::Speculative, Some(vec![1; 2]))));
            sweep.plans.push(point("cos γ=1", "λ", lambda, by(Strategy::Cos, Some(vec![1; 2]))));
            sweep.plans.push(point("auto", "λ", lambda, by(Strategy::Auto, None)));
        }
        tasks.push(sweep);
    }
    if let Some(pair) = &picks.contrast {
        for (temperature, sampled) in [(1.0, "sampled"), (0.0, "greedy")] {
            let engine = engine(all, pair, &[], &contrastive(0.1))?;
            let title = format!("γ sweep, contrastive, {sampled}");
            let about = "The smaller model proposes γ tokens, the larger one the token behind them.";
            let mut sweep = task(&title, about, "γ", &engine, temperature);
            for gamma in gammas {
                let by = |strategy| row(&engine, strategy, Some(vec![1, gamma]));
                sweep.plans.push(point("speculative", "γ", gamma as f32, by(Strategy::Speculative)));
                sweep.plans.push(point("cos", "γ", gamma as f32, by(Strategy::Cos)));
            }
            tasks.push(sweep);
        }
        let base = engine(all, pair, &[], &contrastive(0.1))?;
        let mut sweep =
            task("μ sweep, contrastive, sampled", "μ is how much of the smaller model is subtracted.", "μ", &base, 1.0);
        for mu in [0.05, 0.1, 0.2, 0.3, 0.5] {
            let engine = engine(all, pair, &[], &contrastive(mu))?;
            for gamma in [1, 3] {
                let ours = row(&engine, Strategy::Cos, Some(vec![1, gamma]));
                sweep.plans.push(point(&format!("cos γ=1,{gamma}"), "μ", mu, ours));
            }
            let ours = row(&engine, Strategy::Speculative, Some(vec![0, 3]));
            sweep.plans.push(point("speculative γ=3", "μ", mu, ours));
            sweep.plans.push(point("auto", "μ", mu, row(&engine, Strategy::Auto, None)));
        }
        tasks.push(sweep);
        // Quality against speed. The measure is the large model alone: λ = 0.
        let mixture = engine(all, pair, &[], &Combine::Weighted { weights: vec![1.0, 0.0] })?;
        let mut sweep = task(
            "Quality against speed",
            "The largest and the smallest model mixed, λ being the smallest one's weight. Quality is the mean \
             log-likelihood of a token under the largest model. The measure of speed is the largest one alone.",
            "λ",
            &mixture,
            1.0,
        );
        sweep.judge = Some(mixture.participants()[0].clone());
        for lambda in [0.0f32, 0.1, 0.25, 0.5, 0.75, 0.9] {
            let weights = Some(vec![1.0 - lambda, lambda]);
            let by = |strategy, lengths| Ours { weights: weights.clone(), ..row(&mixture, strategy, lengths) };
            sweep.plans.push(point("cos γ=1,3", "λ", lambda, by(Strategy::Cos, Some(vec![1, 3]))));
            sweep.plans.push(point("auto", "λ", lambda, by(Strategy::Auto, None)));
        }
        tasks.push(sweep);
    }
    Ok(())
}

impl Ours {
    /// Nothing for `standard`, `auto`, routed targets and look-ups.
    pub fn theory(&self) -> Option<Setup> {
        let models = self.engine.participants();
        let combination = self.engine.combination(self.weights.as_deref()).ok()?;
        let lengths: Vec<usize> = self.lengths.as_ref()?.iter().map(|&length| length as usize).collect();
        let needed: Vec<bool> = (0..models.len()).map(|model| combination.needs(model)).collect();
        // A single model that is needed would only verify itself.
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
