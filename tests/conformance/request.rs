//! What users ask of their text, for joint distributions: controls of each kind, and what they do by definition.

use cos::control::Controls;

use crate::common::{ByLength, PROMPT};

/// A kind of controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Token 0 gets 1 more, and token 2 gets 0.75 less.
    Bias,
    /// Penalties of 1.5 for all tokens seen, and of 0.5 and 0.25 for those of the text.
    Penalties,
    /// Behind every other token, token 1 is impossible.
    Constraint,
    /// Half of the time, of the tokens of at least 0.25, only the least probable one stays.
    Exclusion,
}

impl Request {
    pub const ALL: [Request; 4] = [Request::Bias, Request::Penalties, Request::Constraint, Request::Exclusion];

    /// The controls of a session.
    pub fn controls(self) -> Controls {
        let plain = Controls::default();
        let controls = match self {
            Request::Bias => plain.with_bias(&[0, 2], &[1.0, -0.75]),
            Request::Penalties => plain.with_penalties(1.5, 0.5, 0.25),
            Request::Constraint => {
                let every_other = ByLength::new(|length, mask| {
                    mask.fill(if length % 2 == 1 { !2 } else { u32::MAX });
                    Ok(())
                });
                Ok(every_other.with(plain))
            }
            Request::Exclusion => plain.with_drops(0.0, 0.5, 0.25),
        };
        controls.expect("controls that are right")
    }

    /// How often the scores of a position are changed.
    pub fn share(self) -> f64 {
        if self == Request::Exclusion { 0.5 } else { 1.0 }
    }

    /// Change the scores behind a text.
    pub fn change(self, text: &[i32], scores: &mut [f64]) {
        let count = |tokens: &[i32], token: usize| tokens.iter().filter(|&&other| other as usize == token).count();
        match self {
            Request::Bias => {
                scores[0] += 1.0;
                scores.iter_mut().skip(2).take(1).for_each(|score| *score -= 0.75);
            }
            Request::Penalties => {
                for (token, score) in scores.iter_mut().enumerate() {
                    let of_text = count(text, token);
                    if of_text + count(&PROMPT, token) > 0 {
                        *score = if *score > 0.0 { *score / 1.5 } else { *score * 1.5 };
                    }
                    *score -= if of_text > 0 { 0.5 + 0.25 * of_text as f64 } else { 0.0 };
                }
            }
            Request::Constraint if text.len() % 2 == 1 => scores[1] = f64::NEG_INFINITY,
            Request::Constraint => {}
            Request::Exclusion => {
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
                let is_top = |score: f64| (score - max).exp() >= 0.25 * total;
                let top = scores.iter().copied().enumerate().filter(|(_, score)| is_top(*score));
                let least = top.min_by(|(a, x), (b, y)| x.total_cmp(y).then(b.cmp(a)));
                let Some((least, _)) = least else { return };
                let others = scores.iter_mut().enumerate().filter(|(token, score)| *token != least && is_top(**score));
                others.for_each(|(_, score)| *score = f64::NEG_INFINITY);
            }
        }
    }
}
