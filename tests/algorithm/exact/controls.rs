//! Bias, penalties, bans and constraints are exact under every strategy.

use cos::control::{Constraint, Constraints, Controls};
use cos::decode::combine::Combination;
use cos::error::Error;

use super::enumeration::{Case, Controlled};
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
    check(&Controlled { controls, change: &change }, &SAMPLINGS, &[], 3);
    let controls = Controls::default().with_bias(&[1], &[f32::NEG_INFINITY]).unwrap();
    let change = |_: &[i32], scores: &mut [f64]| scores[1] = NEVER;
    check(&Controlled { controls, change: &change }, &FEW, &[], 3);
}

#[test]
fn penalties_are_exact() {
    let controls = Controls::default().with_penalties(1.5, 0.0, 0.0).unwrap();
    let change = |text: &[i32], scores: &mut [f64]| penalise(scores, &all(text), 1.5);
    check(&Controlled { controls, change: &change }, &FEW, &[], 3);

    let controls = Controls::default().with_penalties(0.0, 0.5, 0.75).unwrap();
    let change = |text: &[i32], scores: &mut [f64]| {
        for (token, score) in scores.iter_mut().enumerate() {
            let count = count(text, token);
            *score -= 0.75 * count + if count > 0.0 { 0.5 } else { 0.0 };
        }
    };
    check(&Controlled { controls, change: &change }, &SAMPLINGS, &[], 3);
}

#[test]
fn bans_are_exact() {
    let controls = Controls { min_tokens: 2, ..Controls::default() };
    let change = |text: &[i32], scores: &mut [f64]| {
        if text.len() < 2 {
            scores[2] = NEVER;
        }
    };
    check(&Controlled { controls, change: &change }, &FEW, &[2], 4);

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
    check(&Controlled { controls, change: &change }, &FEW, &[], 3);

    let controls = Controls { no_repeat_ngram: 3, ..Controls::default() };
    let change = |text: &[i32], scores: &mut [f64]| {
        let tokens = all(text);
        let end = &tokens[tokens.len() - 2..];
        for run in tokens.windows(3).filter(|run| run[..2] == *end) {
            scores[run[2] as usize] = NEVER;
        }
    };
    check(&Controlled { controls, change: &change }, &FEW, &[], 4);
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

#[test]
fn constraints_are_exact() {
    for is_slow in [false, true] {
        let start = move || Box::new(Follower { is_slow, ..Follower::default() }) as Box<dyn Constraint>;
        let controls = Controls { constraint: Some(Constraints::new(start)), ..Controls::default() };
        check(&Controlled { controls, change: &constrain }, &FEW, &[], 4);
    }
}

#[test]
fn all_controls_together_are_exact() {
    let start = || Box::<Follower>::default() as Box<dyn Constraint>;
    let controls = Controls {
        constraint: Some(Constraints::new(start)),
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
                let controlled = Controlled { controls: controls.clone(), change: &change };
                let case = Case::new(World::Related, World::Related.models(2, 3), &combination, sampling, 4);
                Case { control: Some(&controlled), ..case }.check(&way);
            }
        }
    }
}
