//! Memory of a scripted model that is limited, as that of a real one is: who has how much, and who is set back.

use std::collections::BTreeMap;

use super::Admission;

/// The memory that sequences share. A token takes one unit.
pub struct Limited {
    most: usize,
    /// By the age of the session.
    parts: BTreeMap<u64, Portion>,
}

/// What one sequence has.
#[derive(Debug, Clone, Copy, Default)]
struct Portion {
    reserved: usize,
    /// Tokens that are in the memory.
    computed: usize,
}

impl Limited {
    /// Memory of so many tokens.
    pub fn new(most: usize) -> Self {
        Limited { most, parts: BTreeMap::new() }
    }

    /// Reserve memory for `tokens` more tokens than the `len` of a sequence. One pass computes at most `max_pass`.
    pub fn admit(&mut self, age: u64, len: usize, tokens: usize, max_pass: usize) -> Admission {
        let wanted = len + tokens;
        loop {
            let others: usize =
                self.parts.iter().filter(|(other, _)| **other != age).map(|(_, part)| part.reserved).sum();
            if others + wanted <= self.most {
                break;
            }
            let Some((_, victim)) = self.parts.range_mut(age + 1..).rfind(|(_, part)| part.reserved > 0) else {
                return Admission::Waits;
            };
            *victim = Portion::default();
        }
        let part = self.parts.entry(age).or_default();
        part.reserved = part.reserved.max(wanted);
        let width = wanted - part.computed;
        if width <= max_pass { Admission::Whole(width) } else { Admission::Part(max_pass) }
    }

    /// A pass runs over `tokens` tokens behind the `len` of a sequence, or without tokens over what it has lost.
    /// Returns how many tokens the pass computes.
    pub fn run(&mut self, age: u64, len: usize, tokens: usize, max_pass: usize) -> usize {
        let part = self.parts.entry(age).or_default();
        let end = if tokens == 0 { len.min(part.computed + max_pass) } else { len + tokens };
        part.reserved = part.reserved.max(end); // one that was not admitted
        let width = end - std::mem::replace(&mut part.computed, end);
        assert!(self.parts.values().map(|part| part.reserved).sum::<usize>() <= self.most, "a pass without memory");
        width
    }

    /// A sequence has at most `len` tokens from now on.
    pub fn truncate(&mut self, age: u64, len: usize) {
        if let Some(part) = self.parts.get_mut(&age) {
            *part = Portion { reserved: part.reserved.min(len), computed: part.computed.min(len) };
        }
    }
}
