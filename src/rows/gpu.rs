//! Rows on a GPU as the decoder asks for them, and sums and residuals of rows of several models.

use std::sync::Arc;

use bytemuck::Zeroable;
use ort::value::TensorElementType;

use super::device::{CHUNKS, Control, Ring, SLOTS, Summary, code, failed, token_of};
use super::distribution::Distribution;
use super::filter::Filter;
use super::row::{self, DeviceRow, DeviceRows, DeviceSums, Row};
use crate::cuda::{Device, HostBuffer, Queue, THREADS, argument};
use crate::error::{Error, Result};

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
            Some(kept) => self.draw_kept(slot, position, kept?, share).map(Some).map_err(|error| self.failed(error)),
            None => Ok(None),
        }
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
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
struct KernelTerm {
    row: u64,
    scale: f64,
    max: f32,
    rate: f32,
    element: i32,
    cut: i32,
    floor: f32,
    padding: i32,
}

/// Rows that kernels take at once.
const TERMS: usize = 8;

#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
struct KernelTerms {
    terms: [KernelTerm; TERMS],
    count: i32,
    vocab: i32,
    without: i32,
    padding: i32,
}

/// Computes with rows of several models on one GPU.
struct GpuSums {
    /// The sum, in the one slot there is.
    sum: Ring,
    control: HostBuffer,
    /// The sum of the residual in each chunk.
    sums: HostBuffer,
    drawn: HostBuffer,
    /// The parts of the last residual.
    terms: KernelTerms,
    device: Arc<Device>,
    vocab: usize,
}

impl GpuSums {
    fn new(device: &Arc<Device>, vocab: usize) -> ort::Result<Option<Self>> {
        let Some(sum) = Ring::with_slots(device, (vocab, vocab), TensorElementType::Float32, 1)? else {
            return Ok(None);
        };
        Ok(Some(GpuSums {
            sum,
            control: HostBuffer::zeroed(device, size_of::<Control>())?,
            sums: HostBuffer::zeroed(device, 8 * CHUNKS)?,
            drawn: HostBuffer::zeroed(device, size_of::<Summary>())?,
            terms: KernelTerms::zeroed(),
            device: device.clone(),
            vocab,
        }))
    }

    /// The parts as kernels take them; `None` if a row is on another GPU, or if they are too many.
    fn terms(&self, parts: impl Iterator<Item = row::Term>) -> Option<KernelTerms> {
        let mut terms = KernelTerms { vocab: self.vocab as i32, without: -1, ..KernelTerms::zeroed() };
        for row::Term { row, scale, distribution: Distribution { max, rate, floor, cut, .. } } in parts {
            let term = terms.terms.get_mut(terms.count as usize).filter(|_| row.device == self.device.id())?;
            let (row, element, cut) = (row.address, row.element, token_of(cut));
            *term = KernelTerm { row, scale, max, rate, element, cut, floor, padding: 0 };
            terms.count += 1;
        }
        Some(terms)
    }

    /// Put work on the stream and wait for it.
    fn work(&self, work: impl FnOnce(&Queue) -> ort::Result<()>) -> Result<()> {
        let waited = self.device.queue().and_then(|queue| {
            let queued = work(&queue);
            self.sum.wait(queue, queued)
        });
        waited.map_err(failed)
    }
}

impl DeviceSums for GpuSums {
    fn add(
        &mut self,
        parts: &mut dyn Iterator<Item = row::Term>,
        judge: Option<(DeviceRow, f32)>,
        filter: Filter,
        token: usize,
    ) -> Result<bool> {
        let judged = judge.map(|(row, _)| row::Term::of_scores(row, 0.0));
        let Some(mut terms) = self.terms(parts.chain(judged)) else { return Ok(false) };
        let (mut judged, mut floor) = (i32::from(judge.is_some()), judge.map_or(0.0, |(_, floor)| floor));
        self.sum.set_filter(filter);
        let control = self.sum.addressed(Control::of_one(filter, self.vocab, token));
        self.control.bytes_mut().copy_from_slice(bytemuck::bytes_of(&control));
        let control = self.control.bytes().as_ptr() as u64;
        self.work(|queue| {
            let mut out = self.sum.ring.place();
            let arguments =
                &mut [argument(&mut terms), argument(&mut judged), argument(&mut floor), argument(&mut out)];
            // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
            unsafe { queue.run(self.device.kernels()?.weigh, (132, 1, 1), THREADS as u32, arguments)? };
            self.sum.queue(queue, &self.sum.ring, 1, control)
        })?;
        self.sum.keep(0..1, 0);
        Ok(true)
    }

    fn sum(&self) -> Row<'_> {
        Row::Device(&self.sum, 0)
    }

    fn residual(&mut self, parts: &mut dyn Iterator<Item = row::Term>, certain: Option<usize>) -> Result<Option<f64>> {
        let Some(mut terms) = self.terms(parts) else { return Ok(None) };
        terms.without = certain.map_or(-1, token_of);
        let mut sums = self.sums.bytes().as_ptr() as u64;
        let arguments = &mut [argument(&mut terms), argument(&mut sums)];
        // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
        self.work(|queue| unsafe {
            queue.run(self.device.kernels()?.residual, (CHUNKS as u32, 1, 1), THREADS as u32, arguments)
        })?;
        self.terms = terms;
        Ok(Some(bytemuck::cast_slice::<u8, f64>(self.sums.bytes()).iter().sum()))
    }

    fn draw_residual(&self, share: f64) -> Result<usize> {
        let (mut left, mut chunk) = (share, 0);
        for (index, &sum) in bytemuck::cast_slice::<u8, f64>(self.sums.bytes()).iter().enumerate() {
            if sum > 0.0 {
                chunk = index as i32;
                if left < sum {
                    break;
                }
                left -= sum; // rounding may lead behind the last chunk; then the rest is too much of it
            }
        }
        let (mut terms, mut out) = (self.terms, self.drawn.bytes().as_ptr() as u64);
        let arguments = &mut [argument(&mut terms), argument(&mut chunk), argument(&mut left), argument(&mut out)];
        // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
        self.work(|queue| unsafe { queue.run(self.device.kernels()?.pick, (1, 1, 1), THREADS as u32, arguments) })?;
        let drawn: Summary = bytemuck::pod_read_unaligned(self.drawn.bytes());
        usize::try_from(drawn.token)
            .map_err(|_| Error::Internal("a draw from a residual on the GPU found no token".into()))
    }

    fn bytes(&self) -> usize {
        self.sum.bytes() + self.control.len() + self.sums.len() + self.drawn.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_kernels() {
        assert_eq!((size_of::<KernelTerm>(), size_of::<KernelTerms>()), (40, 40 * TERMS + 16));
    }
}
