//! How often each token has come, and what that changes.

use crate::control::options::Controls;
use crate::rows::Change;

/// A token with a bias, or one that has come.
#[derive(Debug, Clone, Copy)]
struct Tallied {
    token: u32,
    bias: f32,
    /// How often it is in the prompt, if that matters, and in the text.
    prompt: u32,
    text: u32,
}

/// Tokens for which there is room before a text begins, so that most texts need no more.
pub const ROOM: usize = 512;

/// Counts tokens. Entries are in ascending order of tokens.
#[derive(Debug, Default)]
pub struct Tally(Vec<Tallied>);

impl Tally {
    /// How many tokens have a bias or have come.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Begin anew behind a prompt.
    pub fn begin(&mut self, controls: &Controls, prompt: &[i32]) {
        self.0.clear();
        self.0.reserve(ROOM);
        self.0.extend(controls.bias.iter().map(|&(token, bias)| Tallied { token, bias, prompt: 0, text: 0 }));
        if controls.repetition_penalty == 1.0 {
            return;
        }
        let entry = |&token: &i32| Tallied { token: token as u32, bias: 0.0, prompt: 1, text: 0 };
        self.0.extend(prompt.iter().map(entry));
        // Stable, so the entry with the bias comes first.
        self.0.sort_by_key(|entry| entry.token);
        self.0.dedup_by(|next, first| {
            let is_same = next.token == first.token;
            first.prompt += if is_same { next.prompt } else { 0 };
            is_same
        });
    }

    /// The text goes on with a token.
    pub fn push(&mut self, token: u32) {
        match self.0.binary_search_by_key(&token, |entry| entry.token) {
            Ok(index) => self.0[index].text += 1,
            Err(index) => self.0.insert(index, Tallied { token, bias: 0.0, prompt: 0, text: 1 }),
        }
    }

    /// Take a token back that was pushed.
    pub fn pop(&mut self, token: u32) {
        if let Ok(index) = self.0.binary_search_by_key(&token, |entry| entry.token) {
            let entry = &mut self.0[index];
            entry.text -= 1;
            if (entry.bias, entry.prompt, entry.text) == (0.0, 0, 0) {
                self.0.remove(index);
            }
        }
    }

    /// Write what the counts change.
    pub fn write(&self, controls: &Controls, changes: &mut Vec<Change>) {
        let Controls { repetition_penalty, presence_penalty, frequency_penalty, .. } = *controls;
        changes.extend(self.0.iter().map(|&Tallied { token, bias, prompt, text }| Change {
            token,
            bias,
            repetition: if prompt + text > 0 { repetition_penalty } else { 1.0 },
            less: if text > 0 { presence_penalty + frequency_penalty * text as f32 } else { 0.0 },
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(tally: &Tally, controls: &Controls) -> Vec<Change> {
        let mut changes = Vec::new();
        tally.write(controls, &mut changes);
        changes
    }

    #[test]
    fn the_prompt_counts_for_repetition_only() {
        let controls = Controls::default().with_penalties(1.5, 0.5, 0.25).unwrap().with_bias(&[7, 3], &[1.0, -2.0]);
        let controls = controls.unwrap();
        let mut tally = Tally::default();
        tally.begin(&controls, &[7, 5, 7]);
        let change = |token, bias, repetition, less| Change { token, bias, repetition, less };
        let before = [change(3, -2.0, 1.0, 0.0), change(5, 0.0, 1.5, 0.0), change(7, 1.0, 1.5, 0.0)];
        assert_eq!(changes(&tally, &controls), before);
        for token in [3, 4, 3, 7] {
            tally.push(token);
        }
        let after =
            [change(3, -2.0, 1.5, 1.0), change(4, 0.0, 1.5, 0.75), change(5, 0.0, 1.5, 0.0), change(7, 1.0, 1.5, 0.75)];
        assert_eq!(changes(&tally, &controls), after);
        for token in [7, 3, 4, 3] {
            tally.pop(token);
        }
        assert_eq!(changes(&tally, &controls), before, "all that was pushed was taken back");
    }
}
