//! Language models as the decoder sees them: a token sequence goes in, rows of logits come out.
//!
//! The decoder knows nothing of ONNX Runtime, and models know nothing of combination or acceptance.

pub mod overlap;
pub mod scripted;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::rows::{DeviceRows, Filter, Row};

/// Widths whose passes are timed: dense where a draft is short, and one where it is long.
pub const TIMED_WIDTHS: [usize; 7] = [1, 2, 3, 4, 6, 8, 16];

/// A language model: its weights, shared by any number of sequences and threads.
pub trait Model: Send + Sync {
    /// What messages call it.
    fn name(&self) -> &str;

    /// Number of logits in a row.
    fn vocab_size(&self) -> usize;

    /// Most tokens that a sequence may hold.
    fn context_length(&self) -> usize;

    /// Most tokens of one sequence in one pass; longer runs are cut into chunks of this size, so that the
    /// memory for logits stays bounded.
    fn max_pass(&self) -> usize;

    /// Cost of a pass relative to other models, deterministic; bytes of weights serve well.
    fn cost(&self) -> u64;

    /// What passes took when the model was loaded, by their width in tokens, the narrowest first: time inside the
    /// model, on top of a short cache. Empty where nobody measured, and without the widths that do not fit.
    fn pass_times(&self) -> &[(usize, Duration)] {
        &[]
    }

    /// What is known of it, for people who look into an engine.
    fn describe(&self) -> Value {
        json!({ "name": self.name(), "vocab_size": self.vocab_size(), "context_length": self.context_length() })
    }

    /// How many passes were captured on a GPU so far, and why none is any more, if so. `None` of a model that is on
    /// none.
    fn captured(&self) -> Option<(u64, Option<&str>)> {
        None
    }

    /// Start an empty sequence. Its passes end early once `cancel` is requested.
    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>>;

    /// Whether [`Model::launch`] can leave passes running.
    fn overlaps(&self) -> bool {
        false
    }

    /// Start the pass that [`Model::forward`] is then called for with the same arguments, alone in its batch, and
    /// return without waiting, so that other models run meanwhile. Returns whether the pass is running. If not,
    /// `forward` does everything, and says what went wrong. [`Sequence::truncate`] gives a running pass up, whatever
    /// the length.
    fn launch(&self, _pass: &mut Pass<'_>) -> bool {
        false
    }

    /// Run one pass over a batch of sequences that this model started.
    ///
    /// Each sequence is extended by its tokens and yields one row of logits after each of them. On an error no sequence
    /// is changed.
    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt>;
}

/// One sequence's share of a pass.
pub struct Pass<'a> {
    /// The sequence to extend.
    pub sequence: &'a mut dyn Sequence,
    /// What to extend it by; never empty, and at most [`Model::max_pass`] tokens.
    pub tokens: &'a [i32],
    /// Rows of this position and later stay readable; earlier ones may go.
    pub keep: usize,
    /// How the rows are going to be filtered, so that a device can prepare for it.
    pub filter: Filter,
}

impl<'a> Pass<'a> {
    /// A pass that keeps the rows of all its tokens, unfiltered.
    pub fn plain(sequence: &'a mut dyn Sequence, tokens: &'a [i32]) -> Self {
        let keep = sequence.len() + 1;
        Pass { sequence, tokens, keep, filter: Filter::plain(1.0) }
    }
}

/// What a pass took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Time inside the model.
    pub elapsed: Duration,
    /// Whether later passes of the same width will take as long. One that prepares later ones takes longer.
    pub is_usual: bool,
}

/// One sequence within one model: the cache of the tokens seen, and the rows of logits that came of them.
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

    /// The row of a position. Only rows that [`Pass::keep`] kept may be asked for.
    fn row(&self, position: usize) -> Row<'_>;

    /// The rows that stay on a device, if the model keeps its rows there.
    fn device_rows(&self) -> Option<&dyn DeviceRows> {
        None
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
    /// The most that was held so far; of several together at most this, since each may have had its most at another
    /// time.
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
