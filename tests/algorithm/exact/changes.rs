//! Weights and plans change between rounds, and every token stays exact.

use std::sync::Arc;

use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::decoder::Finish;
use cos::decode::policy::{Plan, Strategy, Targets};
use cos::engine::participant::Participant;
use cos::error::Error;
use cos::model::Interrupt;

use super::enumeration::{Case, End};
use super::failures::faulty;
use crate::common::{PROMPT, Sampling, Way, World, decoder, plan, ways, ways_of};

/// Weights change between rounds. Each token still has the distribution given by the tokens before it and the weights
/// set before it, whatever the caller knew when it set them.
#[test]
fn weights_change_exactly() {
    let mixture = |weights: &[f32]| Combination::mixture(weights).unwrap();
    let logits = |weights: &[f32]| Combination::logits(weights).unwrap();
    // Weights change the plan only if they become 0 or stop being 0.
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
                        // The last weights are set once, after `after` tokens.
                        let choice = |ends: &[End]| match ends.last() {
                            _ if after == 0 => combinations.last().unwrap(),
                            Some((tokens, _)) if *tokens >= after => combinations.last().unwrap(),
                            _ => first,
                        };
                        Case { choice: Some(&choice), ..case() }.check(way);
                    }
                    // The next weights are set after every round.
                    let choice = |ends: &[End]| &combinations[ends.len() % combinations.len()];
                    Case { choice: Some(&choice), ..case() }.check(way);
                }
            }
        }
    }
}

/// The same with look-ups. How many tokens they draft depends on the pending tokens.
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

/// The same after a failed round. Which model failed tells the caller where the next token was routed.
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

/// Pending proposals survive a change of weights if the plan stays the same.
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
    assert!(dropped.accepted < steady.accepted, "another plan drops the proposals");
}

/// Weights that need a model with a shorter context are refused if the text is too long for it.
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
    assert_eq!(decoder.round().unwrap(), (&[][..], Some(Finish::ContextFull)), "there is room for 8 tokens");
    set(&mut decoder, &large).unwrap();
    assert_eq!(decoder.round().unwrap().1, None, "there is room again");
    for refused in [&both, &small] {
        let error = set(&mut decoder, refused).unwrap_err();
        assert!(matches!(error, Error::ContextFull(_)) && error.to_string().contains("has 9 tokens"), "{error}");
        assert_eq!((decoder.context_length(), decoder.committed().len()), (12, 9));
    }
    while decoder.round().unwrap().1.is_none() {}
    assert_eq!(decoder.committed().len(), 12, "the refused weights left no trace");
}

/// The plan changes between rounds, chosen by everything that a planner could see. Each token still has the
/// distribution given by the tokens before it.
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

/// The same with look-ups, whose drafts depend on the pending tokens, and after rounds that failed.
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

/// Turns end early if their proposals are unlikely to be accepted. The estimate is learned while decoding, so drafts
/// depend on all earlier decisions and on the pending tokens.
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
                        // Five tokens of three models would take ten times as long as all else here.
                        let tokens = if count > 2 { 4 } else { 5 };
                        let case = Case::new(world, models.clone(), combination, sampling, tokens);
                        *proposed += Case { plans: vec![plan], ..case }.check(&way).counters.proposed;
                    }
                }
            }
        }
    }
    let [all, some, few] = proposed;
    assert!(all > some && some > few, "proposed {proposed:?}");
}

/// Weights that leave the plan as it is do not end a proposer's turn: there are no more passes than without them.
#[test]
fn setting_weights_cuts_no_turn_short() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    let way = Way::new(Strategy::Cos, Targets::Combined, &[4, 3]);
    let passes = |sets_weights: bool| {
        let models = World::Related.models(2, 5);
        let mut decoder = decoder(&models, &combination, Sampling::GREEDY, &way, &[], 60, CounterRng::new(1));
        decoder.prompt(&PROMPT).unwrap();
        while decoder.round().unwrap().1.is_none() {
            if sets_weights {
                let plan = plan(&models, &combination, Sampling::GREEDY, &way);
                decoder.set_combination(combination.clone(), plan).unwrap();
            }
        }
        (decoder.committed().to_vec(), decoder.counters().forwards)
    };
    assert_eq!(passes(true), passes(false));
}
