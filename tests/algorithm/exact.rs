//! Exactness, proven: every outcome of the decoder is enumerated with its probability, and the joint distribution of
//! several tokens is compared with the oracle's. No sampling error, so a bias of a hundredth of a percent shows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{PROMPT, SAMPLINGS, Sampling, Way, World, combinations, decoder, oracle, plan, ways, ways_of};
use cos::decode::chance::{Chance, CounterRng, Key, Purpose};
use cos::decode::combine::{Combination, Function};
use cos::decode::decoder::{Counters, Finish};
use cos::decode::policy::{Plan, Policy, Strategy, Targets};
use cos::engine::drive::Driver;
use cos::engine::participant::Participant;
use cos::error::Error;
use cos::learn::estimates::{Acceptance, Estimates};
use cos::model::scripted::Scripted;
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};
use cos::rows::Weights;

const ENOUGH: f64 = 1e-5;

/// A source of chance that takes every branch in turn, and multiplies up its probability.
#[derive(Default)]
struct Enumerator(RefCell<Branches>);

#[derive(Default)]
struct Branches {
    /// For each decision of this run: the outcomes possible, and which one is taken.
    path: Vec<(Vec<(usize, f64)>, usize)>,
    depth: usize,
    probability: f64,
    asked: BTreeMap<Key, usize>,
}

impl Enumerator {
    fn choose(&self, key: Key, outcomes: impl Iterator<Item = (usize, f64)>) -> usize {
        let mut this = self.0.borrow_mut();
        if let Some(&outcome) = this.asked.get(&key) {
            assert_eq!(key.purpose, Purpose::Route, "random numbers used twice: {key:?}");
            return outcome;
        }
        let outcomes: Vec<(usize, f64)> = outcomes.filter(|(_, p)| *p > 0.0).collect();
        let depth = this.depth;
        if depth == this.path.len() {
            this.path.push((outcomes, 0));
        }
        let (outcomes, taken) = &this.path[depth];
        let (outcome, p) = outcomes[*taken];
        this.probability *= p;
        this.depth += 1;
        this.asked.insert(key, outcome);
        outcome
    }

    /// Go to the next branch; false after the last one.
    fn advance(&self) -> bool {
        let mut this = self.0.borrow_mut();
        while let Some((outcomes, taken)) = this.path.last_mut() {
            *taken += 1;
            if *taken < outcomes.len() {
                return true;
            }
            this.path.pop();
        }
        false
    }

    fn start(&self) {
        let mut this = self.0.borrow_mut();
        this.depth = 0;
        this.probability = 1.0;
        this.asked.clear();
    }
}

impl Chance for &Enumerator {
    fn accept(&self, key: Key, probability: f64) -> bool {
        assert!((0.0..=1.0).contains(&probability), "{key:?} with probability {probability}");
        self.choose(key, [(1, probability), (0, 1.0 - probability)].into_iter()) == 1
    }

    fn pick<W: Weights + ?Sized>(&self, key: Key, weights: &W) -> Result<usize, Error> {
        let mut row = vec![f32::NAN; weights.count()];
        // In pieces, as they are asked for.
        row.chunks_mut(3).enumerate().for_each(|(index, piece)| weights.write(3 * index, piece).unwrap());
        let total: f64 = row.iter().map(|&w| f64::from(w)).sum();
        assert!((weights.total() / total - 1.0).abs() < 1e-6, "{key:?}: {} for {row:?}", weights.total());
        Ok(self.choose(key, row.iter().map(|&w| f64::from(w) / total).enumerate()))
    }
}

type Joint = BTreeMap<Vec<i32>, f64>;

/// Where a round ended, in generated tokens, and whether it failed.
type End = (usize, bool);

/// For some generated tokens and the rounds that had ended by then: how often each token came next.
type Continuations = BTreeMap<(Vec<i32>, Vec<End>), BTreeMap<i32, f64>>;

/// Which combination a caller sets after some rounds.
type Choice<'a> = dyn Fn(&[End]) -> &'a Combination + 'a;

/// What the enumeration found.
#[derive(Default)]
struct Found {
    joint: Joint,
    continuations: Continuations,
    branches: usize,
    counters: Counters,
    /// How often the plan was changed.
    changes: usize,
}

struct Case<'a> {
    models: Vec<Participant>,
    world: World,
    combination: &'a Combination,
    sampling: Sampling,
    stop_tokens: &'a [i32],
    tokens: usize,
    /// What the combination is to amount to, where it is a function that imitates another one.
    law: Option<&'a Combination>,
    /// What the caller sets whenever a round has ended, in place of the combination.
    choice: Option<&'a Choice<'a>>,
    /// Passes of a faulty model so far in this run.
    passes: Option<Arc<AtomicUsize>>,
    /// Among what the plan is chosen whenever a round has ended, by all that a planner could see.
    plans: Vec<Plan>,
}

impl<'a> Case<'a> {
    fn new(
        world: World,
        models: Vec<Participant>,
        combination: &'a Combination,
        sampling: Sampling,
        tokens: usize,
    ) -> Self {
        Case {
            models,
            world,
            combination,
            sampling,
            stop_tokens: &[],
            tokens,
            law: None,
            choice: None,
            passes: None,
            plans: Vec::new(),
        }
    }

    fn expected(&self) -> Joint {
        let mut joint = Joint::new();
        self.extend(&mut Vec::new(), 1.0, &mut joint);
        joint
    }

    fn extend(&self, tokens: &mut Vec<i32>, p: f64, joint: &mut Joint) {
        if tokens.len() == self.tokens || tokens.last().is_some_and(|last| self.stop_tokens.contains(last)) {
            joint.insert(tokens.clone(), p);
            return;
        }
        for (token, q) in self.next(tokens, &[], self.sampling).into_iter().enumerate() {
            if q > 0.0 {
                tokens.push(token as i32);
                self.extend(tokens, p * q, joint);
                tokens.pop();
            }
        }
    }

    /// The oracle's distribution of the token after some generated ones, by what the caller had set by then.
    fn next(&self, tokens: &[i32], ends: &[End], sampling: Sampling) -> Vec<f64> {
        let context: Vec<i32> = PROMPT.iter().chain(tokens).copied().collect();
        let vocab = self.models.iter().find_map(|each| Some(each.model()?.vocab_size())).unwrap();
        let rows: Vec<Vec<f32>> = (0..self.models.len()).map(|k| self.world.logits(k, &context, vocab)).collect();
        let combination = self.law.unwrap_or(self.combination);
        oracle(&rows, self.choice.map_or(combination, |choice| choice(ends)), sampling)
    }

    /// What the decoder does, over all branches.
    fn enumerated(&self, way: &Way) -> Found {
        let (chance, mut found) = (Enumerator::default(), Found::default());
        // Log-probabilities of a greedy session are those of temperature 1.
        let scored = if self.sampling.temperature == 0.0 { Sampling::PLAIN } else { self.sampling };
        let mut scores: BTreeMap<(Vec<i32>, Vec<End>), Vec<f64>> = BTreeMap::new();
        loop {
            chance.start();
            if let Some(passes) = &self.passes {
                passes.store(0, Ordering::Relaxed);
            }
            let mut decoder =
                decoder(&self.models, self.combination, self.sampling, way, self.stop_tokens, self.tokens, &chance);
            decoder.prompt(&PROMPT).unwrap();
            if !self.plans.is_empty() {
                decoder.observe(Estimates::new(&vec![Vec::new(); self.models.len()]));
            }
            let (mut out, mut ends): (Vec<i32>, Vec<End>) = (Vec::new(), Vec::new());
            loop {
                if let Some(choice) = self.choice {
                    let combination = choice(&ends);
                    let plan = plan(&self.models, combination, self.sampling, way);
                    decoder.set_combination(combination.clone(), plan).unwrap();
                }
                match decoder.round() {
                    Ok((tokens, finish)) => {
                        assert!(!tokens.is_empty(), "a round without a token");
                        let (tokens, start) = (tokens.to_vec(), out.len());
                        out.extend_from_slice(&tokens);
                        let wanted = if way.targets == Targets::Combined { tokens.len() } else { 0 };
                        assert_eq!(decoder.log_probabilities().len(), wanted);
                        for (position, &found) in (start..).zip(decoder.log_probabilities()) {
                            let next = || self.next(&out[..position], &ends, scored);
                            let scores = scores.entry((out[..position].to_vec(), ends.clone())).or_insert_with(next);
                            let expected = scores[out[position] as usize].ln();
                            assert!(
                                (f64::from(found) - expected).abs() < ENOUGH,
                                "{out:?} at {position}: log-probability {found}, not {expected}: {way:?}, {:?}, {:?}",
                                self.combination,
                                self.sampling
                            );
                        }
                        ends.push((out.len(), false));
                        if finish.is_some() {
                            break;
                        }
                        found.changes += usize::from(change_plan(&mut decoder, &self.plans));
                    }
                    // Tests of failing passes plant these; the sequence must go on as if nothing had been.
                    Err(_) => {
                        assert!(decoder.log_probabilities().is_empty());
                        ends.push((out.len(), true));
                    }
                }
            }
            assert_eq!(decoder.committed()[PROMPT.len()..], out);
            let p = chance.0.borrow().probability;
            for (position, &token) in out.iter().enumerate() {
                let ends = ends.iter().copied().take_while(|(end, _)| *end <= position).collect();
                let continuations = found.continuations.entry((out[..position].to_vec(), ends)).or_default();
                *continuations.entry(token).or_default() += p;
            }
            *found.joint.entry(out).or_default() += p;
            found.branches += 1;
            found.counters.proposed += decoder.counters().proposed;
            found.counters.accepted += decoder.counters().accepted;
            if !chance.advance() {
                return found;
            }
        }
    }

    fn check(&self, way: &Way) -> Found {
        let found = self.enumerated(way);
        let what = || {
            let (world, combination, sampling, stop) = (self.world, self.combination, self.sampling, self.stop_tokens);
            format!("{way:?}, {world:?}, {combination:?}, {sampling:?}, stop {stop:?}")
        };
        // What is set after a round depends on where it ended, so that there is no one distribution of the whole.
        let expected = if self.choice.is_none() { self.expected() } else { found.joint.clone() };
        for tokens in found.joint.keys().chain(expected.keys()) {
            let (f, e) = (found.joint.get(tokens).unwrap_or(&0.0), expected.get(tokens).unwrap_or(&0.0));
            assert!((f - e).abs() < ENOUGH, "{tokens:?} has probability {f}, not {e}: {}", what());
        }
        // The same for all that a caller can see: where rounds end tells nothing of the next token.
        for ((tokens, ends), continuations) in &found.continuations {
            // A failure tells of the next token by what failed, unless something new is set and its route is drawn anew.
            let failed = ends.iter().any(|(_, failed)| *failed);
            if self.passes.is_some() && (self.choice.is_none() || !failed) {
                continue;
            }
            let total: f64 = continuations.values().sum();
            for (token, p) in self.next(tokens, ends, self.sampling).into_iter().enumerate() {
                let (f, e) = (continuations.get(&(token as i32)).unwrap_or(&0.0), p * total);
                assert!(
                    (f - e).abs() < ENOUGH,
                    "after {tokens:?} in rounds to {ends:?}, {token} has probability {f}, not {e}: {}",
                    what()
                );
            }
        }
        found
    }
}

/// What the most cunning planner could do: change the plan, or let what is pending be decided first, or have a model catch
/// up, by whatever it has seen.
fn change_plan(decoder: &mut Driver<&Enumerator>, plans: &[Plan]) -> bool {
    if plans.is_empty() {
        return false;
    }
    let mut hasher = std::hash::DefaultHasher::new();
    let counters = decoder.counters();
    (decoder.committed(), counters.proposed, counters.tested, counters.forwards, counters.positions).hash(&mut hasher);
    let acceptance = |acceptance: &Acceptance| acceptance.mean().to_bits();
    let estimates = decoder.observer().unwrap().estimates();
    estimates.acceptance.iter().map(acceptance).collect::<Vec<_>>().hash(&mut hasher);
    let seen = hasher.finish() as usize;
    if seen & 1024 != 0 {
        _ = decoder.probe(seen / 2048 % decoder.settings().combination.weights().len());
    }
    if decoder.has_pending() {
        if seen & 512 != 0 {
            decoder.drain();
        }
        return false;
    }
    let plan = &plans[seen % plans.len()];
    let changes = plan != decoder.plan();
    decoder.set_plan(plan.clone());
    changes
}

fn check_all(models: usize, vocab: usize, tokens: usize) {
    let mut branches = 0;
    let mut cases = 0;
    for world in World::ALL {
        for combination in &combinations(models) {
            for sampling in SAMPLINGS {
                for stop_tokens in [&[][..], &[1]] {
                    // Zeros of several models at once may leave sums of logits no token at all.
                    if world == World::Zeros && !matches!(combination, Combination::Mixture { .. }) {
                        continue;
                    }
                    let case = Case::new(world, world.models(models, vocab), combination, sampling, tokens);
                    let case = Case { stop_tokens, ..case };
                    for way in ways(models, combination, sampling) {
                        branches += case.check(&way).branches;
                        cases += 1;
                    }
                }
            }
        }
    }
    println!("{models} models: {cases} cases, {branches} branches");
}

#[test]
fn one_model() {
    check_all(1, 3, 4);
}

#[test]
fn two_models() {
    check_all(2, 3, 3);
}

#[test]
fn three_models() {
    check_all(3, 3, 2);
}

#[test]
fn four_models() {
    check_all(4, 2, 3);
}

#[test]
fn longer_sequences() {
    // Joint of five tokens: roles change several times, rejections fall at every depth.
    for combination in [Combination::mixture(&[0.4, 0.6]).unwrap(), Combination::contrastive(2, 0.4, 0.0).unwrap()] {
        for world in [World::Related, World::Unrelated] {
            let case = Case::new(world, world.models(2, 2), &combination, Sampling::PLAIN, 5);
            for way in ways(2, &combination, Sampling::PLAIN) {
                case.check(&way);
            }
        }
    }
}

/// A look-up drafts, alone and beside models that propose, and at any place in the list.
#[test]
fn look_ups_draft_exactly() {
    let mixture = |weights: &[f32]| Combination::mixture(weights).unwrap();
    let logits = |weights: &[f32]| Combination::logits(weights).unwrap();
    /// Where the look-up stands, what is combined, who proposes how many.
    type Drafting<'a> = (usize, Vec<Combination>, &'a [&'a [i32]]);
    let cases: [Drafting; 4] = [
        (1, vec![mixture(&[1.0, 0.0]), logits(&[0.5, 0.0]), Combination::target(2, 0).unwrap()], &[&[1, 1], &[0, 3]]),
        (
            2,
            vec![mixture(&[0.6, 0.4, 0.0]), logits(&[1.5, -0.5, 0.0]), Combination::contrastive(3, 0.3, 0.2).unwrap()],
            &[&[0, 0, 2], &[1, 1, 3], &[2, 1, 1]],
        ),
        (0, vec![mixture(&[0.0, 0.5, 0.5]), Combination::target(3, 2).unwrap()], &[&[2, 1, 1], &[3, 0, 2]]),
        // beside a model of weight 0
        (1, vec![mixture(&[0.5, 0.0, 0.5, 0.0])], &[&[1, 2, 1, 2]]),
    ];
    let mut total = Counters::default();
    for (place, combinations, lengths) in &cases {
        for (combination, world) in combinations.iter().flat_map(|c| World::ALL.map(|world| (c, world))) {
            if world == World::Zeros && !matches!(combination, Combination::Mixture { .. }) {
                continue;
            }
            for sampling in SAMPLINGS {
                let mut models = world.models(combination.weights().len(), 2);
                models[*place] = Participant::LookUp("ngram".into());
                let case = Case::new(world, models, combination, sampling, 4);
                for way in ways_of(lengths, combination, sampling) {
                    let found = case.check(&way);
                    if way.strategy != Strategy::Standard {
                        total.proposed += found.counters.proposed;
                        total.accepted += found.counters.accepted;
                        assert!(way.strategy == Strategy::Cos || found.counters.proposed > 0, "nothing was drafted");
                    }
                }
            }
        }
    }
    assert!(total.accepted > total.proposed / 10, "look-ups guess right now and then");
}

/// Text that repeats itself is drafted, and costs one pass for each draft and the token behind it.
#[test]
fn repetitions_are_drafted() {
    let script = |context: &[i32], row: &mut [f32]| {
        row[(*context.last().unwrap() as usize + 1) % 8] = 9.0;
        Ok(())
    };
    let prompt: Vec<i32> = (0..16).map(|token| token % 8).collect();
    for sampling in [Sampling::GREEDY, Sampling { top_k: 1, ..Sampling::PLAIN }] {
        for (models, combination) in [(1, Combination::target(2, 0)), (2, Combination::mixture(&[0.5, 0.5, 0.0]))] {
            for strategy in [Strategy::Speculative, Strategy::Cos] {
                let mut engine: Vec<Participant> = Vec::new();
                engine.resize_with(models, || Arc::new(Scripted::new(8, script)).into());
                engine.push(Participant::LookUp("ngram".into()));
                let lengths = [vec![0; models], vec![4]].concat();
                let way = Way::new(strategy, Targets::Combined, &lengths);
                let combination = combination.as_ref().unwrap();
                let mut decoder = decoder(&engine, combination, sampling, &way, &[], 40, CounterRng::new(1));
                decoder.prompt(&prompt).unwrap();
                while decoder.round().unwrap().1.is_none() {}
                let counters = decoder.counters();
                assert_eq!((counters.tokens, counters.proposed, counters.accepted), (40, 32, 32), "{way:?}");
                assert_eq!(counters.forwards, 8 * models as u64, "passes of a look-up do not count");
                assert_eq!(counters.positions, 40 * models as u64);
            }
        }
    }
}

/// A look-up that finds nothing is no loss: the others go on as if it were not there.
#[test]
fn a_look_up_without_a_find_costs_nothing() {
    let run = |weights: &[f32], strategy, lengths: &[i32]| {
        // Tokens that only ever rise, so that nothing repeats itself.
        let script = |context: &[i32], row: &mut [f32]| {
            row[context.len()] = 9.0;
            Ok(())
        };
        let mut models: Vec<Participant> = Vec::new();
        models.resize_with(2, || Arc::new(Scripted::new(64, script)).into());
        if weights.len() > 2 {
            models.push(Participant::LookUp("ngram".into()));
        }
        let way = Way::new(strategy, Targets::Combined, lengths);
        let combination = Combination::mixture(weights).unwrap();
        let mut decoder = decoder(&models, &combination, Sampling::GREEDY, &way, &[], 20, CounterRng::new(1));
        decoder.prompt(&[0, 1]).unwrap();
        while decoder.round().unwrap().1.is_none() {}
        decoder.counters()
    };
    let without = run(&[0.5, 0.5], Strategy::Cos, &[1, 1]);
    assert!(without.accepted > 15, "the others propose");
    assert_eq!(run(&[0.5, 0.5, 0.0], Strategy::Cos, &[1, 1, 4]), without);
    let standard = run(&[0.5, 0.5], Strategy::Standard, &[0, 0]);
    assert_eq!(run(&[0.5, 0.5, 0.0], Strategy::Speculative, &[0, 0, 4]), standard);
}

/// A model of weight 0 runs to propose, and for nothing else.
#[test]
fn drafters_never_verify() {
    for combination in
        [Combination::mixture(&[0.5, 0.5, 0.0]).unwrap(), Combination::logits(&[1.5, -0.5, 0.0]).unwrap()]
    {
        for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
            for lengths in [[0, 0, 1], [0, 0, 3], [1, 1, 2], [2, 1, 0]] {
                for way in ways_of(&[&lengths], &combination, sampling) {
                    let passes = Arc::new(AtomicUsize::new(0));
                    let mut models = World::Related.models(2, 3);
                    let drafter = Counted { model: World::Related.model(2, 3), passes: passes.clone() };
                    models.push(Arc::new(drafter).into());
                    let mut decoder = decoder(&models, &combination, sampling, &way, &[], 50, CounterRng::new(5));
                    decoder.prompt(&PROMPT).unwrap();
                    while decoder.round().unwrap().1.is_none() {}
                    let (passes, proposed) = (passes.load(Ordering::Relaxed) as u64, decoder.counters().proposed);
                    assert!(way.strategy == Strategy::Standard || lengths[2] == 0 || passes > 10);
                    match way.strategy {
                        Strategy::Speculative if lengths[2] > 0 => assert_eq!(passes, proposed, "{way:?}"),
                        Strategy::Cos if lengths[2] > 0 && lengths[0] == 0 => assert_eq!(passes, proposed, "{way:?}"),
                        Strategy::Cos if lengths[2] > 0 => assert!(passes < proposed, "{way:?}"),
                        _ => assert_eq!(passes, 0, "{way:?}"),
                    }
                }
            }
        }
    }
}

/// Nor does it run where its proposals have no room: the first model fills it, and the last one verifies.
#[test]
fn drafters_rest_without_room() {
    let passes = Arc::new(AtomicUsize::new(0));
    let mut models = World::Identical.models(3, 3);
    models[1] = Arc::new(Counted { model: World::Identical.model(1, 3), passes: passes.clone() }).into();
    let combination = Combination::mixture(&[0.5, 0.0, 0.5]).unwrap();
    let way = Way::new(Strategy::Cos, Targets::Combined, &[4, 1, 0]);
    let mut decoder = decoder(&models, &combination, Sampling::GREEDY, &way, &[], 4, CounterRng::new(1));
    decoder.prompt(&PROMPT).unwrap();
    while decoder.round().unwrap().1.is_none() {}
    assert_eq!((decoder.counters().accepted, passes.load(Ordering::Relaxed)), (4, 0));
}

/// Counts the passes of a model.
struct Counted {
    model: Scripted,
    passes: Arc<AtomicUsize>,
}

impl Model for Counted {
    fn name(&self) -> &str {
        self.model.name()
    }
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }
    fn context_length(&self) -> usize {
        self.model.context_length()
    }
    fn max_pass(&self) -> usize {
        self.model.max_pass()
    }
    fn cost(&self) -> u64 {
        self.model.cost()
    }
    fn start(&self, cancel: &Arc<Cancel>) -> cos::error::Result<Box<dyn Sequence>> {
        self.model.start(cancel)
    }
    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.model.forward(batch)
    }
}

/// Functions that imitate the library's combinations, and what they imitate.
fn functions() -> Vec<(Combination, Combination)> {
    let softmax = |logits: &[f32]| -> Vec<f64> {
        let exps: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        exps.iter().map(|exp| exp / exps.iter().sum::<f64>()).collect()
    };
    let mixture = Function::new(move |rows, out| {
        let rows: Vec<Vec<f64>> = rows.flatten().map(softmax).collect();
        for (token, out) in out.iter_mut().enumerate() {
            *out = rows.iter().map(|row| row[token] / rows.len() as f64).sum::<f64>().ln() as f32;
        }
        Ok(())
    });
    let contrastive = Function::new(move |rows, out| {
        let rows: Vec<&[f32]> = rows.map(|row| row.expect("both are needed")).collect();
        let expert = softmax(rows[0]);
        let best = expert.iter().copied().fold(0.0, f64::max);
        for (token, out) in out.iter_mut().enumerate() {
            let score = rows[0][token] - 0.3 * rows[1][token];
            *out = if expert[token] < 0.2 * best { f32::NEG_INFINITY } else { score };
        }
        Ok(())
    });
    let half = Combination::mixture(&[0.5, 0.5]).unwrap();
    let both = Combination::contrastive(2, 0.3, 0.2).unwrap();
    // The function gets no weights; those only say which models it sees.
    let sparse = Combination::mixture(&[0.5, 0.0, 0.5]).unwrap();
    vec![
        (Combination::mixture(&[0.9, 0.1]).unwrap().with_function(mixture.clone()), half),
        (sparse.clone().with_function(mixture), sparse),
        (Combination::logits(&[1.0, 1.0]).unwrap().with_function(contrastive), both),
    ]
}

#[test]
fn functions_are_decoded_exactly() {
    for (function, law) in &functions() {
        for world in World::ALL {
            if world == World::Zeros && !matches!(law, Combination::Mixture { .. }) {
                continue;
            }
            for sampling in SAMPLINGS {
                // A mixture is of processed rows, a function of raw ones: they agree where nothing is filtered.
                let agrees = !matches!(law, Combination::Mixture { .. })
                    || [Sampling::PLAIN, Sampling::GREEDY].contains(&sampling);
                let models = function.weights().len();
                let case = Case::new(world, world.models(models, 2), function, sampling, 3);
                let case = Case { law: agrees.then_some(law), ..case };
                for way in ways(models, function, sampling) {
                    case.check(&way);
                }
            }
        }
    }
}

/// A function that fails once, at each of its calls in turn: that round commits nothing, and what comes is as exact.
#[test]
fn functions_that_fail_leave_no_trace() {
    for at in 0..6 {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = calls.clone();
        let law = Combination::logits(&[1.0, 0.5]).unwrap();
        let function = law.clone().with_function(Function::new(move |rows, out| {
            if count.fetch_add(1, Ordering::Relaxed) == at {
                return Err(Error::Callback("planted".into()));
            }
            let rows: Vec<&[f32]> = rows.flatten().collect();
            out.iter_mut().enumerate().for_each(|(token, out)| *out = rows[0][token] + 0.5 * rows[1][token]);
            Ok(())
        }));
        for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
            let case = Case::new(World::Related, World::Related.models(2, 2), &function, sampling, 3);
            let case = Case { law: Some(&law), passes: Some(calls.clone()), ..case };
            for way in ways(2, &function, sampling) {
                case.check(&way);
            }
        }
    }
}

/// Weights that change between rounds: every token has the distribution that its tokens and the weights set before it
/// give, whatever the caller knew when it set them.
#[test]
fn weights_change_exactly() {
    let mixture = |weights: &[f32]| Combination::mixture(weights).unwrap();
    let logits = |weights: &[f32]| Combination::logits(weights).unwrap();
    // Weights that become 0 or no longer are change the plan; the others do not.
    let cases: [Vec<Combination>; 6] = [
        vec![mixture(&[0.5, 0.5]), mixture(&[0.1, 0.9])],
        vec![mixture(&[0.5, 0.5]), mixture(&[1.0, 0.0]), mixture(&[0.0, 1.0])],
        vec![logits(&[1.0, -0.5]), logits(&[0.5, 1.5])],
        vec![logits(&[1.0, 0.0]), logits(&[2.0, 0.0]), logits(&[0.5, 0.5])],
        vec![mixture(&[0.2, 0.5, 0.3]), mixture(&[0.6, 0.1, 0.3])],
        vec![mixture(&[0.2, 0.5, 0.3]), mixture(&[0.5, 0.0, 0.5]), mixture(&[0.0, 0.0, 1.0])],
    ];
    for combinations in &cases {
        let (first, models) = (&combinations[0], combinations[0].weights().len());
        for world in [World::Related, World::Unrelated, World::Sharp] {
            for sampling in [Sampling::PLAIN, Sampling::GREEDY, Sampling { top_p: 0.75, ..Sampling::PLAIN }] {
                let mut ways = ways(models, first, sampling);
                for targets in [Targets::Combined, Targets::Routed] {
                    if ways.iter().any(|way| way.targets == targets) {
                        ways.push(Way::new(Strategy::Auto, targets, &vec![1; models]));
                    }
                }
                let case = || Case::new(world, world.models(models, 2), first, sampling, 4);
                for way in &ways {
                    for after in 0..3 {
                        // once, when so many tokens are there, to the last one
                        let choice = |ends: &[End]| match ends.last() {
                            _ if after == 0 => combinations.last().unwrap(),
                            Some((tokens, _)) if *tokens >= after => combinations.last().unwrap(),
                            _ => first,
                        };
                        Case { choice: Some(&choice), ..case() }.check(way);
                    }
                    // after every round, to the next one
                    let choice = |ends: &[End]| &combinations[ends.len() % combinations.len()];
                    Case { choice: Some(&choice), ..case() }.check(way);
                }
            }
        }
    }
}

/// The plan changes between rounds, by anything that could be seen: every token has the distribution that the tokens before
/// it give, whatever was looked at.
#[test]
fn plans_change_exactly() {
    let mixture = |weights: &[f32]| Combination::mixture(weights).unwrap();
    let logits = |weights: &[f32]| Combination::logits(weights).unwrap();
    let cases = [
        mixture(&[0.5, 0.5]),
        mixture(&[0.0, 1.0]),
        mixture(&[0.2, 0.5, 0.3]),
        mixture(&[0.3, 0.7, 0.0]),
        logits(&[1.0, -0.5]),
        logits(&[1.0, 0.0, 0.5]),
        Combination::target(2, 0).unwrap(),
    ];
    let mut changes = 0;
    for combination in &cases {
        let models = combination.weights().len();
        for world in [World::Related, World::Unrelated] {
            for sampling in [Sampling::PLAIN, Sampling::GREEDY, Sampling { top_p: 0.75, ..Sampling::PLAIN }] {
                let ways = ways(models, combination, sampling);
                let plans = |models: &[Participant]| -> Vec<Plan> {
                    ways.iter().map(|way| plan(models, combination, sampling, way)).collect()
                };
                let models = world.models(models, 2);
                let plans = plans(&models);
                for way in ways.iter().filter(|way| way.targets == ways.last().unwrap().targets) {
                    let case = Case::new(world, models.clone(), combination, sampling, 5);
                    changes += Case { plans: plans.clone(), ..case }.check(way).changes;
                }
            }
        }
    }
    assert!(changes > 1000, "{changes} changes");
}

/// Turns end early by how likely their proposals are thought to be accepted, which is learned on the way: what is drafted
/// depends on all that was decided and on what is pending.
#[test]
fn turns_end_early_exactly() {
    let cases = [
        Combination::mixture(&[0.5, 0.5]).unwrap(),
        Combination::mixture(&[0.0, 1.0]).unwrap(),
        Combination::mixture(&[0.2, 0.5, 0.3]).unwrap(),
        Combination::logits(&[1.0, -0.5]).unwrap(),
    ];
    let mut proposed = [0; 3];
    for combination in &cases {
        let count = combination.weights().len();
        let lengths = [vec![3; count], [&[3], &vec![1; count - 1][..]].concat()];
        for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
            for world in [World::Related, World::Unrelated] {
                let models = world.models(count, 2);
                let lengths: Vec<&[i32]> = lengths.iter().map(Vec::as_slice).collect();
                for way in ways_of(&lengths, combination, sampling) {
                    for (proposed, stop_below) in proposed.iter_mut().zip([0, 40, 100]) {
                        let plan = Plan { stop_below, ..plan(&models, combination, sampling, &way) };
                        let case = Case::new(world, models.clone(), combination, sampling, 5);
                        *proposed += Case { plans: vec![plan], ..case }.check(&way).counters.proposed;
                    }
                }
            }
        }
    }
    let [all, some, few] = proposed;
    assert!(all > some && some > few, "proposed {proposed:?}");
}

/// The same beside look-ups, of which it depends on pending tokens what is drafted, and after rounds that failed.
#[test]
fn plans_change_exactly_beside_look_ups_and_after_failures() {
    let mut combination = Combination::mixture(&[0.3, 0.7, 0.0]).unwrap();
    let lengths: [&[i32]; 3] = [&[0, 0, 2], &[1, 1, 2], &[2, 1, 1]];
    let all = |models: &[Participant], combination: &Combination, ways: &[Way]| -> Vec<Plan> {
        ways.iter().map(|way| plan(models, combination, Sampling::PLAIN, way)).collect()
    };
    for world in [World::Related, World::Unrelated] {
        let ways = ways_of(&lengths, &combination, Sampling::PLAIN);
        let mut models = world.models(2, 2);
        models.push(Participant::LookUp("ngram".into()));
        let case = Case::new(world, models.clone(), &combination, Sampling::PLAIN, 5);
        Case { plans: all(&models, &combination, &ways), ..case }.check(ways.last().unwrap());
    }
    combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    let ways = ways(2, &combination, Sampling::PLAIN);
    for failing in 0..2 {
        for at in 3..9 {
            let (models, passes) = faulty(failing, at, Interrupt::Failed(Error::Runtime("planted".into())));
            let plans = all(&models, &combination, &ways);
            for way in ways.iter().filter(|way| way.targets == Targets::Routed) {
                let case = Case::new(World::Related, models.clone(), &combination, Sampling::PLAIN, 3);
                Case { passes: Some(passes.clone()), plans: plans.clone(), ..case }.check(way);
            }
        }
    }
}

/// The same with look-ups, of which it depends on pending tokens how many there are.
#[test]
fn weights_change_exactly_beside_look_ups() {
    let combinations = [[0.3, 0.7, 0.0], [0.9, 0.1, 0.0]].map(|weights| Combination::mixture(&weights).unwrap());
    for world in [World::Related, World::Unrelated] {
        for lengths in [[0, 0, 2], [1, 1, 2], [2, 1, 1]] {
            for way in ways_of(&[&lengths], &combinations[0], Sampling::PLAIN) {
                let mut models = world.models(2, 2);
                models.push(Participant::LookUp("ngram".into()));
                let choice = |ends: &[End]| &combinations[ends.len() % 2];
                let case = Case::new(world, models, &combinations[0], Sampling::PLAIN, 5);
                Case { choice: Some(&choice), ..case }.check(&way);
            }
        }
    }
}

/// The same after a round that failed, which tells by the model that failed where the next token was routed.
#[test]
fn weights_change_exactly_after_failures() {
    let combinations = [[0.5, 0.5], [0.2, 0.8]].map(|weights| Combination::mixture(&weights).unwrap());
    for failing in 0..2 {
        for at in 3..9 {
            let (models, passes) = faulty(failing, at, Interrupt::Failed(Error::Runtime("planted".into())));
            let choice = |ends: &[End]| &combinations[usize::from(ends.iter().any(|(_, failed)| *failed))];
            let case = Case::new(World::Related, models, &combinations[0], Sampling::PLAIN, 3);
            let case = Case { passes: Some(passes), choice: Some(&choice), ..case };
            for way in ways(2, &combinations[0], Sampling::PLAIN) {
                case.check(&way);
            }
        }
    }
}

/// Proposals outlive a change of weights that leaves the plan as it was.
#[test]
fn weights_that_change_keep_what_is_pending() {
    let mixture = |weights: &[f32]| Combination::mixture(weights).unwrap();
    let way = Way::new(Strategy::Cos, Targets::Combined, &[1, 1]);
    let run = |combinations: &[Combination]| {
        let models = World::Identical.models(2, 3);
        let mut decoder = decoder(&models, &combinations[0], Sampling::GREEDY, &way, &[], 20, CounterRng::new(1));
        decoder.prompt(&PROMPT).unwrap();
        for combination in combinations.iter().cycle() {
            let plan = plan(&models, combination, Sampling::GREEDY, &way);
            decoder.set_combination(combination.clone(), plan).unwrap();
            if decoder.round().unwrap().1.is_some() {
                break;
            }
        }
        (decoder.committed().to_vec(), decoder.counters())
    };
    let (tokens, steady) = run(&[mixture(&[0.5, 0.5])]);
    assert!(steady.accepted > 15 && steady.forwards < 25);
    assert_eq!(run(&[mixture(&[0.5, 0.5]), mixture(&[0.2, 0.8])]), (tokens.clone(), steady));
    let (others, dropped) = run(&[mixture(&[0.5, 0.5]), mixture(&[1.0, 0.0])]);
    assert_eq!(others, tokens);
    assert!(dropped.accepted < steady.accepted, "another plan drops them");
}

/// Drafters whose context ends before, in or behind the text: they draft as long as they can, and neither end nor change it.
#[test]
fn drafters_of_a_shorter_context_limit_nothing() {
    let target = Combination::target(2, 0).unwrap();
    let mixture = Combination::mixture(&[0.5, 0.5, 0.0]).unwrap();
    for (combination, tokens) in [(&target, 5), (&mixture, 4)] {
        let count = combination.weights().len();
        let models = |context: usize| -> Vec<Participant> {
            let drafter = World::Related.model(count - 1, 2).with_context_length(context);
            let others = World::Related.models(count - 1, 2).into_iter();
            others.chain([Arc::new(drafter).into()]).collect()
        };
        for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
            for way in ways(count, combination, sampling) {
                let mut proposed = Vec::new();
                for context in PROMPT.len() - 1..=PROMPT.len() + tokens {
                    let case = Case::new(World::Related, models(context), combination, sampling, tokens);
                    proposed.push(case.check(&way).counters.proposed);
                }
                let policy = plan(&models(1), combination, sampling, &way).policy;
                if matches!(policy, Policy::Speculative { proposer, .. } if proposer == count - 1) {
                    assert!(proposed[0] == 0 && proposed.is_sorted(), "{way:?}: {proposed:?}");
                    assert_ne!(proposed.last(), Some(&0), "{way:?}");
                }
            }
        }
    }
}

/// The same where a planner changes plans, and probes.
#[test]
fn plans_change_around_the_end_of_a_drafters_context() {
    let mixture = Combination::mixture(&[0.5, 0.5, 0.0]).unwrap();
    for targets in [Targets::Combined, Targets::Routed] {
        let ways: Vec<Way> =
            ways(3, &mixture, Sampling::PLAIN).into_iter().filter(|way| way.targets == targets).collect();
        for context in [PROMPT.len() - 1, PROMPT.len() + 1, PROMPT.len() + 2] {
            let drafter = Participant::from(Arc::new(World::Related.model(2, 2).with_context_length(context)));
            let models: Vec<_> = World::Related.models(2, 2).into_iter().chain([drafter]).collect();
            let plans = ways.iter().map(|way| plan(&models, &mixture, Sampling::PLAIN, way)).collect();
            let case = Case::new(World::Related, models, &mixture, Sampling::PLAIN, 4);
            let found = Case { plans, ..case }.check(&ways[0]);
            assert!(found.changes > 0, "no plan was changed");
        }
    }
}

/// Weights that need a model of another context.
#[test]
fn weights_that_do_not_fit_change_nothing() {
    let [small, both, large] =
        [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]].map(|weights| Combination::mixture(&weights).unwrap());
    let models: Vec<Participant> = [8, 12]
        .into_iter()
        .enumerate()
        .map(|(k, length)| Arc::new(World::Related.model(k, 3).with_context_length(length)).into())
        .collect();
    let way = Way::new(Strategy::Standard, Targets::Combined, &[0, 0]);
    let set = |decoder: &mut cos::decode::decoder::Decoder<CounterRng>, combination: &Combination| {
        decoder.set_combination(combination.clone(), plan(&models, combination, Sampling::PLAIN, &way))
    };
    let mut decoder = decoder(&models, &large, Sampling::PLAIN, &way, &[], 0, CounterRng::new(1));
    decoder.prompt(&PROMPT).unwrap();
    for _ in 0..3 {
        decoder.round().unwrap();
    }
    assert_eq!(decoder.context_length(), 12);
    set(&mut decoder, &both).unwrap();
    assert_eq!(decoder.context_length(), 8);
    assert_eq!(decoder.round().unwrap(), (&[][..], Some(Finish::ContextFull)), "8 tokens are all there is room for");
    set(&mut decoder, &large).unwrap();
    assert_eq!(decoder.round().unwrap().1, None, "there is room again");
    for refused in [&both, &small] {
        let error = set(&mut decoder, refused).unwrap_err();
        assert!(matches!(error, Error::ContextFull(_)) && error.to_string().contains("has 9 tokens"), "{error}");
        assert_eq!((decoder.context_length(), decoder.committed().len()), (12, 9));
    }
    while decoder.round().unwrap().1.is_none() {}
    assert_eq!(decoder.committed().len(), 12, "it went on as if nothing had been");
}

/// Two models, of which one fails at one of its rows, and the count of its rows.
fn faulty(failing: usize, at: usize, interrupt: Interrupt) -> (Vec<Participant>, Arc<AtomicUsize>) {
    let passes = Arc::new(AtomicUsize::new(0));
    let model = |k: usize| {
        let (passes, interrupt) = (passes.clone(), interrupt.clone());
        let model = Scripted::new(2, move |context, row| {
            // The rows of a pass come one by one, so this also fails in the middle of a pass.
            if k == failing && passes.fetch_add(1, Ordering::Relaxed) == at {
                return Err(interrupt.clone());
            }
            row.copy_from_slice(&World::Related.logits(k, context, 2));
            Ok(())
        });
        Arc::new(model).into()
    };
    ((0..2).map(model).collect(), passes)
}

/// A pass of one model fails, or is cancelled, once, at each point of a run in turn: what comes out is as exact as
/// without, and nothing is committed by the failed round.
#[test]
fn failures_and_cancellations_leave_no_trace() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for interrupt in [Interrupt::Cancelled, Interrupt::Failed(Error::Runtime("planted".into()))] {
        for failing in 0..2 {
            for at in 3..12 {
                let (models, passes) = faulty(failing, at, interrupt.clone());
                let case = Case::new(World::Related, models, &combination, Sampling::PLAIN, 3);
                let case = Case { passes: Some(passes), ..case };
                for way in ways(2, &combination, Sampling::PLAIN) {
                    case.check(&way);
                }
            }
        }
    }
}

/// The same with the real random numbers: their independence is what the enumeration takes for granted.
#[test]
fn random_numbers_follow_the_joint_distribution() {
    let draws = 30_000;
    let combination = Combination::mixture(&[0.4, 0.6]).unwrap();
    let world = World::Related;
    let case = Case::new(world, world.models(2, 3), &combination, Sampling::PLAIN, 3);
    let expected = case.expected();
    for way in ways(2, &combination, Sampling::PLAIN) {
        let mut counts: BTreeMap<Vec<i32>, u32> = BTreeMap::new();
        for seed in 0..draws {
            let mut decoder = decoder(&case.models, &combination, case.sampling, &way, &[], 3, CounterRng::new(seed));
            decoder.prompt(&PROMPT).unwrap();
            while decoder.round().unwrap().1.is_none() {}
            *counts.entry(decoder.committed()[PROMPT.len()..].to_vec()).or_default() += 1;
        }
        let chi2: f64 = expected
            .iter()
            .map(|(tokens, p)| {
                (f64::from(*counts.get(tokens).unwrap_or(&0)) - p * draws as f64).powi(2) / (p * draws as f64)
            })
            .sum();
        // 26 degrees of freedom; 72 is exceeded with probability 4e-6, here at most 22 times as often.
        assert_eq!(expected.len(), 27);
        assert!(chi2 < 72.0, "chi-square {chi2} of {way:?}");
    }
}

#[test]
fn a_seed_reproduces_its_run() {
    let combination = Combination::mixture(&[0.4, 0.6]).unwrap();
    let run = |way: &Way, seed: u64| {
        let models = World::Related.models(2, 5);
        let mut decoder = decoder(&models, &combination, Sampling::PLAIN, way, &[], 50, CounterRng::new(seed));
        decoder.prompt(&PROMPT).unwrap();
        while decoder.round().unwrap().1.is_none() {}
        decoder.committed().to_vec()
    };
    for way in ways(2, &combination, Sampling::PLAIN) {
        assert_eq!(run(&way, 1), run(&way, 1));
        assert_ne!(run(&way, 1), run(&way, 2));
    }
}

/// Turns of a chat: what follows a second prompt has the distribution that its whole context gives it, also where
/// proposals were pending when the prompt came.
#[test]
fn later_prompts_continue_the_sequence() {
    const TURN: [i32; 2] = [1, 0];
    // of three models, one may have seen what is pending when the prompt comes
    for (combination, vocab) in [(Combination::mixture(&[0.5, 0.5]), 3), (Combination::mixture(&[0.3, 0.4, 0.3]), 2)] {
        let combination = combination.unwrap();
        let count = combination.weights().len();
        for way in ways(count, &combination, Sampling::PLAIN) {
            let models = World::Unrelated.models(count, vocab);
            let chance = Enumerator::default();
            let mut joint: BTreeMap<(Vec<i32>, i32), f64> = BTreeMap::new();
            loop {
                chance.start();
                let mut decoder = decoder(&models, &combination, Sampling::PLAIN, &way, &[], 0, &chance);
                decoder.prompt(&PROMPT).unwrap();
                let first = decoder.round().unwrap().0.to_vec();
                decoder.prompt(&TURN).unwrap();
                let second = decoder.round().unwrap().0[0];
                *joint.entry((first, second)).or_default() += chance.0.borrow().probability;
                if !chance.advance() {
                    break;
                }
            }
            let mut first_total: BTreeMap<Vec<i32>, f64> = BTreeMap::new();
            for ((first, _), p) in &joint {
                *first_total.entry(first.clone()).or_default() += p;
            }
            for ((first, second), p) in &joint {
                let context: Vec<i32> = PROMPT.iter().chain(first).chain(&TURN).copied().collect();
                let rows: Vec<Vec<f32>> = (0..count).map(|k| World::Unrelated.logits(k, &context, vocab)).collect();
                let expected = oracle(&rows, &combination, Sampling::PLAIN)[*second as usize];
                assert!((p / first_total[first] - expected).abs() < ENOUGH, "{way:?} after {first:?}");
            }
        }
    }
}

#[test]
fn sequences_end_where_they_should() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for way in ways(2, &combination, Sampling::PLAIN) {
        let models: Vec<Participant> =
            (0..2).map(|k| Arc::new(World::Related.model(k, 3).with_context_length(12)).into()).collect();
        let new =
            |stop: &[i32], max| decoder(&models, &combination, Sampling::PLAIN, &way, stop, max, CounterRng::new(3));

        let mut full = new(&[], 0);
        full.prompt(&PROMPT).unwrap();
        let finish = loop {
            if let (_, Some(finish)) = full.round().unwrap() {
                break finish;
            }
        };
        assert_eq!((finish, full.committed().len()), (Finish::ContextFull, 12));
        assert_eq!(full.round().unwrap(), (&[][..], Some(Finish::ContextFull)), "an ended sequence stays ended");
        assert_eq!(full.prompt(&[1]).unwrap_err().code(), 5);

        let mut exact = new(&[], 0);
        exact.prompt(&[1; 12]).unwrap();
        assert_eq!(exact.round().unwrap(), (&[][..], Some(Finish::ContextFull)));
        assert_eq!(new(&[], 0).prompt(&[1; 13]).unwrap_err().code(), 5);

        let mut limited = new(&[], 2);
        limited.prompt(&PROMPT).unwrap();
        while limited.round().unwrap().1.is_none() {}
        assert_eq!(limited.committed().len(), PROMPT.len() + 2);
        limited.prompt(&[1]).unwrap();
        while limited.round().unwrap().1.is_none() {}
        assert_eq!(limited.committed().len(), PROMPT.len() + 5, "each prompt gets max_tokens anew");

        let mut stopped = new(&[0, 1, 2], 0);
        stopped.prompt(&PROMPT).unwrap();
        assert_eq!(stopped.round().unwrap().1, Some(Finish::StopToken));
        assert_eq!(stopped.committed().len(), PROMPT.len() + 1, "nothing behind a stop token is committed");

        let mut empty = new(&[], 0);
        assert!(matches!(empty.round(), Err(Interrupt::Failed(Error::InvalidArgument(_)))));
        assert_eq!(empty.prompt(&[]).unwrap_err().code(), 1);
        assert_eq!(empty.prompt(&[1, 3]).unwrap_err().code(), 1);
        assert_eq!(empty.prompt(&[-1]).unwrap_err().code(), 1);
        assert!(empty.committed().is_empty(), "nothing of a refused prompt is kept");
    }
}

#[test]
fn nan_logits_commit_nothing() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
        for way in ways(2, &combination, sampling) {
            let bad = |k: usize| {
                Scripted::new(3, move |context, row| {
                    row.copy_from_slice(&World::Related.logits(k, context, 3));
                    if k == 1 && context.len() >= PROMPT.len() + 2 {
                        row[1] = f32::NAN;
                    }
                    Ok(())
                })
            };
            let models: Vec<Participant> = (0..2).map(|k| Arc::new(bad(k)).into()).collect();
            let mut decoder = decoder(&models, &combination, sampling, &way, &[], 40, CounterRng::new(1));
            decoder.prompt(&PROMPT).unwrap();
            let mut committed = PROMPT.len();
            let error = loop {
                match decoder.round() {
                    Ok((tokens, _)) => committed += tokens.len(),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, Interrupt::Failed(Error::Numeric(_))), "{error:?}");
            assert_eq!(decoder.committed().len(), committed, "{way:?}");
            assert_eq!(decoder.counters().tokens as usize, committed - PROMPT.len());
        }
    }
}

/// Counts by hand what the strategies cost when all models agree: the shape of each algorithm.
#[test]
fn passes_are_those_of_the_algorithms() {
    let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
    let run = |combination: &Combination, way: Way, tokens: usize| {
        let models: Vec<Participant> = (0..2).map(|k| Arc::new(World::Identical.model(k, 3)).into()).collect();
        let mut decoder = decoder(&models, combination, Sampling::PLAIN, &way, &[], tokens, CounterRng::new(1));
        decoder.prompt(&PROMPT).unwrap();
        while decoder.round().unwrap().1.is_none() {}
        let c = decoder.counters();
        assert_eq!(c.tokens as usize, tokens);
        assert_eq!(c.accepted, c.tested, "identical models never reject");
        (c.forwards, c.proposed, c.tested)
    };
    let combined = |strategy, lengths: &[i32]| Way::new(strategy, Targets::Combined, lengths);
    // every token costs a pass of each model
    assert_eq!(run(&mixture, combined(Strategy::Standard, &[1, 1]), 12), (24, 0, 0));
    // one pass starts, then each pass scores one proposal and makes the next
    assert_eq!(run(&mixture, combined(Strategy::Cos, &[1, 1]), 12), (13, 12, 12));
    // three drafted, one pass verifies them, and the drafter's next pass completes the target of a bonus token
    assert_eq!(run(&mixture, combined(Strategy::Speculative, &[3, 0]), 12), (15, 9, 9));
    // the verifier alone decides, so its bonus token is free: three drafted and verified give four tokens
    let target = Combination::target(2, 0).unwrap();
    assert_eq!(run(&target, combined(Strategy::Speculative, &[0, 3]), 12), (12, 9, 9));
    // one pass of one model for each token
    assert_eq!(run(&mixture, Way::new(Strategy::Standard, Targets::Routed, &[1, 1]), 12), (12, 0, 0));
}
