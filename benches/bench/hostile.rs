//! Models that make speculation fail: from some position on, a real model's logits are those of other tokens, or its
//! passes take longer.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cos::error::Result;
use cos::model::{Cancel, Interrupt, Memory, Model, Pass, Report, Sequence};
use cos::rows::Row;

/// A model that makes speculation fail.
pub struct Hostile {
    pub inner: Arc<dyn Model>,
    /// From this position on, its logits are those of other tokens.
    pub wrong_from: usize,
    /// From this position on, its passes take [`SLOWER`] times as long.
    pub slow_from: usize,
}

/// A position that no text reaches.
pub const NEVER: usize = usize::MAX;

const SLOWER: u32 = 16;

/// The number of rows that are kept, more than any draft needs.
const ROWS: usize = 256;

struct HostileSequence {
    inner: Box<dyn Sequence>,
    rows: Vec<f32>,
    vocab_size: usize,
    wrong_from: usize,
}

impl HostileSequence {
    fn slot(&self, position: usize) -> std::ops::Range<usize> {
        let start = position % ROWS * self.vocab_size;
        start..start + self.vocab_size
    }
}

impl Sequence for HostileSequence {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn truncate(&mut self, len: usize) {
        self.inner.truncate(len);
    }

    fn row(&self, position: usize) -> Row<'_> {
        if position <= self.wrong_from { self.inner.row(position) } else { Row::Host(&self.rows[self.slot(position)]) }
    }

    fn memory(&self) -> Memory {
        self.inner.memory()
    }
}

impl Model for Hostile {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length()
    }

    fn max_pass(&self) -> usize {
        self.inner.max_pass().min(ROWS)
    }

    fn cost(&self) -> u64 {
        self.inner.cost()
    }

    fn pass_times(&self) -> &[(usize, Duration)] {
        self.inner.pass_times()
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        let vocab_size = self.vocab_size();
        let rows = if self.wrong_from == NEVER { Vec::new() } else { vec![0.0; ROWS * vocab_size] };
        let inner = self.inner.start(cancel)?;
        Ok(Box::new(HostileSequence { inner, rows, vocab_size, wrong_from: self.wrong_from }))
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> std::result::Result<Report, Interrupt> {
        let mut total = Report { elapsed: Duration::ZERO, is_usual: true };
        for pass in batch {
            let sequence: &mut HostileSequence =
                (pass.sequence as &mut dyn Any).downcast_mut().expect("a sequence of another model");
            let start = sequence.len();
            let Report { elapsed, is_usual } =
                self.inner.forward(&mut [Pass { sequence: sequence.inner.as_mut(), ..*pass }])?;
            let end = sequence.len();
            for position in (start + 1..=end).filter(|&p| p > self.wrong_from && p >= pass.keep) {
                let slot = sequence.slot(position);
                // Rotate the row by half a vocabulary, so that likely tokens become unlikely ones.
                let (front, back) = sequence.rows[slot].split_at_mut(self.vocab_size() / 2);
                let row = sequence.inner.row(position).scores()?;
                let (own_front, own_back) = row.split_at(row.len() - front.len());
                back.copy_from_slice(own_front);
                front.copy_from_slice(own_back);
            }
            if end > self.slow_from {
                let wait = (SLOWER - 1) * elapsed;
                let started = Instant::now();
                while started.elapsed() < wait {
                    std::hint::spin_loop();
                }
                total.elapsed += wait;
            }
            total.elapsed += elapsed;
            total.is_usual &= is_usual;
        }
        Ok(total)
    }
}
