//! What is changed in a row of scores before the sampler sees it: a few scores, and which tokens are possible at all.

use bytemuck::{Pod, Zeroable};

use super::distribution::checked;
use super::kernels;
use super::sampling::{Candidates, nucleus};

/// How the score of one token changes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Zeroable, Pod)]
pub struct Change {
    /// The token.
    pub token: u32,
    /// Is added first. Minus infinity makes the token impossible.
    pub bias: f32,
    /// Then a positive score is divided by this, and any other one is multiplied.
    pub repetition: f32,
    /// Is subtracted last.
    pub less: f32,
}

impl Change {
    /// Makes a token impossible.
    pub fn ban(token: u32) -> Self {
        Change { token, bias: f32::NEG_INFINITY, repetition: 1.0, less: 0.0 }
    }

    /// The score after the change.
    #[inline]
    pub fn of(&self, score: f32) -> f32 {
        let score = score + self.bias;
        let score = if score > 0.0 { score / self.repetition } else { score * self.repetition };
        score - self.less
    }
}

/// Tokens that are dropped by their probabilities at temperature 1, before all filters of the sampler.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Drops {
    /// Locally typical sampling (Meister et al. 2022): the fewest tokens whose information is nearest to the entropy,
    /// and that together have this probability, are kept. 0 and 1 keep all.
    pub typical_p: f32,
    /// Exclude top choices: of the tokens that are at least so probable, only the least probable one is kept. 0 is off.
    pub exclude_from: f32,
}

impl Drops {
    /// Whether all tokens are kept.
    pub fn keeps_all(&self) -> bool {
        self.typical().is_none() && self.exclude_from <= 0.0
    }

    /// The share of the typical tokens, if others are dropped.
    pub fn typical(&self) -> Option<f32> {
        Some(self.typical_p).filter(|share| *share > 0.0 && *share < 1.0)
    }

    /// Drop tokens of a row. A row without a possible token stays as it is.
    fn apply(&self, scores: &mut [f32], candidates: &mut Candidates) {
        if self.keeps_all() {
            return;
        }
        let Ok(max) = checked(kernels::maximum(scores)) else { return };
        if let Some(share) = self.typical() {
            keep_typical(share, max, scores, candidates);
        }
        if self.exclude_from > 0.0 {
            exclude_top(self.exclude_from, scores, max);
        }
    }
}

/// Keep the tokens whose information `−ln p` is nearest to the entropy.
fn keep_typical(typical_p: f32, max: f32, scores: &mut [f32], candidates: &mut Candidates) {
    let total = kernels::sum_exp(scores, max, 1.0);
    let entropy = (total.ln() - kernels::sum_exp_times(scores, max) / total) as f32;
    // The information of a score is this less the score.
    let least = max + total.ln() as f32;
    let distance = move |score: f32| (least - score - entropy).abs();
    let share = f64::from(typical_p) * total;
    let (keys, weights) = candidates.keys_and_scores();
    weights.clear();
    weights.resize(scores.len(), 0.0);
    kernels::add_exp(scores, max, 1.0, f32::MIN, 1.0, 1.0, weights);
    // Tokens that are as near, in steps, are added up first. So only those of one step are sorted.
    let mut sums = [0.0f64; STEPS];
    for (&score, &weight) in scores.iter().zip(&*weights) {
        let step = (distance(score) * STEPS_OF_NAT).min((STEPS - 1) as f32) as i32;
        sums[step as usize] += f64::from(weight);
    }
    let mut reached = 0.0;
    let Some(last) = sums.iter().position(|sum| {
        reached += sum;
        reached >= share
    }) else {
        return;
    };
    // The distance is not negative, so its bits are in order.
    let key = |token: usize, score: f32| u64::from(distance(score).to_bits()) << 32 | token as u64;
    keys.clear();
    let begin = last as f32 / STEPS_OF_NAT;
    let end = if last + 1 < STEPS { (last + 1) as f32 / STEPS_OF_NAT } else { f32::INFINITY };
    let in_step = scores.iter().enumerate().filter(|(_, score)| (begin..end).contains(&distance(**score)));
    keys.extend(in_step.map(|(token, &score)| key(token, score)));
    let weigh = |keys: &[u64]| keys.iter().map(|key| f64::from(weights[*key as u32 as usize])).sum();
    let kept = nucleus(keys, share - (reached - sums[last]), weigh);
    let Some(worst) = kept.checked_sub(1).map(|last| keys[last]) else { return };
    let (farthest, worst) = (f32::from_bits((worst >> 32) as u32), worst as u32 as usize);
    for score in &mut scores[..=worst] {
        *score = if distance(*score) > farthest { f32::NEG_INFINITY } else { *score };
    }
    for score in &mut scores[worst + 1..] {
        *score = if distance(*score) >= farthest { f32::NEG_INFINITY } else { *score };
    }
}

/// Steps of the distance of information to the entropy: of a nat, and in all. The last one has all that is farther.
const STEPS_OF_NAT: f32 = 32.0;
const STEPS: usize = 512;

/// Of the tokens of at least this probability, keep only the least probable one, and of equal ones the last.
fn exclude_top(threshold: f32, scores: &mut [f32], max: f32) {
    let least = max + (kernels::sum_exp(scores, max, 1.0).ln() + f64::from(threshold).ln()) as f32;
    let top = scores.iter().enumerate().filter(|(_, score)| **score >= least);
    let Some((kept, _)) = top.reduce(|kept, next| if next.1 <= kept.1 { next } else { kept }) else { return };
    let dropped = scores.iter_mut().enumerate().filter(|(token, score)| **score >= least && *token != kept);
    dropped.for_each(|(_, score)| *score = f32::NEG_INFINITY);
}

/// What is changed in a row of scores.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    /// In ascending order of tokens, at most one for each.
    pub changes: Vec<Change>,
    /// A bit for each token of the vocabulary that is possible. Empty: all of them are.
    pub mask: Vec<u32>,
    /// What is dropped then.
    pub drops: Drops,
}

impl Edits {
    /// Whether they change no row.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.mask.is_empty() && self.drops.keeps_all()
    }

    /// Change a row. `scores` has one score for each token of the vocabulary.
    pub fn apply(&self, scores: &mut [f32], candidates: &mut Candidates) {
        for change in &self.changes {
            let score = &mut scores[change.token as usize];
            *score = change.of(*score);
        }
        self.mask(scores);
        self.drops.apply(scores, candidates);
    }

    /// Make tokens impossible that cannot be possible, and leave all other scores as they are.
    pub fn forbid(&self, scores: &mut [f32]) {
        for change in self.changes.iter().filter(|change| change.bias == f32::NEG_INFINITY) {
            scores[change.token as usize] = f32::NEG_INFINITY;
        }
        self.mask(scores);
    }

    fn mask(&self, scores: &mut [f32]) {
        kernels::mask_by_bits(&self.mask, scores);
    }

    /// Make a token impossible.
    pub fn ban(&mut self, token: u32) {
        match self.changes.binary_search_by_key(&token, |change| change.token) {
            Ok(index) => self.changes[index] = Change::ban(token),
            Err(index) => self.changes.insert(index, Change::ban(token)),
        }
    }

    /// Subtract from the score of a token.
    pub fn subtract(&mut self, token: u32, less: f32) {
        match self.changes.binary_search_by_key(&token, |change| change.token) {
            Ok(index) => self.changes[index].less += less,
            Err(index) => self.changes.insert(index, Change { token, bias: 0.0, repetition: 1.0, less }),
        }
    }

    /// Whether a token can be possible. A model may find it impossible all the same.
    pub fn allows(&self, token: usize) -> bool {
        let is_masked = self.mask.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 0);
        !is_masked && !self.bans(token as u32)
    }

    fn bans(&self, token: u32) -> bool {
        let found = self.changes.binary_search_by_key(&token, |change| change.token);
        found.is_ok_and(|index| self.changes[index].bias == f32::NEG_INFINITY)
    }

    /// The tokens that the mask allows and that are not banned, in ascending order. Without a mask it is not asked.
    pub fn possible(&self) -> impl Iterator<Item = usize> + '_ {
        let words = self.mask.iter().enumerate().filter(|(_, word)| **word != 0);
        let tokens = words.flat_map(|(index, &word)| {
            (0..u32::BITS).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 32 + bit as usize)
        });
        tokens.filter(|&token| !self.bans(token as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_adds_then_penalises_then_subtracts() {
        let change = Change { token: 0, bias: 1.0, repetition: 2.0, less: 0.5 };
        assert_eq!(change.of(3.0), 1.5);
        assert_eq!(change.of(-3.0), -4.5);
        assert_eq!(change.of(-1.0), -0.5, "nothing is left to penalise");
        assert_eq!(change.of(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert_eq!(Change::ban(1).of(9.0), f32::NEG_INFINITY);
    }

    #[test]
    fn a_mask_is_read_word_by_word() {
        let mask = vec![u32::MAX, 0, 0b101];
        let changes = vec![Change { token: 2, bias: 3.0, repetition: 1.0, less: 0.0 }];
        let mut edits = Edits { changes, mask, ..Edits::default() };
        let mut scores = vec![1.0; 70];
        edits.apply(&mut scores, &mut Candidates::default());
        let possible: Vec<usize> = (0..70).filter(|&token| scores[token].is_finite()).collect();
        assert_eq!(possible, (0..32).chain([64, 66]).collect::<Vec<_>>());
        assert_eq!(edits.possible().collect::<Vec<_>>(), possible);
        assert!((0..70).all(|token| edits.allows(token) == possible.contains(&token)));
        assert_eq!(scores[2], 4.0);

        edits.ban(2);
        edits.ban(64);
        edits.apply(&mut scores, &mut Candidates::default());
        assert!(scores[2] == f32::NEG_INFINITY && scores[64] == f32::NEG_INFINITY);
        assert!(!edits.allows(2) && !edits.allows(64) && edits.allows(66));
        assert!(!edits.possible().any(|token| token == 2 || token == 64));
    }

    fn dropped(drops: Drops, probabilities: &[f32]) -> Vec<usize> {
        let mut scores: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        drops.apply(&mut scores, &mut Candidates::default());
        (0..scores.len()).filter(|&token| scores[token] == f32::NEG_INFINITY).collect()
    }

    #[test]
    fn typical_tokens_have_information_near_the_entropy() {
        let row = [0.5, 0.3, 0.2];
        let drops = |typical_p| Drops { typical_p, ..Drops::default() };
        assert_eq!(dropped(drops(0.0), &row), [0; 0]);
        assert_eq!(dropped(drops(1.0), &row), [0; 0]);
        // H = 1.03: the distances are 0.34, 0.17 and 0.58.
        assert_eq!(dropped(drops(0.2), &row), [0, 2]);
        assert_eq!(dropped(drops(0.31), &row), [2]);
        assert_eq!(dropped(drops(0.81), &row), [0; 0]);
    }

    #[test]
    fn top_choices_are_excluded_but_for_the_least() {
        let drops = |exclude_from| Drops { exclude_from, ..Drops::default() };
        assert_eq!(dropped(drops(0.1), &[0.5, 0.3, 0.15, 0.05]), [0, 1]);
        assert_eq!(dropped(drops(0.4), &[0.5, 0.3, 0.15, 0.05]), [0; 0], "one top choice stays");
        assert_eq!(dropped(drops(0.2), &[0.25, 0.25, 0.25, 0.25]), [0, 1, 2]);
        assert_eq!(dropped(drops(0.9), &[0.5, 0.5]), [0; 0]);
    }
}
