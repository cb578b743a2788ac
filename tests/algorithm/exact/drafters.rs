//! Models of weight 0 and look-ups only draft: exactness, passes, and contexts that end early.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::decoder::Counters;
use cos::decode::policy::{Policy, Strategy, Targets};
use cos::engine::participant::Participant;
use cos::model::scripted::Scripted;
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};

use super::enumeration::Case;
use crate::common::{PROMPT, SAMPLINGS, Sampling, Way, World, decoder, plan, ways, ways_of};

/// Look-ups draft exactly: alone, beside models that propose, and at any place in the list of models.
#[test]
fn look_ups_draft_exactly() {
    let mixture = |weights: &[f32]| Combination::mixture(weights).unwrap();
    let logits = |weights: &[f32]| Combination::logits(weights).unwrap();
    /// The index of the look-up, the combinations, and the proposal lengths of each way.
    type Drafting<'a> = (usize, Vec<Combination>, &'a [&'a [i32]]);
    let cases: [Drafting; 4] = [
        (1, vec![mixture(&[1.0, 0.0]), logits(&[0.5, 0.0]), Combination::target(2, 0).unwrap()], &[&[1, 1], &[0, 3]]),
        (
            2,
            vec![mixture(&[0.6, 0.4, 0.0]), logits(&[1.5, -0.5, 0.0]), Combination::contrastive(3, 0.3, 0.2).unwrap()],
            &[&[0, 0, 2], &[1, 1, 3], &[2, 1, 1]],
        ),
        (0, vec![mixture(&[0.0, 0.5, 0.5]), Combination::target(3, 2).unwrap()], &[&[2, 1, 1], &[3, 0, 2]]),
        // With a model of weight 0.
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
    assert!(total.accepted > total.proposed / 10, "look-ups are right now and then");
}

/// Text that repeats itself is drafted. One pass verifies a draft and gives one more token.
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

/// A look-up that finds nothing costs nothing: the other models decode as if it did not exist.
#[test]
fn a_look_up_without_a_find_costs_nothing() {
    let run = |weights: &[f32], strategy, lengths: &[i32]| {
        // The tokens only rise, so nothing repeats itself.
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

/// A model of weight 0 runs only to propose.
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

/// A drafter does not run if there is no room for its proposals: here the first model fills the room, and the last one
/// verifies.
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

/// A drafter with a short context drafts as long as it can. It neither ends the text nor changes it.
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

/// The same while a planner changes plans and probes models.
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
