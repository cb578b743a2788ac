//! Rows of one model with edits, on its GPU. The kernels that make sums make them, as sums of one term.

use std::sync::Arc;

use ort::value::TensorElementType;

use super::device::{Ring, SLOTS};
use super::filter::Filter;
use super::records::Control;
use super::row::{DeviceEdits, DeviceRows, PassUniforms, Row};
use crate::cuda::Device;
use crate::error::Result;

/// Marks a slot that holds no row.
const NO_ROW: usize = usize::MAX;

/// The edited rows of some positions in a row: that of position `p` is in slot `p % slots`.
pub(super) struct GpuEdits {
    /// It knows rows by their slots.
    ring: Ring,
    /// By slot: the position.
    stamps: Vec<usize>,
    /// Positions whose rows are asked for.
    asked: Vec<usize>,
}

impl GpuEdits {
    /// None are held. `None` if the kernels cannot be loaded, or if the slots are too many.
    pub fn new(device: &Arc<Device>, vocab: usize, slots: usize) -> ort::Result<Option<Self>> {
        if slots > SLOTS {
            return Ok(None);
        }
        let ring = Ring::with_slots(device, (vocab, vocab), TensorElementType::Float32, slots)?;
        Ok(ring.map(|ring| GpuEdits { ring, stamps: vec![NO_ROW; slots], asked: Vec::with_capacity(slots) }))
    }

    fn slot(&self, position: usize) -> usize {
        position % self.stamps.len()
    }

    /// The number of its GPU.
    pub fn device(&self) -> i32 {
        self.ring.device.id()
    }

    /// The row of a position is asked for. Returns where kernels put it, and what they do with it.
    pub fn ask(
        &mut self,
        position: usize,
        filter: Filter,
        token: Option<usize>,
        uniforms: Option<PassUniforms>,
    ) -> Control {
        let slot = self.slot(position);
        assert!(self.asked.iter().all(|&other| self.slot(other) != slot), "two rows are asked for in one place");
        self.stamps[slot] = NO_ROW;
        self.asked.push(position);
        self.ring.prepare(filter, None);
        self.ring.addressed(Control::of_one(filter, self.ring.vocab, token, uniforms).in_slot(slot))
    }
}

impl DeviceEdits for GpuEdits {
    fn slots(&self) -> usize {
        self.stamps.len()
    }

    fn row(&self, position: usize) -> Option<Row<'_>> {
        let slot = self.slot(position);
        (self.stamps[slot] == position).then_some(Row::Device(&self.ring, slot))
    }

    fn awaits(&self) -> bool {
        !self.asked.is_empty()
    }

    fn settle(&mut self, outcome: &Result<()>) {
        for position in self.asked.drain(..).filter(|_| outcome.is_ok()) {
            let slot = position % self.stamps.len();
            self.ring.keep(slot..slot + 1, 0);
            self.stamps[slot] = position;
        }
    }

    fn truncate(&mut self, len: usize) {
        self.asked.clear();
        self.stamps.iter_mut().filter(|stamp| **stamp > len).for_each(|stamp| *stamp = NO_ROW);
    }

    fn forget(&mut self) {
        self.asked.clear();
        self.stamps.fill(NO_ROW);
    }

    fn copied(&self) -> u64 {
        DeviceRows::copied(&self.ring)
    }

    fn bytes(&self) -> usize {
        self.ring.bytes()
    }
}
