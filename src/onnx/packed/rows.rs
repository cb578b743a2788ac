//! Rows of logits of packed passes: those of a pass, which its sequences share, and those that a sequence keeps.

use std::cell::OnceCell;
use std::sync::Arc;

use ort::value::TensorElementType;

use crate::cuda::HostBuffer;
use crate::rows::widen::{widen_bf16, widen_f16};

/// Rows of logits of one pass, as the model gives them. The sequences that it served share them.
pub enum PassRows {
    /// float32.
    Host(Vec<f32>),
    /// Memory that a GPU writes to, and the type of the numbers.
    Pinned(HostBuffer, TensorElementType),
}

impl PassRows {
    /// Copy `out.len()` numbers, from index `from` on, as float32.
    fn widen(&self, from: usize, out: &mut [f32]) {
        match self {
            PassRows::Host(rows) => out.copy_from_slice(&rows[from..from + out.len()]),
            PassRows::Pinned(rows, element) => {
                let part = |size: usize| &rows.bytes()[from * size..(from + out.len()) * size];
                match element {
                    TensorElementType::Float16 => widen_f16(bytemuck::cast_slice(part(2)), out),
                    TensorElementType::Bfloat16 => widen_bf16(bytemuck::cast_slice(part(2)), out),
                    _ => out.copy_from_slice(bytemuck::cast_slice(part(4))),
                }
            }
        }
    }
}

/// Rows of consecutive positions.
pub struct Span {
    /// The first position.
    pub position: usize,
    /// How many rows.
    pub count: usize,
    /// Numbers of a row.
    columns: usize,
    place: Place,
}

/// Where rows are.
enum Place {
    /// In those of a pass over this sequence alone, from this index on, as float32.
    Whole(Arc<PassRows>, usize),
    /// In those of a pass, from this index on. As float32, if somebody has read them and they are not.
    Shared(Arc<PassRows>, usize, OnceCell<Vec<f32>>),
    /// In memory of the sequence.
    Own(Vec<f32>),
}

impl Span {
    /// Rows `index` to `index + count` of a pass, the first one that of `position`. `several` sequences may have shared
    /// the pass.
    pub fn shared(
        rows: &Arc<PassRows>,
        index: usize,
        position: usize,
        count: usize,
        columns: usize,
        several: bool,
    ) -> Self {
        let place = match &**rows {
            PassRows::Host(_) if !several => Place::Whole(rows.clone(), index),
            _ => Place::Shared(rows.clone(), index, OnceCell::new()),
        };
        Span { position, count, columns, place }
    }

    /// Whether it has the row of a position.
    pub fn holds(&self, position: usize) -> bool {
        (self.position..self.position + self.count).contains(&position)
    }

    /// The row of a position that it has.
    pub fn row(&self, position: usize) -> &[f32] {
        let (index, columns) = (position - self.position, self.columns);
        let row = |rows: usize| (rows + index) * columns..(rows + index + 1) * columns;
        let (shared, first, widened) = match &self.place {
            Place::Own(own) => return &own[row(0)],
            Place::Whole(rows, first) => (rows, *first, None),
            Place::Shared(rows, first, widened) => (rows, *first, Some(widened)),
        };
        match (&**shared, widened) {
            (PassRows::Host(rows), _) => &rows[row(first)],
            (pinned, Some(widened)) => {
                let widen = || {
                    let mut rows = vec![0.0; self.count * columns];
                    pinned.widen(first * columns, &mut rows);
                    rows
                };
                &widened.get_or_init(widen)[row(0)]
            }
            (_, None) => unreachable!("whole rows are float32"),
        }
    }

    /// Copy the rows to memory of the sequence, so that the pass's memory is free for others. `spare` is such memory.
    pub fn take(&mut self, spare: &mut Vec<Vec<f32>>) {
        let Place::Shared(shared, first, widened) = &mut self.place else { return };
        let own = widened.take().unwrap_or_else(|| {
            let mut rows = spare.pop().unwrap_or_default();
            rows.resize(self.count * self.columns, 0.0);
            shared.widen(*first * self.columns, &mut rows);
            rows
        });
        self.place = Place::Own(own);
    }

    /// Give its memory to later spans.
    pub fn release(self, spare: &mut Vec<Vec<f32>>) {
        if let Place::Own(rows) = self.place
            && spare.is_empty()
        {
            spare.push(rows);
        }
    }

    /// Bytes of its rows.
    pub fn bytes(&self) -> usize {
        self.count * self.columns * size_of::<f32>()
    }
}
