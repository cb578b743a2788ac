//! Runs a model over golden sequences in the ways that a decoder does, and compares all logits.

use std::sync::Arc;

use cos::model::{Cancel, Model, Pass, Sequence};
use cos::onnx::OnnxModel;
use cos::rows::Filter;

use crate::common::Golden;

/// Runs a model like a decoder, and compares all rows of logits.
pub struct Replay<'a> {
    model: &'a OnnxModel,
    sequence: Box<dyn Sequence>,
    tokens: Vec<i32>,
    worst: f32,
}

impl<'a> Replay<'a> {
    pub fn new(model: &'a OnnxModel) -> Self {
        let sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        Replay { model, sequence, tokens: Vec::new(), worst: 0.0 }
    }

    /// Run the next tokens of a golden sequence in one pass, and compare all rows but the first `unwanted`.
    fn pass(&mut self, golden: &(Vec<i32>, Vec<Vec<f32>>), width: usize, unwanted: usize) {
        let start = self.sequence.len();
        let width = width.min(golden.0.len() - start);
        if width == 0 {
            return; // the export has a shorter context
        }
        assert_eq!(self.tokens[..start], golden.0[..start], "the test must roll back to the shared beginning");
        let tokens = &golden.0[start..start + width];
        let keep = start + 1 + unwanted;
        self.model
            .forward(&mut [Pass {
                sequence: self.sequence.as_mut(),
                tokens,
                keep,
                filter: Filter::plain(1.0),
                uniforms: None,
            }])
            .unwrap();
        self.tokens.truncate(start);
        self.tokens.extend_from_slice(tokens);
        for position in keep..=start + width {
            assert_eq!(self.sequence.row(position).scores().unwrap().len(), golden.1[position - 1].len());
            for (&found, &expected) in self.sequence.row(position).scores().unwrap().iter().zip(&golden.1[position - 1])
            {
                self.worst = self.worst.max((found - expected).abs());
            }
        }
    }

    fn roll_back(&mut self, len: usize) {
        let len = len.min(self.sequence.len());
        self.sequence.truncate(len);
        assert_eq!(self.sequence.len(), len);
    }

    /// Do everything that decoding does, over three sequences with a common beginning. Returns the largest difference.
    pub fn all(mut self, golden: &Golden) -> f32 {
        let cut = |(tokens, rows): &(Vec<i32>, Vec<Vec<f32>>)| {
            let length = tokens.len().min(self.model.context_length());
            (tokens[..length].to_vec(), rows[..length].to_vec())
        };
        let [first, second, third] = &golden.sequences.iter().map(cut).collect::<Vec<_>>()[..] else { panic!() };
        let shared = |a: &[i32], b: &[i32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
        self.pass(first, 6, 5); // a prompt
        for width in [1, 1, 3, 1, 5, 2, 9, 1, 4] {
            self.pass(first, width, 0);
        }
        self.roll_back(shared(&first.0, &second.0)); // a long rejection
        for width in [1, 4, 1, 2] {
            self.pass(second, width, 0);
        }
        // Many small rollbacks: of each draft of four tokens, one is accepted.
        while self.sequence.len() + 4 <= second.0.len() {
            self.pass(second, 4, 0);
            self.roll_back(self.sequence.len() - 3);
        }
        self.roll_back(shared(&second.0, &third.0).min(shared(&first.0, &third.0)));
        self.pass(third, third.0.len() - self.sequence.len(), 0);
        self.roll_back(0);
        self.pass(first, first.0.len(), 0); // all at once
        self.worst
    }
}
