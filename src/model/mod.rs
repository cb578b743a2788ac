//! Language models as the decoder sees them: a token sequence goes in, rows of logits come out.
//!
//! The decoder knows nothing of ONNX Runtime, and models know nothing of combination or acceptance.

mod ngram;
pub mod overlap;
pub mod scripted;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

pub use ngram::Ngram;

use crate::error::{Error, Result};
use crate::rows::device::Placed;
use crate::rows::{Filter, Filtered, RowMath};

/// Widths whose passes are timed: dense where a draft is short, and one where it is long.
pub const TIMED_WIDTHS: [usize; 7] = [1, 2, 3, 4, 6, 8, 16];

/// A language model: its weights, shared by any number of sequences and threads.
pub trait Model: Send + Sync {
    /// What messages call it.
    fn name(&self) -> &str;

    /// Whether it scores tokens. A model that does not, such as a look-up, has no logits: it can propose but never
    /// verify, costs nothing, and its vocabulary, context and passes do not count.
    fn scores(&self) -> bool {
        true
    }

    /// Number of logits in a row.
    fn vocab_size(&self) -> usize;

    /// Most tokens that a sequence may hold.
    fn context_length(&self) -> usize;

    /// Most tokens of one sequence in one pass; longer runs are cut into chunks of this size, so that the
    /// memory for logits stays bounded.
    fn max_pass(&self) -> usize;

    /// Cost of a pass relative to other models, deterministic; bytes of weights serve well.
    fn cost(&self) -> u64;

    /// What passes took when the model was loaded, by their width in tokens, the narrowest first: time inside the model,
    /// on top of a short cache. Empty where nobody measured, and without the widths that do not fit.
    fn pass_times(&self) -> &[(usize, Duration)] {
        &[]
    }

    /// What is known of it, for people who look into an engine.
    fn describe(&self) -> Value {
        json!({ "name": self.name(), "vocab_size": self.vocab_size(), "context_length": self.context_length() })
    }

    /// How many passes were captured on a GPU so far, and why none is any more, if so. `None` of a model that is on none.
    fn captured(&self) -> Option<(u64, Option<&str>)> {
        None
    }

    /// Start an empty sequence. Its passes end early once `cancel` is requested.
    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>>;

    /// Whether [`Model::begin`] can leave passes running.
    fn overlaps(&self) -> bool {
        false
    }

    /// Begin the pass that [`Model::forward`] is then asked for with the same arguments, alone in its batch, and return without
    /// waiting for it, so that other models run meanwhile. Returns whether it is running; otherwise all is left to `forward`,
    /// which also tells what went wrong. [`Sequence::truncate`], if only to the length that the sequence has, gives it up.
    fn begin(&self, _pass: &mut Pass<'_>) -> bool {
        false
    }

    /// Run one pass over a batch of sequences that this model started, all at once where it can.
    ///
    /// Each sequence is extended by its tokens and yields one row of logits after each of them. On an error
    /// no sequence is changed.
    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<(), Interrupt>;
}

/// One sequence's share of a pass.
pub struct Pass<'a> {
    /// The sequence to extend.
    pub sequence: &'a mut dyn Sequence,
    /// What to extend it by; never empty, and at most [`Model::max_pass`] tokens.
    pub tokens: &'a [i32],
    /// Rows of this position and later stay readable; earlier ones may go.
    pub keep: usize,
}

/// One sequence within one model: the cache of what was seen, and the rows of logits that came of it.
///
/// Positions count tokens from the start of the sequence. The row of position `p` holds the logits of the token
/// at index `p`, given the `p` tokens before it.
pub trait Sequence: Any + Send {
    /// Tokens seen.
    fn len(&self) -> usize;

    /// Whether no token was seen yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forget all tokens from index `len` on; the rows of positions up to `len` stay valid. A pass that was begun ends.
    fn truncate(&mut self, len: usize);

    /// The row of logits of `position`, `vocab_size` values. Only rows that [`Pass::keep`] kept may be asked for.
    fn logits(&self, position: usize) -> &[f32];

    /// The score of a token at `position`: that of its row of logits, which need not be had in full.
    fn score(&self, position: usize, token: usize) -> f32 {
        self.logits(position)[token]
    }

    /// How rows are processed that will be asked about, where that is done without the row.
    fn set_filter(&mut self, _filter: Filter) {}

    /// The largest score at `position`, and the sum of `e^((score − max) · rate)`, where they are known without the row; the maximum
    /// is NaN for a bad row.
    fn normaliser(&self, _position: usize, _rate: f32) -> Option<(f32, f64)> {
        None
    }

    /// What a filter keeps at `position`, in the same way.
    fn filtered(&self, _position: usize, _filter: Filter) -> Option<Filtered> {
        None
    }

    /// The first token of the largest score at `position`, that score, and the largest of all others, in the same way.
    fn best(&self, _position: usize) -> Option<(usize, f32, f32)> {
        None
    }

    /// The token at which the sum of the weights that the filter keeps reaches `share` from the front, in the same way, for what `filtered`
    /// gave.
    fn draw(&self, _position: usize, _share: f64) -> Option<usize> {
        None
    }

    /// Rows that were copied to the host from a GPU that keeps them, because somebody asked for all of one.
    fn rows_copied(&self) -> u64 {
        0
    }

    /// Why answers to these questions cannot be relied upon any more, if they cannot: asking a device has failed.
    fn fault(&self) -> Option<Error> {
        None
    }

    /// Where the row of `position` is, if that is on a GPU.
    fn placed(&self, _position: usize) -> Option<Placed> {
        None
    }

    /// What makes something of rows on the GPU that this sequence has its rows on.
    fn row_math(&self) -> Option<Box<dyn RowMath>> {
        None
    }

    /// What the model proposes for `position`, which is the one behind all that it has seen. A model that does not score
    /// may be asked of earlier positions too: what it would have proposed.
    fn proposal(&self, _position: usize) -> Proposal {
        Proposal::Row
    }

    /// Time spent inside the model so far.
    fn elapsed(&self) -> Duration;

    /// Whether the last pass tells what others of its width will take: one that prepares them takes longer.
    fn is_usual(&self) -> bool {
        true
    }

    /// The memory that it holds, apart from that of its model.
    fn memory(&self) -> Memory {
        Memory::default()
    }
}

/// Memory in bytes: buffers at their whole length, though of those that grow ahead of need much may never be touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Held now.
    pub bytes: usize,
    /// The most that was held so far; of several together at most this, since each may have had its most at another time.
    pub peak_bytes: usize,
}

impl Memory {
    /// Of buffers that never shrink.
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

/// What a model proposes for a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Proposal {
    /// A draw from the distribution of the row of logits there.
    Row,
    /// This token, for certain.
    Token(i32),
    /// None.
    Nothing,
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

/// A flag that stops the passes of one session from another thread.
#[derive(Default)]
pub struct Cancel {
    requested: AtomicBool,
    /// What stops passes that are running; the lock orders requests and resets.
    hooks: Mutex<Vec<Box<dyn CancelHook>>>,
}

/// Stops a running pass, or lets passes run again.
pub trait CancelHook: Send + Sync {
    /// Stop the running pass, and every later one until [`CancelHook::resume`].
    fn stop(&self);
    /// Let passes run again.
    fn resume(&self);
}

impl Cancel {
    /// Stop the running pass and refuse later ones, until [`Cancel::reset`].
    pub fn request(&self) {
        let hooks = self.hooks.lock();
        self.requested.store(true, Ordering::Release);
        hooks.iter().for_each(|hook| hook.stop());
    }

    /// Whether a request is waiting to be met.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Meet a request: passes run again.
    pub fn reset(&self) {
        let hooks = self.hooks.lock();
        self.requested.store(false, Ordering::Release);
        hooks.iter().for_each(|hook| hook.resume());
    }

    /// Have `hook` called on requests and resets.
    pub fn add_hook(&self, hook: Box<dyn CancelHook>) {
        self.hooks.lock().push(hook);
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("requested", &self.is_requested()).finish()
    }
}
