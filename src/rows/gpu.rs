//! Rows on a GPU as the decoder asks for them, and sums and residuals of rows of several models.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use ort::value::TensorElementType;

use super::device::{CHUNKS, Control, Drawn, Ring, SLOTS, code, failed, token_of};
use super::distribution::Distribution;
use super::filter::Filter;
use super::row::{self, DeviceRow, DeviceRows, DeviceSums, Row};
use crate::cuda::{Device, DeviceBuffer, HostBuffer, Queue, THREADS, argument};
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
            Some(kept) => {
                kept?;
                self.draw_at(position, share).map(Some).map_err(|error| self.failed(error))
            }
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

/// A residual that was made, and the last token that was drawn from it; none where it is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
struct Residual {
    total: f64,
    drawn: Drawn,
}

/// Computes with rows of several models on one GPU.
struct GpuSums {
    /// The sum, in the one slot there is.
    sum: Ring,
    control: HostBuffer,
    /// The sum of the residual in each chunk.
    sums: DeviceBuffer,
    /// The [`Residual`] that was made last. The GPU writes it.
    residual: HostBuffer,
    /// Its parts.
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
            sums: DeviceBuffer::zeroed(device, 8 * CHUNKS)?,
            residual: HostBuffer::zeroed(device, size_of::<Residual>())?,
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

    /// Queue the kernel that draws from the residual whose chunks were summed: at `share`, or if that is negative, at
    /// `uniform` of the whole.
    fn queue_pick(&self, queue: &Queue, terms: &KernelTerms, mut uniform: f64, mut share: f64) -> ort::Result<()> {
        let (mut terms, mut sums, mut out) = (*terms, self.sums.place(), self.residual.bytes().as_ptr() as u64);
        let arguments = &mut [
            argument(&mut terms),
            argument(&mut sums),
            argument(&mut uniform),
            argument(&mut share),
            argument(&mut out),
        ];
        // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
        unsafe { queue.run(self.device.kernels()?.pick, (1, 1, 1), THREADS as u32, arguments) }
    }

    /// The residual that was made last.
    fn made(&self) -> Residual {
        bytemuck::pod_read_unaligned(self.residual.bytes())
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
        uniform: Option<f64>,
    ) -> Result<bool> {
        let judged = judge.map(|(row, _)| row::Term::of_scores(row, 0.0));
        let Some(mut terms) = self.terms(parts.chain(judged)) else { return Ok(false) };
        let (mut judged, mut floor) = (i32::from(judge.is_some()), judge.map_or(0.0, |(_, floor)| floor));
        self.sum.prepare(filter, uniform.map(|uniform| [uniform; 2]));
        let control = self.sum.addressed(Control::of_one(filter, self.vocab, token, uniform));
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

    fn residual(
        &mut self,
        parts: &mut dyn Iterator<Item = row::Term>,
        certain: Option<usize>,
        uniform: Option<f64>,
    ) -> Result<Option<f64>> {
        let Some(mut terms) = self.terms(parts) else { return Ok(None) };
        terms.without = certain.map_or(-1, token_of);
        let mut sums = self.sums.place();
        let arguments = &mut [argument(&mut terms), argument(&mut sums)];
        self.work(|queue| {
            // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
            unsafe {
                queue.run(self.device.kernels()?.residual, (CHUNKS as u32, 1, 1), THREADS as u32, arguments)?;
            }
            self.queue_pick(queue, &terms, uniform.unwrap_or(0.0), -1.0)
        })?;
        self.terms = terms;
        Ok(Some(self.made().total))
    }

    fn draw_residual(&self, share: f64) -> Result<usize> {
        let mut drawn = self.made().drawn;
        if drawn.share != share {
            self.work(|queue| self.queue_pick(queue, &self.terms, 0.0, share))?;
            drawn = self.made().drawn;
        }
        usize::try_from(drawn.token)
            .map_err(|_| Error::Internal("a draw from a residual on the GPU found no token".into()))
    }

    fn bytes(&self) -> usize {
        self.sum.bytes() + self.control.len() + self.sums.len() + self.residual.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_kernels() {
        assert_eq!((size_of::<KernelTerm>(), size_of::<KernelTerms>()), (40, 40 * TERMS + 16));
        assert_eq!(size_of::<Residual>(), 24);
    }
}
