//! What is changed in a row of scores before the sampler sees it: a few scores, and which tokens are possible at all.

use bytemuck::{Pod, Zeroable};

use super::kernels;

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

/// What is changed in a row of scores.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    /// In ascending order of tokens, at most one for each.
    pub changes: Vec<Change>,
    /// A bit for each token of the vocabulary that is possible. Empty: all of them are.
    pub mask: Vec<u32>,
}

impl Edits {
    /// Change a row. `scores` has one score for each token of the vocabulary.
    pub fn apply(&self, scores: &mut [f32]) {
        for change in &self.changes {
            let score = &mut scores[change.token as usize];
            *score = change.of(*score);
        }
        self.mask(scores);
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
        let mut edits = Edits { changes: vec![Change { token: 2, bias: 3.0, repetition: 1.0, less: 0.0 }], mask };
        let mut scores = vec![1.0; 70];
        edits.apply(&mut scores);
        let possible: Vec<usize> = (0..70).filter(|&token| scores[token].is_finite()).collect();
        assert_eq!(possible, (0..32).chain([64, 66]).collect::<Vec<_>>());
        assert_eq!(edits.possible().collect::<Vec<_>>(), possible);
        assert!((0..70).all(|token| edits.allows(token) == possible.contains(&token)));
        assert_eq!(scores[2], 4.0);

        edits.ban(2);
        edits.ban(64);
        edits.apply(&mut scores);
        assert!(scores[2] == f32::NEG_INFINITY && scores[64] == f32::NEG_INFINITY);
        assert!(!edits.allows(2) && !edits.allows(64) && edits.allows(66));
        assert!(!edits.possible().any(|token| token == 2 || token == 64));
    }
}
