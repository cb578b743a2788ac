//! Rows behind bias, penalties and bans are those that transformers' logits processors make (`tests/vectors`).

use cos::control::{Controls, RowEditor};
use cos::rows::Candidates;
use serde::Deserialize;

use crate::common::root;

#[derive(Deserialize)]
struct Vectors {
    about: About,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct About {
    prompt: usize,
    vocabulary: usize,
}

#[derive(Deserialize)]
struct Case {
    options: Given,
    tokens: Vec<i32>,
    row: Vec<f32>,
    expected: Vec<Option<f32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    bias: Vec<(i32, f32)>,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    no_repeat_ngram: usize,
    banned: Vec<Vec<i32>>,
    min_tokens: usize,
    stop: Vec<i32>,
    typical_p: f32,
}

impl Default for Given {
    fn default() -> Self {
        Given {
            bias: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram: 0,
            banned: Vec::new(),
            min_tokens: 0,
            stop: Vec::new(),
            typical_p: 0.0,
        }
    }
}

impl Given {
    fn controls(&self) -> Controls {
        let (tokens, values): (Vec<i32>, Vec<f32>) = self.bias.iter().copied().unzip();
        Controls { min_tokens: self.min_tokens, no_repeat_ngram: self.no_repeat_ngram, ..Controls::default() }
            .with_bias(&tokens, &values)
            .unwrap()
            .with_penalties(self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
            .unwrap()
            .with_banned(self.banned.clone())
            .unwrap()
            .with_drops(self.typical_p, 0.0, 0.0)
            .unwrap()
    }
}

#[test]
fn rows_are_those_of_transformers() {
    let text = std::fs::read_to_string(root().join("tests/vectors/controls.json")).unwrap();
    let Vectors { about, cases } = serde_json::from_str(&text).unwrap();
    for Case { options, tokens, row, expected } in &cases {
        let mut editor = RowEditor::new(&options.controls(), about.vocabulary, &options.stop, false);
        editor.fit(2);
        editor.begin(about.prompt);
        let edits = editor.edits(tokens.len(), tokens, || false).unwrap();
        let mut found = row.clone();
        edits.apply(&mut found, &mut Candidates::default());
        for (token, (found, expected)) in found.iter().zip(expected).enumerate() {
            let expected = expected.unwrap_or(f32::NEG_INFINITY);
            let is_equal = *found == expected || (found - expected).abs() < 1e-5;
            assert!(is_equal, "token {token}: {found}, not {expected}, by {options:?} behind {tokens:?}");
        }
    }
    assert!(cases.len() >= 50, "{} cases", cases.len());
}
