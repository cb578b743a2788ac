//! Language models as the decoder sees them: a token sequence goes in, rows of logits come out.
//!
//! The decoder knows nothing of ONNX Runtime, and models know nothing of combination or acceptance.

pub mod graphs;
pub mod limited;
pub mod overlap;
pub mod rehearsal;
pub mod scripted;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::rows::{DeviceRows, Filter, PassUniforms, Row};

/// Widths whose passes are timed when a model is loaded: many for short drafts, one for long ones.
pub const TIMED_WIDTHS: [usize; 7] = [1, 2, 3, 4, 6, 8, 16];

/// A language model: its weights, shared by any number of sequences and threads.
pub trait Model: Send + Sync {
    /// The name that messages use.
    fn name(&self) -> &str;

    /// Number of logits in a row.
    fn vocab_size(&self) -> usize;

    /// Most tokens that a sequence may hold.
    fn context_length(&self) -> usize;

    /// Most tokens of one sequence in one pass. Longer runs are cut into chunks of this size, which bounds the memory
    /// for logits.
    fn max_pass(&self) -> usize;

    /// Whether one pass over several sequences costs less than a pass over each, one after another. Then passes of
    /// several sessions are combined.
    fn batches(&self) -> bool {
        false
    }

    /// Most tokens of all sequences together in one pass. At least [`Model::max_pass`].
    fn max_batch_tokens(&self) -> usize {
        self.max_pass()
    }

    /// Reserve the memory that a pass takes, unless that was done. What sessions that were started later hold may be
    /// taken for it; they have to compute it anew. So a session waits for older ones only (see [`Cancel::age`]), and no
    /// two sessions wait for each other, whatever models they use.
    ///
    /// To be asked right before [`Model::forward`], for all passes that wait, those of the oldest sessions first.
    fn admit(&self, pass: &mut Pass<'_>) -> Admission {
        Admission::Whole(pass.tokens.len())
    }

    /// What [`Error::NoMemory`] says of a pass that is refused.
    fn no_memory(&self) -> Error {
        Error::NoMemory(format!("the sequences of {} use all of its memory", self.name()))
    }

    /// Cost of a pass relative to other models, such as the bytes of the weights. It never changes.
    fn cost(&self) -> u64;

    /// Times of passes on top of a short cache, measured when the model was loaded, by width in tokens, the narrowest
    /// first. Empty if nothing was measured. Widths that do not fit are left out.
    fn pass_times(&self) -> &[(usize, Duration)] {
        &[]
    }

    /// A description for people, a part of `cos_engine_describe`.
    fn describe(&self) -> Value {
        json!({ "name": self.name(), "vocab_size": self.vocab_size(), "context_length": self.context_length() })
    }

    /// The number of passes captured on a GPU so far, and why no more are, if that is so. `None` for a model that is
    /// not on a GPU.
    fn captured(&self) -> Option<(u64, Option<&str>)> {
        None
    }

    /// Most sizes of passes for which it keeps what it has prepared. With more, it forgets those that were used least
    /// recently.
    fn kept_sizes(&self) -> usize {
        usize::MAX
    }

    /// Start an empty sequence. Its passes end early after [`Cancel::request`].
    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>>;

    /// Start a sequence of another session with the tokens of one of this model, or with a beginning of them: with as
    /// many as cost no pass. No rows are asked for that it had before.
    fn fork(&self, _sequence: &dyn Sequence, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        self.start(cancel)
    }

    /// Whether [`Model::launch`] can leave passes running.
    fn overlaps(&self) -> bool {
        false
    }

    /// Start the pass that [`Model::forward`] is then called for with the same batch, and return without waiting, so
    /// that other models run meanwhile. Returns whether the pass is running. If not, `forward` does everything, and
    /// says what went wrong. [`Sequence::truncate`] gives a running pass over one sequence up, whatever the length.
    fn launch(&self, _batch: &mut [Pass<'_>]) -> bool {
        false
    }

    /// Run one pass over a batch of sequences that this model started.
    ///
    /// Each sequence is extended by its tokens and yields one row of logits after each of them. On an error no sequence
    /// is changed. A pass without tokens is one that was admitted in part; see [`Admission::Part`].
    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt>;
}

/// Whether there is memory for a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It can run over so many tokens: its own, and those whose memory was taken from its sequence.
    Whole(usize),
    /// So many tokens of its sequence are to be computed anew before, because their memory was taken: by a pass without
    /// tokens. Then the pass is to be admitted again.
    Part(usize),
    /// There is not enough memory now.
    Waits,
}

/// One sequence's share of a pass.
pub struct Pass<'a> {
    /// The sequence to extend.
    pub sequence: &'a mut dyn Sequence,
    /// The tokens to append: at least one, at most [`Model::max_pass`].
    pub tokens: &'a [i32],
    /// Rows of this position and later stay readable. Earlier ones may be dropped.
    pub keep: usize,
    /// How the rows are going to be filtered. A device prepares for it.
    pub filter: Filter,
    /// Numbers in `[0, 1)`, if tokens are going to be drawn from the row behind the last token at one of these shares
    /// of its whole. A device draws them with the pass. `None` draws nothing, and so does a negative number.
    pub uniforms: Option<PassUniforms>,
}

impl<'a> Pass<'a> {
    /// A pass that keeps the rows of all its tokens, unfiltered.
    pub fn plain(sequence: &'a mut dyn Sequence, tokens: &'a [i32]) -> Self {
        let keep = sequence.len() + 1;
        Pass { sequence, tokens, keep, filter: Filter::plain(1.0), uniforms: None }
    }
}

/// How a pass went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Time inside the model.
    pub elapsed: Duration,
    /// Whether later passes of the same width will take as long. A pass that prepares later ones takes longer.
    pub is_usual: bool,
}

/// One sequence within one model: the KV cache of the tokens seen, and their rows of logits.
///
/// Positions count tokens from the start of the sequence. The row of position `p` holds the logits of the token at
/// index `p`, given the `p` tokens before it.
pub trait Sequence: Any + Send {
    /// Tokens seen.
    fn len(&self) -> usize;

    /// Whether no token was seen yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forget all tokens from index `len` on; the rows of positions up to `len` stay valid. A pass that was launched is
    /// given up.
    fn truncate(&mut self, len: usize);

    /// No pass comes soon. What the sequence needs for that may go to others, if the model is short of it.
    fn rest(&mut self) {}

    /// Take the rows of the last pass into memory of the sequence, if that pass has left them in memory that other
    /// sequences need. The thread of the sequence calls it after each pass, so threads share this work.
    fn take_rows(&mut self) {}

    /// The row of a position. Only rows that [`Pass::keep`] kept may be asked for.
    fn row(&self, position: usize) -> Row<'_>;

    /// The rows that stay on a device, if the model keeps its rows there.
    fn device_rows(&self) -> Option<&dyn DeviceRows> {
        None
    }

    /// Share computed tokens with sequences of the same scope only. To be called before the first pass. The empty scope
    /// is that of sequences for which none is set.
    fn set_scope(&mut self, _scope: &str) {}

    /// What sharing a cache has saved and cost it.
    fn cache_use(&self) -> CacheUse {
        CacheUse::default()
    }

    /// The memory that it holds, without that of its model.
    fn memory(&self) -> Memory {
        Memory::default()
    }
}

/// What sharing a cache has saved and cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheUse {
    /// Tokens that were not computed, because a sequence with the same beginning had computed them.
    pub found: u64,
    /// Tokens that were computed once more, because their memory was taken.
    pub recomputed: u64,
}

impl std::iter::Sum for CacheUse {
    fn sum<I: Iterator<Item = CacheUse>>(parts: I) -> Self {
        parts.fold(CacheUse::default(), |sum, part| CacheUse {
            found: sum.found + part.found,
            recomputed: sum.recomputed + part.recomputed,
        })
    }
}

/// Memory in bytes. Buffers count with their whole length, though parts of a growing buffer may never be touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Held now.
    pub bytes: usize,
    /// The most that was held so far. For a sum of several, an upper bound, since each may have had its most at another
    /// time.
    pub peak_bytes: usize,
}

impl Memory {
    /// Memory of buffers that never shrink.
    pub fn of(bytes: usize) -> Self {
        Memory { bytes, peak_bytes: bytes }
    }
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Memory>>(parts: I) -> Self {
        parts.fold(Memory::default(), |sum, part| Memory {
            bytes: sum.bytes + part.bytes,
            peak_bytes: sum.peak_bytes + part.peak_bytes,
        })
    }
}

/// Why a pass did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interrupt {
    /// [`Cancel::request`] was called.
    Cancelled,
    /// The pass failed.
    Failed(Error),
}

impl From<Error> for Interrupt {
    fn from(error: Error) -> Self {
        Interrupt::Failed(error)
    }
}

/// How urgent a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Somebody waits for its tokens.
    #[default]
    Interactive,
    /// Only its end matters.
    Batch,
}

/// A batch session counts as if so many others had been started before it.
const LATER: u64 = 1000;

/// A flag that stops the passes of one session from another thread. It stands for the session, and knows its age.
pub struct Cancel {
    age: u64,
    requested: AtomicBool,
    /// These stop running passes. The lock orders requests and resets.
    hooks: Mutex<Vec<Box<dyn CancelHook>>>,
}

/// Stops a running pass, or lets passes run again.
pub trait CancelHook: Send + Sync {
    /// Stop the running pass, and every later one until [`CancelHook::resume`].
    fn stop(&self);
    /// Let passes run again.
    fn resume(&self);
}

impl Default for Cancel {
    /// That of an interactive session that is started now.
    fn default() -> Self {
        Cancel::new(Priority::Interactive)
    }
}

impl Cancel {
    /// That of a session that is started now.
    pub fn new(priority: Priority) -> Self {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let started = STARTED.fetch_add(1, Ordering::Relaxed);
        let age = match priority {
            Priority::Interactive => 2 * started,
            Priority::Batch => 2 * (started + LATER) + 1,
        };
        Cancel { age, requested: AtomicBool::new(false), hooks: Mutex::default() }
    }

    /// Orders sessions by when they were started, the earliest first. No two are equal. A batch session counts as if a
    /// thousand others had been started before it, so interactive ones go first, but not for ever.
    pub fn age(&self) -> u64 {
        self.age
    }

    /// Stop the running pass and refuse later ones, until [`Cancel::reset`].
    pub fn request(&self) {
        let hooks = self.hooks.lock();
        self.requested.store(true, Ordering::Release);
        hooks.iter().for_each(|hook| hook.stop());
    }

    /// Whether there was a request since the last reset.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Let passes run again.
    pub fn reset(&self) {
        let hooks = self.hooks.lock();
        self.requested.store(false, Ordering::Release);
        hooks.iter().for_each(|hook| hook.resume());
    }

    /// Call `hook` on requests and resets.
    pub fn add_hook(&self, hook: Box<dyn CancelHook>) {
        self.hooks.lock().push(hook);
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("requested", &self.is_requested()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_session_counts_as_started_later_but_not_for_ever() {
        let batch = Cancel::new(Priority::Batch);
        let [next, other] = [Priority::Interactive, Priority::Batch].map(Cancel::new);
        assert!(next.age() < batch.age() && batch.age() < other.age());
        let after: Vec<u64> = (0..=LATER).map(|_| Cancel::default().age()).collect();
        assert!(after[0] < batch.age() && batch.age() < after[LATER as usize]);
    }
}
