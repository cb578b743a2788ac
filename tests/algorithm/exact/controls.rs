//! Bias, penalties, bans and constraints are exact under every strategy.

use cos::control::{Constraint, Constraints, Controls, Dry};
use cos::decode::combine::Combination;
use cos::decode::policy::Targets;
use cos::decode::weigh::Weigher;
use cos::error::Error;

use super::enumeration::{Case, Controlled, WeightsOf};
use crate::common::{PROMPT, SAMPLINGS, Sampling, World, combinations, ways};

const NEVER: f64 = f64::NEG_INFINITY;

/// The tokens of prompt and text.
fn all(text: &[i32]) -> Vec<i32> {
    PROMPT.iter().chain(text).copied().collect()
}

fn count(tokens: &[i32], token: usize) -> f64 {
    tokens.iter().filter(|&&other| other as usize == token).count() as f64
}

fn penalise(scores: &mut [f64], seen: &[i32], penalty: f64) {
    for (_, score) in scores.iter_mut().enumerate().filter(|(token, _)| count(seen, *token) > 0.0) {
        *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
    }
}

/// Check a control with all combinations of two models, and some of three, and all ways to decode them.
fn check(controlled: &Controlled, samplings: &[Sampling], stop_tokens: &[i32], tokens: usize) {
    // A plausibility mask of such models may leave what is banned alone.
    let worlds = [World::Related, World::Unrelated];
    let three = [Combination::mixture(&[0.2, 0.5, 0.3]).unwrap(), Combination::contrastive(3, 0.5, 0.1).unwrap()];
    for combination in combinations(2).into_iter().chain(three) {
        let models = combination.weights().len();
        let drops = controlled.controls.typical_p > 0.0 || controlled.controls.xtc_probability > 0.0;
        if drops && matches!(combination, Combination::Logits { plausibility: Some(_), .. }) {
            continue; // the oracle cannot tell what is banned from what is dropped
        }
        let tokens = tokens.min(5 - models);
        for world in worlds {
            for &sampling in samplings {
                for way in ways(models, &combination, sampling) {
                    let case = Case::new(world, world.models(models, 3), &combination, sampling, tokens);
                    Case { control: Some(controlled), stop_tokens, ..case }.check(&way);
                }
            }
        }
    }
}

const FEW: [Sampling; 3] = [SAMPLINGS[0], SAMPLINGS[1], SAMPLINGS[6]];

#[test]
fn bias_is_exact() {
    let controls = Controls::default().with_bias(&[2, 0], &[-0.7, 1.0]).unwrap();
    let change = |_: &[i32], scores: &mut [f64]| {
        scores[0] += 1.0;
        scores[2] -= f64::from(0.7f32);
    };
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &SAMPLINGS, &[], 3);
    let controls = Controls::default().with_bias(&[1], &[f32::NEG_INFINITY]).unwrap();
    let change = |_: &[i32], scores: &mut [f64]| scores[1] = NEVER;
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &FEW, &[], 3);
}

#[test]
fn penalties_are_exact() {
    let controls = Controls::default().with_penalties(1.5, 0.0, 0.0).unwrap();
    let change = |text: &[i32], scores: &mut [f64]| penalise(scores, &all(text), 1.5);
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &FEW, &[], 3);

    let controls = Controls::default().with_penalties(0.0, 0.5, 0.75).unwrap();
    let change = |text: &[i32], scores: &mut [f64]| {
        for (token, score) in scores.iter_mut().enumerate() {
            let count = count(text, token);
            *score -= 0.75 * count + if count > 0.0 { 0.5 } else { 0.0 };
        }
    };
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &SAMPLINGS, &[], 3);
}

#[test]
fn bans_are_exact() {
    let controls = Controls { min_tokens: 2, ..Controls::default() };
    let change = |text: &[i32], scores: &mut [f64]| {
        if text.len() < 2 {
            scores[2] = NEVER;
        }
    };
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &FEW, &[2], 4);

    let controls = Controls::default().with_banned(vec![vec![1, 1, 0], vec![0, 2]]).unwrap();
    let change = |text: &[i32], scores: &mut [f64]| {
        let tokens = all(text);
        if tokens.ends_with(&[1, 1]) {
            scores[0] = NEVER;
        }
        if tokens.ends_with(&[0]) {
            scores[2] = NEVER;
        }
    };
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &FEW, &[], 3);

    let controls = Controls { no_repeat_ngram: 3, ..Controls::default() };
    let change = |text: &[i32], scores: &mut [f64]| {
        let tokens = all(text);
        let end = &tokens[tokens.len() - 2..];
        for run in tokens.windows(3).filter(|run| run[..2] == *end) {
            scores[run[2] as usize] = NEVER;
        }
    };
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &FEW, &[], 4);
}

/// The probabilities of scores at temperature 1.
fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(NEVER, f64::max);
    let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    scores.iter().map(|score| (score - max).exp() / total).collect()
}

/// The sampled ones; a greedy session drops nothing by probabilities.
const SAMPLED: [Sampling; 3] = [SAMPLINGS[0], SAMPLINGS[2], SAMPLINGS[6]];

#[test]
fn typical_sampling_is_exact() {
    let controls = Controls::default().with_drops(0.6, 0.0, 0.0).unwrap();
    let change = |_: &[i32], scores: &mut [f64]| {
        let p = softmax(scores);
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| (-p[a].ln() - entropy).abs().total_cmp(&(-p[b].ln() - entropy).abs()));
        let mut reached = 0.0;
        for token in order {
            if reached >= f64::from(0.6f32) {
                scores[token] = NEVER;
            }
            reached += p[token];
        }
    };
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &SAMPLED, &[], 3);
    let controls = Controls::default().with_drops(0.6, 0.0, 0.0).unwrap();
    check(&Controlled { controls, change: &|_, _| (), exclude: None, weigh: None }, &[Sampling::GREEDY], &[], 3);
}

#[test]
fn exclusion_of_top_choices_is_exact() {
    let controls = Controls::default().with_drops(0.0, 0.25, 0.3).unwrap();
    let exclude = |_: &[i32], scores: &mut [f64]| {
        let p = softmax(scores);
        let top = (0..p.len()).filter(|&token| p[token] >= f64::from(0.3f32));
        let Some(kept) = top.clone().min_by(|&a, &b| p[a].total_cmp(&p[b])) else { return };
        top.filter(|&token| token != kept).for_each(|token| scores[token] = NEVER);
    };
    let controlled = Controlled { controls, change: &|_, _| (), exclude: Some((0.25, &exclude)), weigh: None };
    check(&controlled, &SAMPLED, &[], 2);
}

#[test]
fn the_penalty_of_repetitions_is_exact() {
    let dry = Dry::new(0.5, 2.0, 1, &[2]).unwrap();
    let controls = Controls { dry, ..Controls::default() };
    let change = |text: &[i32], scores: &mut [f64]| {
        let tokens = all(text);
        for (token, score) in scores.iter_mut().enumerate() {
            let ends = (1..tokens.len()).filter(|&end| tokens[end] as usize == token);
            let run = |end: usize| {
                let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
                pairs.take_while(|(a, b)| a == b && **a != 2).count()
            };
            let longest = ends.map(run).max().unwrap_or(0);
            if longest >= 1 {
                *score -= 0.5 * 2f64.powi(longest as i32 - 1);
            }
        }
    };
    check(&Controlled { controls, change: &change, exclude: None, weigh: None }, &FEW, &[], 3);
}

/// Weights depend on how sure the models are.
#[test]
fn weights_of_positions_are_exact() {
    let weights = |confidence: [f32; 2]| {
        let share = 0.1 + 0.8 * confidence[0] / (confidence[0] + confidence[1]);
        [share, 1.0 - share]
    };
    let weigher = Weigher::new(move |tokens, models, out| {
        assert!(tokens.starts_with(&PROMPT) && models.len() == 2 && out.iter().sum::<f32>() == 1.0);
        assert!(models.iter().all(|model| model.entropy > 0.0 && model.entropy < 1.1 && (0..3).contains(&model.best)));
        out.copy_from_slice(&weights([models[0].confidence, models[1].confidence]));
        Ok(())
    });
    let of_rows = move |rows: &[Vec<f32>]| {
        let confidence = |row: &Vec<f32>| {
            softmax(&row.iter().map(|&score| f64::from(score)).collect::<Vec<_>>()).into_iter().fold(0.0, f64::max)
        };
        weights([confidence(&rows[0]) as f32, confidence(&rows[1]) as f32]).to_vec()
    };
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    let controls = Controls::default().with_penalties(1.5, 0.0, 0.25).unwrap();
    let change = |text: &[i32], scores: &mut [f64]| {
        penalise(scores, &all(text), 1.5);
        scores.iter_mut().enumerate().for_each(|(token, score)| *score -= 0.25 * count(text, token));
    };
    let weigh = Some((weigher, &of_rows as &WeightsOf));
    let controlled = Controlled { controls, change: &change, exclude: None, weigh };
    for world in [World::Related, World::Unrelated, World::Sharp] {
        for sampling in FEW {
            for way in ways(2, &combination, sampling).into_iter().filter(|way| way.targets == Targets::Combined) {
                let case = Case::new(world, world.models(2, 3), &combination, sampling, 3);
                Case { control: Some(&controlled), ..case }.check(&way);
            }
        }
    }
}

/// Behind 2 comes 1, and then nothing. Behind 0 comes 0 or 2.
fn grammar(text: &[i32]) -> Vec<i32> {
    match text {
        [.., 2, 1] => vec![],
        [.., 2] => vec![1],
        [.., 0] => vec![0, 2],
        _ => vec![0, 1, 2],
    }
}

fn constrain(text: &[i32], scores: &mut [f64]) {
    for (token, score) in scores.iter_mut().enumerate() {
        if !grammar(text).contains(&(token as i32)) {
            *score = NEVER;
        }
    }
}

/// Follows the grammar, and fails where it is used against its contract.
#[derive(Default)]
struct Follower {
    text: Vec<i32>,
    /// Whether the mask alone tells that one token is left, or none.
    is_slow: bool,
}

impl Constraint for Follower {
    fn reset(&mut self) -> Result<(), Error> {
        self.text.clear();
        Ok(())
    }

    fn push(&mut self, token: i32) -> Result<(), Error> {
        assert!(grammar(&self.text).contains(&token), "{token} behind {:?}", self.text);
        self.text.push(token);
        Ok(())
    }

    fn pop(&mut self, tokens: usize) -> Result<(), Error> {
        assert!(tokens <= self.text.len());
        self.text.truncate(self.text.len() - tokens);
        Ok(())
    }

    fn forced(&mut self) -> Result<Option<i32>, Error> {
        match grammar(&self.text)[..] {
            [token] if !self.is_slow => Ok(Some(token)),
            _ => Ok(None),
        }
    }

    fn mask(&mut self, mask: &mut [u32]) -> Result<(), Error> {
        // Bits beyond the vocabulary do not matter.
        mask.fill(!7);
        grammar(&self.text).into_iter().for_each(|token| mask[0] |= 1 << token);
        Ok(())
    }

    fn may_end(&self) -> bool {
        grammar(&self.text).is_empty()
    }

    fn is_complete(&self) -> bool {
        !self.is_slow && self.may_end()
    }
}

/// Follow the grammar.
pub fn following(is_slow: bool) -> Controls {
    let start = move || Box::new(Follower { is_slow, ..Follower::default() }) as Box<dyn Constraint>;
    Controls { constraint: Some(Constraints::new(start)), ..Controls::default() }
}

#[test]
fn constraints_are_exact() {
    for is_slow in [false, true] {
        let controls = following(is_slow);
        check(&Controlled { controls, change: &constrain, exclude: None, weigh: None }, &FEW, &[], 4);
    }
}

#[test]
fn all_controls_together_are_exact() {
    let controls = Controls {
        constraint: following(false).constraint,
        min_tokens: 2,
        ..Controls::default().with_penalties(1.25, 0.5, 0.25).unwrap().with_bias(&[2], &[0.5]).unwrap()
    };
    let change = |text: &[i32], scores: &mut [f64]| {
        scores[2] += 0.5;
        penalise(scores, &all(text), 1.25);
        for (token, score) in scores.iter_mut().enumerate() {
            let count = count(text, token);
            *score -= 0.25 * count + if count > 0.0 { 0.5 } else { 0.0 };
        }
        constrain(text, scores);
    };
    let combination = Combination::mixture(&[0.3, 0.7]).unwrap();
    for combination in [combination, Combination::contrastive(2, 0.5, 0.1).unwrap()] {
        for sampling in FEW {
            for way in ways(2, &combination, sampling) {
                let controlled = Controlled { controls: controls.clone(), change: &change, exclude: None, weigh: None };
                let case = Case::new(World::Related, World::Related.models(2, 3), &combination, sampling, 4);
                Case { control: Some(&controlled), ..case }.check(&way);
            }
        }
    }
}
