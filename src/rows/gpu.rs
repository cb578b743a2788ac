//! Rows on a GPU as the decoder asks for them.

use super::device::{Ring, SLOTS, code};
use super::distribution::Distribution;
use super::edited::GpuEdits;
use super::filter::Filter;
use super::row::{DeviceEdits, DeviceRow, DeviceRows, DeviceSums};
use super::sums::GpuSums;
use crate::error::Result;

impl DeviceRows for Ring {
    fn scores(&self, position: usize) -> Result<&[f32]> {
        self.row(position).map(|row| &row[..self.vocab]).map_err(|error| self.failed(error))
    }

    fn score(&self, position: usize, token: usize) -> Result<f32> {
        self.score_at(position, token).map_err(|error| self.failed(error))
    }

    fn best(&self, position: usize) -> Option<(usize, f32, f32)> {
        let summary = self.holds(position).then(|| self.summary_at(position % SLOTS))?;
        Some((summary.best as usize, summary.max, summary.second))
    }

    fn distribution(&self, position: usize, filter: Filter) -> Option<Result<Distribution>> {
        let known = self.held[position % SLOTS] == (position, filter);
        if known { self.summary_at(position % SLOTS).distribution(filter) } else { None }
    }

    fn draw(&self, position: usize, share: f64) -> Result<Option<usize>> {
        let slot = position % SLOTS;
        match self.summary_at(slot).distribution(self.held[slot].1) {
            Some(kept) => {
                kept?;
                self.draw_at(position, share).map(Some).map_err(|error| self.failed(error))
            }
            None => Ok(None),
        }
    }

    fn knows(&self, position: usize, token: usize) -> bool {
        self.known_score(position, token).is_some()
    }

    fn learns(&self, position: usize) -> bool {
        self.holds(position)
    }

    fn place(&self, position: usize) -> Option<DeviceRow> {
        let slot = position % SLOTS;
        Some(DeviceRow {
            device: self.device.id(),
            address: self.ring.place() + self.place_of(slot) as u64,
            element: code(self.element),
            max: self.summary_at(slot).max,
        })
    }

    fn copied(&self) -> u64 {
        self.copied.get()
    }

    fn sums(&self) -> Option<Box<dyn DeviceSums>> {
        match GpuSums::new(&self.device, self.vocab) {
            Ok(sums) => Some(Box::new(sums?)),
            Err(error) => {
                tracing::warn!("rows are added up on the host, because the GPU has no room for the sum: {error}");
                None
            }
        }
    }
    fn edits(&self, slots: usize) -> Option<Box<dyn DeviceEdits>> {
        match GpuEdits::new(&self.device, self.vocab, slots) {
            Ok(edits) => Some(Box::new(edits?)),
            Err(error) => {
                tracing::warn!("rows are edited on the host, because the GPU has no room for them: {error}");
                None
            }
        }
    }
}
