//! Every strategy is exact for every combination and sampler: one to four models, longer sequences, combine functions.

use std::sync::Arc;

use cos::decode::chance::CounterRng;
use cos::decode::combine::{Combination, Function};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::participant::Participant;

use super::enumeration::Case;
use crate::common::{PROMPT, SAMPLINGS, Sampling, Way, World, combinations, decoder, ways};

fn check_all(models: usize, vocab: usize, tokens: usize) {
    let mut branches = 0;
    let mut cases = 0;
    for world in World::ALL {
        for combination in &combinations(models) {
            for sampling in SAMPLINGS {
                for stop_tokens in [&[][..], &[1]] {
                    // Tokens that are impossible to several models may leave a sum of logits without any token.
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
    // In five tokens, roles change several times and rejections happen at every depth.
    for combination in [Combination::mixture(&[0.4, 0.6]).unwrap(), Combination::contrastive(2, 0.4, 0.0).unwrap()] {
        for world in [World::Related, World::Unrelated] {
            let case = Case::new(world, world.models(2, 2), &combination, Sampling::PLAIN, 5);
            for way in ways(2, &combination, Sampling::PLAIN) {
                case.check(&way);
            }
        }
    }
}

/// Combine functions that imitate combinations of the library, each with the combination that it imitates.
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
    // A function is given no weights. They only say which models it sees.
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
                // A mixture combines filtered rows, a function raw ones. They agree if nothing is filtered.
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

/// A proposal that is pending is not wasted: it may still be accepted. So no counter ever shrinks.
#[test]
fn wasted_proposals_are_those_that_can_no_longer_be_accepted() {
    let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
    let mut pended = false;
    for way in ways(2, &mixture, Sampling::PLAIN) {
        let models = World::Related.models(2, 3);
        let mut decoder = decoder(&models, &mixture, Sampling::PLAIN, &way, &[], 40, CounterRng::new(3));
        decoder.prompt(&PROMPT).unwrap();
        let mut before = decoder.counters();
        while decoder.round().unwrap().1.is_none() {
            let now = decoder.counters();
            assert!(now.wasted >= before.wasted, "{way:?}: {before:?}, then {now:?}");
            assert!(now.accepted + now.wasted <= now.proposed, "{way:?}: {now:?}");
            pended |= now.accepted + now.wasted < now.proposed;
            before = now;
        }
        let end = decoder.counters();
        assert_eq!(end.accepted + end.wasted, end.proposed, "{way:?}");
    }
    assert!(pended, "nothing was ever pending at the end of a round");
}

/// The number of passes when all models agree, counted by hand from each algorithm.
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
    // Every token costs one pass of each model.
    assert_eq!(run(&mixture, combined(Strategy::Standard, &[1, 1]), 12), (24, 0, 0));
    // After one pass, each pass verifies one proposal and makes the next.
    assert_eq!(run(&mixture, combined(Strategy::Cos, &[1, 1]), 12), (13, 12, 12));
    // Three passes draft, one verifies, and the drafter's next pass completes the target of the bonus token.
    assert_eq!(run(&mixture, combined(Strategy::Speculative, &[3, 0]), 12), (15, 9, 9));
    // The verifier alone decides, so its bonus token is free: three drafted tokens and one pass give four tokens.
    let target = Combination::target(2, 0).unwrap();
    assert_eq!(run(&target, combined(Strategy::Speculative, &[0, 3]), 12), (12, 9, 9));
    // Every token costs one pass of one model.
    assert_eq!(run(&mixture, Way::new(Strategy::Standard, Targets::Routed, &[1, 1]), 12), (12, 0, 0));
}
