//! A drafter that costs nothing: what followed the same words before follows them again.
//!
//! Prompt look-up (Saxena 2023, `prompt-lookup-decoding`): the end of the sequence is sought further ahead in it, and
//! the token behind the find is proposed. It pays where text repeats itself: summaries, code that is edited, quotations.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Cancel, Interrupt, Memory, Model, Pass, Proposal, Sequence};
use crate::error::Result;

/// Longest run of tokens that is compared; a longer match would hardly foretell more.
const LONGEST: usize = 8;

/// Shortest match that is believed. A single token is often a comma or an article, which says next to nothing of its
/// successor, and a proposal that is rejected makes the verifier's pass wider for nothing; two make a phrase.
const SHORTEST: usize = 2;

/// Tokens that a sequence has room for at first; it grows by doubling, as caches do.
const FIRST_CAPACITY: usize = 1024;

/// Looks the end of the sequence up in the sequence itself. It has no distribution, so it drafts and never verifies.
pub struct Ngram {
    name: String,
}

impl Ngram {
    /// A look-up; `name` is for messages.
    pub fn new(name: &str) -> Self {
        Ngram { name: name.into() }
    }
}

struct NgramSequence {
    tokens: Vec<i32>,
}

impl Sequence for NgramSequence {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
    }

    fn logits(&self, _: usize) -> &[f32] {
        unreachable!("a look-up has no logits")
    }

    fn proposal(&self, position: usize) -> Proposal {
        match successor(&self.tokens[..position]) {
            Some(token) => Proposal::Token(token),
            None => Proposal::Nothing,
        }
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    fn memory(&self) -> Memory {
        Memory::of(size_of::<i32>() * self.tokens.capacity())
    }
}

/// The token that followed the longest earlier occurrence of the end of `tokens`, the latest of equally long ones.
///
/// One scan from the end, which nearly always stops at the first comparison: microseconds for thousands of tokens.
fn successor(tokens: &[i32]) -> Option<i32> {
    let mut found = (SHORTEST - 1, None);
    for end in (SHORTEST..tokens.len()).rev() {
        // how far the tokens before `end` are the last ones
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev()).take(LONGEST);
        let length = pairs.take_while(|(a, b)| a == b).count();
        if length > found.0 {
            found = (length, Some(tokens[end]));
            if length == LONGEST {
                break;
            }
        }
    }
    found.1
}

impl Model for Ngram {
    fn name(&self) -> &str {
        &self.name
    }

    fn scores(&self) -> bool {
        false
    }

    /// It takes any vocabulary.
    fn vocab_size(&self) -> usize {
        0
    }

    /// It has no limit.
    fn context_length(&self) -> usize {
        usize::MAX
    }

    fn max_pass(&self) -> usize {
        1 << 20
    }

    fn cost(&self) -> u64 {
        0
    }

    fn describe(&self) -> Value {
        json!({ "name": self.name, "kind": "ngram" })
    }

    fn start(&self, _: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        Ok(Box::new(NgramSequence { tokens: Vec::with_capacity(FIRST_CAPACITY) }))
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<(), Interrupt> {
        for pass in batch {
            let sequence: &mut dyn Any = pass.sequence;
            let sequence: &mut NgramSequence = sequence.downcast_mut().expect("a sequence of another model");
            sequence.tokens.extend_from_slice(pass.tokens);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_wins_and_then_the_latest() {
        assert_eq!(successor(&[]), None);
        assert_eq!(successor(&[1]), None);
        assert_eq!(successor(&[1, 1]), None);
        assert_eq!(successor(&[1, 2, 3, 1]), None, "one token is no match");
        assert_eq!(successor(&[1, 2, 3, 1, 2]), Some(3));
        assert_eq!(successor(&[1, 2, 3, 1, 2, 4, 1, 2]), Some(4), "the latest of two");
        assert_eq!(successor(&[5, 1, 2, 3, 1, 2, 4, 5, 1, 2]), Some(3), "the longer one");
        assert_eq!(successor(&[7, 7, 7]), Some(7), "matches may overlap");
        assert_eq!(successor(&[1, 2, 3, 4, 5, 6]), None);
    }

    #[test]
    fn matches_are_compared_up_to_a_limit() {
        // Ten tokens match further ahead, the last eight of them later too: the later one wins.
        let phrase = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let tokens = [&phrase[..], &[20], &phrase[2..], &[21], &phrase].concat();
        assert_eq!(successor(&tokens), Some(21));
        // With seven the longer one does.
        let tokens = [&phrase[..], &[20], &phrase[3..], &[21], &phrase].concat();
        assert_eq!(successor(&tokens), Some(20));
    }

    #[test]
    fn a_sequence_forgets_what_is_truncated() {
        let model = Ngram::new("ngram");
        let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        let extend = |sequence: &mut Box<dyn Sequence>, tokens: &[i32]| {
            model.forward(&mut [Pass { sequence: sequence.as_mut(), tokens, keep: 0 }]).unwrap();
        };
        extend(&mut sequence, &[1, 2, 3, 1, 2]);
        assert!(matches!(sequence.proposal(5), Proposal::Token(3)));
        sequence.truncate(3);
        assert_eq!(sequence.len(), 3);
        assert!(matches!(sequence.proposal(3), Proposal::Nothing));
        extend(&mut sequence, &[2, 3]);
        assert!(matches!(sequence.proposal(5), Proposal::Token(2)));
    }
}
