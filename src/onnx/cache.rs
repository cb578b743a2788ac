//! The KV cache of one sequence: buffers that ONNX Runtime reads and writes, and the attention mask over their entries.

use std::ffi::c_void;
use std::sync::Arc;

use crate::cuda::{Device, DeviceBuffer};
use crate::error::{Error, Result};
use crate::export::{CacheKind, CacheTensor, Export, Rollback};
use crate::model::Memory;

/// The smallest capacity, in tokens.
const MIN_CAPACITY: usize = 256;

/// The cache is compacted once more than [`MIN_DEAD`] entries, and more than one for eight live ones, are dead.
const DEAD_SHARE: usize = 8;
const MIN_DEAD: usize = 16;

/// A buffer on the host or on a GPU, in units of four bytes. That fits every element type and keeps it aligned.
pub enum Storage {
    /// Host memory.
    Host(Vec<u32>),
    /// GPU memory.
    Device(DeviceBuffer),
}

impl Storage {
    /// A buffer of zeroes on a device, or on the host.
    fn zeroed(device: Option<&Arc<Device>>, units: usize) -> Result<Self> {
        Ok(match device {
            None => Storage::Host(zeroes(units)?),
            Some(device) => {
                let bytes = units
                    .checked_mul(4)
                    .ok_or_else(|| Error::Runtime("a cache would be larger than any GPU's memory".into()))?;
                let failed = |error| Error::Runtime(format!("a cache of {bytes} bytes: {error}"));
                Storage::Device(DeviceBuffer::zeroed(device, bytes).map_err(failed)?)
            }
        })
    }

    fn empty() -> Self {
        Storage::Host(Vec::new())
    }

    /// Its length in units.
    pub fn len(&self) -> usize {
        match self {
            Storage::Host(units) => units.len(),
            Storage::Device(buffer) => buffer.len() / 4,
        }
    }

    /// Its address in host or device memory.
    pub fn address(&mut self) -> *mut c_void {
        match self {
            Storage::Host(units) => units.as_mut_ptr().cast(),
            Storage::Device(buffer) => buffer.address(),
        }
    }

    /// Copy `runs` runs of `units` units from another buffer of the same kind.
    ///
    /// `places` are the starts of the first run, and `pitch` the distances between runs, both as (source, destination).
    fn copy_runs(
        &mut self,
        from: &Storage,
        places: (usize, usize),
        pitch: (usize, usize),
        units: usize,
        runs: usize,
    ) -> Result<()> {
        match (self, from) {
            (Storage::Host(to), Storage::Host(from)) => {
                for run in 0..runs {
                    let (from_place, to_place) = (places.0 + run * pitch.0, places.1 + run * pitch.1);
                    to[to_place..to_place + units].copy_from_slice(&from[from_place..from_place + units]);
                }
                Ok(())
            }
            (Storage::Device(to), Storage::Device(from)) => to
                .copy_runs(from, (4 * places.0, 4 * places.1), (4 * pitch.0, 4 * pitch.1), 4 * units, runs)
                .map_err(|error| Error::Runtime(format!("the cache could not be moved: {error}"))),
            _ => Err(Error::Internal("a cache is on the host and on a GPU".into())),
        }
    }
}

/// Zeroes that take no physical memory before they are touched. Running out of memory is an error, not an abort.
fn zeroes(units: usize) -> Result<Vec<u32>> {
    let failed = |()| Error::Runtime(format!("not enough memory for a cache of {} bytes", units.saturating_mul(4)));
    bytemuck::allocation::try_zeroed_vec(units).map_err(failed)
}

/// The most dead entries beside `live` live ones.
fn most_dead(live: usize) -> usize {
    MIN_DEAD.max(live / DEAD_SHARE)
}

/// The keys and values of one sequence.
///
/// An entry is what the cache holds of one token. A rollback leaves entries in place. A shared cache overwrites them in
/// the next pass. In a concatenated cache they are dead, masked out, until the cache is compacted.
pub struct Cache {
    kind: CacheKind,
    rollback: Rollback,
    /// The GPU of the buffers. `None` means host memory.
    device: Option<Arc<Device>>,
    tensors: Vec<CachedTensor>,
    /// Tokens that fit without growing.
    capacity: usize,
    /// The bounds of the capacity, in tokens.
    least: usize,
    limit: usize,
    /// The attention mask: 1 for each live entry, 0 for each dead one, and during a pass 1 for each new token.
    mask: Vec<i64>,
    /// Entries before the prepared pass, dead ones included.
    entries: usize,
    /// Live entries, which is the number of tokens seen.
    len: usize,
    /// The most bytes in use while the cache grew and held old and new buffers.
    peak_bytes: usize,
}

/// One tensor of the cache: runs of entries, one run for each head or one for all heads.
struct CachedTensor {
    runs: usize,
    /// The size of an entry in a run, in units.
    units: usize,
    past: Storage,
    /// Empty if past and present are one buffer.
    present: Storage,
}

impl CachedTensor {
    /// Units that a number of tokens takes.
    fn size(&self, tokens: usize) -> Result<usize> {
        let size = self.runs.checked_mul(self.units).and_then(|size| size.checked_mul(tokens));
        size.ok_or_else(|| Error::Runtime(format!("a cache for {tokens} tokens would be larger than any memory")))
    }
}

impl Cache {
    /// An empty cache on a device, or on the host. Buffers are allocated by [`Cache::prepare`].
    pub fn new(export: &Export, device: Option<&Arc<Device>>) -> Result<Self> {
        let cached = |tensor: &CacheTensor| {
            let (runs, bytes) = tensor.layout();
            if bytes % 4 != 0 {
                return Err(Error::Unsupported(format!(
                    "the cache entries of {:?} have {bytes} bytes, which is not a multiple of four; export the cache \
                     in another type",
                    tensor.past
                )));
            }
            Ok(CachedTensor { runs, units: bytes / 4, past: Storage::empty(), present: Storage::empty() })
        };
        Ok(Cache {
            kind: export.cache_kind,
            rollback: export.rollback,
            device: device.cloned(),
            tensors: export.cache.iter().map(cached).collect::<Result<_>>()?,
            capacity: 0,
            least: export.min_capacity.max(MIN_CAPACITY.min(export.context_length)),
            limit: export.context_length,
            mask: Vec::new(),
            entries: 0,
            len: 0,
            peak_bytes: 0,
        })
    }

    /// The memory of its buffers and its mask.
    pub fn memory(&self) -> Memory {
        let units: usize = self.tensors.iter().map(|tensor| tensor.past.len() + tensor.present.len()).sum();
        let bytes = 4 * units + size_of::<i64>() * self.mask.capacity();
        Memory { bytes, peak_bytes: self.peak_bytes.max(bytes) }
    }

    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Entries before the prepared pass, dead ones included.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Tokens that fit without growing.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The capacity after making room for a number of tokens.
    pub fn room(&self, tokens: usize) -> usize {
        if tokens <= self.capacity { self.capacity } else { self.grown(tokens) }
    }

    /// The attention mask of the prepared pass.
    pub fn mask(&mut self) -> &mut [i64] {
        &mut self.mask
    }

    /// Forget all tokens from index `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        if self.kind == CacheKind::Concatenated && len > 0 {
            let live = self.mask.iter_mut().rev().filter(|entry| **entry == 1).take(self.len - len);
            live.for_each(|entry| *entry = 0);
        } else {
            self.entries = len;
            self.mask.truncate(len);
        }
        self.len = len;
    }

    /// Set all buffers to zero, as if they were new.
    pub fn clear(&mut self) -> Result<()> {
        self.peak_bytes = 0;
        let failed = |error| Error::Runtime(format!("the cache could not be cleared: {error}"));
        self.tensors.iter_mut().flat_map(|tensor| [&mut tensor.past, &mut tensor.present]).try_for_each(|storage| {
            match storage {
                Storage::Host(units) => {
                    units.fill(0);
                    Ok(())
                }
                Storage::Device(buffer) => buffer.clear().map_err(failed),
            }
        })
    }

    /// Make room for a pass of `width` tokens. Returns whether buffers have moved.
    ///
    /// Running out of memory is an error and leaves the cache as it was.
    pub fn prepare(&mut self, width: usize) -> Result<bool> {
        let dead = self.entries - self.len;
        // A graph may look up entries in tables that are only as long as the context.
        let crowded = self.entries + width > self.limit;
        if dead > 0 && (self.rollback == Rollback::Compact || crowded || dead > most_dead(self.len)) {
            self.compact()?;
        }
        let total = self.entries + width;
        if total > self.mask.capacity() {
            // The mask grows as seldom as the buffers.
            let failed = |_| Error::Runtime(format!("not enough memory for a mask of {total} tokens"));
            self.mask.try_reserve_exact(self.grown(total) - self.mask.len()).map_err(failed)?;
        }
        let moved = self.make_room(total)?;
        self.mask.resize(total, 1);
        Ok(moved)
    }

    fn make_room(&mut self, total: usize) -> Result<bool> {
        let (capacity, has_present) = match self.kind {
            CacheKind::None => return Ok(false),
            CacheKind::Shared => return self.grow(total),
            CacheKind::Fixed { capacity, in_place } => (capacity, !in_place),
            CacheKind::Concatenated => (self.grown(total).max(self.capacity), true),
        };
        let moved = self.capacity < capacity;
        let zeroes = |units| Storage::zeroed(self.device.as_ref(), units);
        for tensor in &mut self.tensors {
            // The present holds nothing yet, so it is freed before a larger one is allocated. The past grows when the
            // two have swapped.
            if has_present && tensor.present.len() < tensor.size(capacity)? {
                tensor.present = Storage::empty();
                tensor.present = zeroes(tensor.size(capacity)?)?;
            }
            if tensor.past.len() == 0 {
                let fixed = matches!(self.kind, CacheKind::Fixed { .. });
                tensor.past = zeroes(if fixed { tensor.size(capacity)? } else { 1 })?; // an empty past needs an address
            }
        }
        self.capacity = capacity;
        Ok(moved)
    }

    /// End the prepared pass: keep its entries if it succeeded, and forget them otherwise.
    pub fn finish_pass(&mut self, succeeded: bool) {
        if !succeeded {
            self.mask.truncate(self.entries);
            return;
        }
        self.len += self.mask.len() - self.entries;
        self.entries = self.mask.len();
        if matches!(self.kind, CacheKind::Concatenated | CacheKind::Fixed { in_place: false, .. }) {
            for tensor in &mut self.tensors {
                std::mem::swap(&mut tensor.past, &mut tensor.present);
            }
        }
    }

    /// Past and present of each tensor, in the order of the export. The present is `None` if both are one buffer.
    pub fn buffers(&mut self) -> impl Iterator<Item = (&mut Storage, Option<&mut Storage>)> {
        self.tensors.iter_mut().map(|tensor| {
            let present = (tensor.present.len() > 0).then_some(&mut tensor.present);
            (&mut tensor.past, present)
        })
    }

    fn grown(&self, tokens: usize) -> usize {
        tokens.next_power_of_two().min(self.limit.max(tokens)).max(self.least)
    }

    fn grow(&mut self, tokens: usize) -> Result<bool> {
        let capacity = self.room(tokens);
        if capacity == self.capacity {
            return Ok(false);
        }
        // All buffers are allocated before any is filled, so a failure changes nothing. Memory that is not written
        // takes no physical pages, so the peak is the new cache and one old buffer.
        let zeroes = |units| Storage::zeroed(self.device.as_ref(), units);
        let grown = self.tensors.iter().map(|tensor| zeroes(tensor.size(capacity)?)).collect::<Result<Vec<_>>>()?;
        let largest = self.tensors.iter().map(|tensor| tensor.past.len()).max().unwrap_or(0);
        for (tensor, mut grown) in self.tensors.iter_mut().zip(grown) {
            if self.len > 0 {
                let pitch = (self.capacity * tensor.units, capacity * tensor.units);
                grown.copy_runs(&tensor.past, (0, 0), pitch, self.len * tensor.units, tensor.runs)?;
            }
            tensor.past = grown;
        }
        self.capacity = capacity;
        self.peak_bytes = self.memory().bytes + 4 * largest;
        Ok(true)
    }

    /// Move the live entries together. An error leaves them where they are.
    fn compact(&mut self) -> Result<()> {
        match &self.device {
            None => self.compact_in_place(),
            Some(device) => {
                let moved = self.tensors.iter().map(|tensor| self.compacted(tensor, device));
                let moved = moved.collect::<Result<Vec<_>>>()?;
                self.tensors.iter_mut().zip(moved).for_each(|(tensor, moved)| tensor.past = moved);
            }
        }
        self.entries = self.len;
        self.mask.clear();
        self.mask.resize(self.len, 1);
        Ok(())
    }

    fn compact_in_place(&mut self) {
        for tensor in &mut self.tensors {
            let Storage::Host(past) = &mut tensor.past else { continue };
            let mut to = 0;
            for run in 0..tensor.runs {
                let mut from = run * self.entries * tensor.units;
                for stretch in self.mask[..self.entries].chunk_by(|a, b| a == b) {
                    let size = stretch.len() * tensor.units;
                    if stretch[0] == 1 {
                        if to != from {
                            past.copy_within(from..from + size, to); // always towards the front
                        }
                        to += size;
                    }
                    from += size;
                }
            }
        }
    }

    /// A copy of the past without dead entries. Copies on a GPU cannot overlap, so it needs a new buffer.
    fn compacted(&self, tensor: &CachedTensor, device: &Arc<Device>) -> Result<Storage> {
        let mut moved = Storage::zeroed(Some(device), tensor.past.len())?;
        let pitch = (self.entries * tensor.units, self.len * tensor.units);
        let (mut from, mut to) = (0, 0);
        for stretch in self.mask[..self.entries].chunk_by(|a, b| a == b) {
            let size = stretch.len() * tensor.units;
            if stretch[0] == 1 {
                moved.copy_runs(&tensor.past, (from, to), pitch, size, tensor.runs)?;
                to += size;
            }
            from += size;
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(kind: CacheKind, rollback: Rollback, limit: usize) -> Cache {
        let tensor = || CachedTensor { runs: 2, units: 3, past: Storage::empty(), present: Storage::empty() };

        Cache {
            kind,
            rollback,
            device: None,
            tensors: vec![tensor(), tensor()],
            capacity: 0,
            least: MIN_CAPACITY.min(limit),
            limit,
            mask: Vec::new(),
            entries: 0,
            len: 0,
            peak_bytes: 0,
        }
    }

    fn units(storage: &mut Storage) -> &mut [u32] {
        match storage {
            Storage::Host(units) => units,
            Storage::Device(_) => panic!("the cache is on the host"),
        }
    }

    /// The content of one unit of an entry.
    fn mark(token: u32, run: usize, unit: usize) -> u32 {
        token * 100 + run as u32 * 10 + unit as u32
    }

    /// Run a pass of some tokens: write entries as the operators of each kind of cache do.
    fn pass(cache: &mut Cache, tokens: &[u32]) {
        cache.prepare(tokens.len()).unwrap();
        let (entries, total, capacity) = (cache.entries(), cache.entries() + tokens.len(), cache.capacity());
        let kind = cache.kind;
        for (past, present) in cache.buffers() {
            let (past, present) = (units(past), present.map(units));
            for run in 0..2 {
                let place = |entry: usize, length: usize| (run * length + entry) * 3;
                match kind {
                    CacheKind::Concatenated => {
                        let present = present.as_deref().map(|p| p.len()).unwrap();
                        assert!(present >= place(total, total) || run == 0);
                    }
                    _ => assert!(past.len() >= place(total - 1, capacity)),
                }
            }
            let write = |to: &mut [u32], length: usize, entry: usize, run: usize, token: u32| {
                for unit in 0..3 {
                    to[(run * length + entry) * 3 + unit] = mark(token, run, unit);
                }
            };
            match present {
                Some(present) if kind == CacheKind::Concatenated => {
                    for run in 0..2 {
                        let from = run * entries * 3;
                        let to = run * total * 3;
                        present[to..to + entries * 3].copy_from_slice(&past[from..from + entries * 3]);
                        tokens.iter().enumerate().for_each(|(i, &t)| write(present, total, entries + i, run, t));
                    }
                }
                Some(present) => {
                    present.copy_from_slice(past);
                    for run in 0..2 {
                        tokens.iter().enumerate().for_each(|(i, &t)| write(present, capacity, entries + i, run, t));
                    }
                }
                None => {
                    for run in 0..2 {
                        tokens.iter().enumerate().for_each(|(i, &t)| write(past, capacity, entries + i, run, t));
                    }
                }
            }
        }
        cache.finish_pass(true);
    }

    /// Check that the live entries of the cache hold what was written.
    fn check(cache: &mut Cache, expected: &[u32]) {
        assert_eq!(cache.len(), expected.len());
        let (entries, capacity, kind) = (cache.entries(), cache.capacity(), cache.kind);
        let mask: Vec<i64> = cache.mask().to_vec();
        assert_eq!(mask.len(), entries);
        let length = if kind == CacheKind::Concatenated { entries } else { capacity };
        for (past, _) in cache.buffers() {
            let past = units(past);
            for run in 0..2 {
                let live = (0..entries).filter(|&entry| mask[entry] == 1);
                let found: Vec<u32> = live.map(|entry| past[(run * length + entry) * 3 + 2]).collect();
                assert_eq!(found, expected.iter().map(|&token| mark(token, run, 2)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn every_kind_keeps_its_live_entries() {
        for (kind, rollback) in [
            (CacheKind::Shared, Rollback::Shorten),
            (CacheKind::Fixed { capacity: 700, in_place: true }, Rollback::Shorten),
            (CacheKind::Fixed { capacity: 700, in_place: false }, Rollback::Shorten),
            (CacheKind::Concatenated, Rollback::Mask),
            (CacheKind::Concatenated, Rollback::Compact),
        ] {
            let mut cache = cache(kind, rollback, 700);
            let mut tokens = Vec::new();
            for step in 0..200u32 {
                // widths of 1 to 4, and every third step takes up to 3 back
                let new: Vec<u32> = (0..step % 4 + 1).map(|i| step * 10 + i).collect();
                pass(&mut cache, &new);
                tokens.extend_from_slice(&new);
                check(&mut cache, &tokens);
                if step % 3 == 0 {
                    tokens.truncate(tokens.len() - (step as usize % 4).min(tokens.len()));
                    cache.truncate(tokens.len());
                    check(&mut cache, &tokens);
                }
                let dead = cache.entries() - cache.len();
                assert!(dead <= most_dead(cache.len()) + 4, "{dead} dead of {}", cache.entries());
            }
            assert!(tokens.len() > MIN_CAPACITY, "{}", tokens.len());
            cache.truncate(0);
            check(&mut cache, &[]);
            pass(&mut cache, &[1, 2]);
            check(&mut cache, &[1, 2]);
        }
    }

    #[test]
    fn a_failed_pass_changes_nothing() {
        for kind in [CacheKind::Shared, CacheKind::Concatenated] {
            let mut cache = cache(kind, Rollback::Mask, 100);
            pass(&mut cache, &[1, 2, 3]);
            cache.truncate(2);
            cache.prepare(4).unwrap();
            cache.finish_pass(false);
            check(&mut cache, &[1, 2]);
        }
    }

    #[test]
    fn a_shared_cache_never_outgrows_the_context() {
        let mut cache = cache(CacheKind::Shared, Rollback::Shorten, 1000);
        assert!(cache.prepare(1).unwrap());
        assert_eq!(cache.capacity(), MIN_CAPACITY);
        cache.finish_pass(true);
        assert!(!cache.prepare(MIN_CAPACITY - 1).unwrap());
        cache.finish_pass(true);
        assert!(cache.prepare(1).unwrap());
        assert_eq!(cache.capacity(), 2 * MIN_CAPACITY);
        cache.finish_pass(true);
        cache.prepare(700).unwrap();
        assert_eq!(cache.capacity(), 1000);
    }

    #[test]
    fn a_shared_cache_has_room_for_a_window() {
        let mut cache = Cache { least: 3000, ..cache(CacheKind::Shared, Rollback::Shorten, 2000) };
        assert!(cache.prepare(1).unwrap());
        assert_eq!(cache.capacity(), 3000);
    }

    #[test]
    fn dead_entries_are_removed_at_the_end_of_the_context() {
        let mut cache = cache(CacheKind::Concatenated, Rollback::Mask, 40);
        let mut tokens = Vec::new();
        while tokens.len() < 40 {
            let new: Vec<u32> = (0..4.min(40 - tokens.len() as u32)).map(|i| 100 + tokens.len() as u32 + i).collect();
            pass(&mut cache, &new);
            assert!(cache.entries() <= 40, "{} entries", cache.entries());
            tokens.push(new[0]);
            cache.truncate(tokens.len());
            check(&mut cache, &tokens);
        }
    }

    #[test]
    fn a_cache_larger_than_memory_is_an_error() {
        for kind in [CacheKind::Shared, CacheKind::Concatenated, CacheKind::Fixed { capacity: 1 << 50, in_place: true }]
        {
            let mut cache = cache(kind, Rollback::Shorten, usize::MAX);
            cache.tensors[1].units = 1 << 50;
            assert_eq!(cache.prepare(3).unwrap_err().code(), 4, "{kind:?}");
            assert_eq!((cache.len(), cache.entries(), cache.mask().len()), (0, 0, 0));
        }
        // A mask of too many tokens is an error too.
        let mut cache = Cache { least: 1 << 60, ..cache(CacheKind::None, Rollback::Shorten, usize::MAX) };
        assert_eq!(cache.prepare(3).unwrap_err().code(), 4);
    }
}
