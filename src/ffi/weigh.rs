//! Functions of a caller that weigh models by position.

use std::ffi::c_void;

use parking_lot::Mutex;

use crate::decode::weigh::{ModelSummary, Weigher};
use crate::error::Error;

/// What a model thinks of the next token, by the plain softmax of its logits.
///
/// Since 0.1.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cos_model_summary {
    /// The probability of its best token, from 0 to 1. NaN for look-ups, and for models with the weight 0.
    pub confidence: f32,
    /// The entropy of its distribution in nats. NaN likewise.
    pub entropy: f32,
    /// Its best token. -1 likewise.
    pub best: i32,
    /// Always 0.
    pub reserved: i32,
}

/// A function of the caller that gives the models the weights of one position.
///
/// What it writes must depend on its arguments and its own data only: the function may be called again for the same
/// position, and decoding is exact only if the weights are then the same. cos_step calls it on its own thread for each
/// position that is decided. The function must return: an exception ends the process, and longjmp is undefined
/// behaviour. It must not keep the pointers. It may call cos_cancel and cos_session_stats with the session. Other calls
/// with the session return BUSY, and cos_free would wait for ever.
///
/// @param tokens        the tokens before the position, prompts included
/// @param tokens_count  their number, which is the position
/// @param models        a summary of each model
/// @param models_count  number of models
/// @param weights       in/out: one weight for each model; before, those of the session. They must be such as
///                      cos_session_options takes. A model with the weight 0 in the session has not run, and must keep
///                      0.
/// @param user_data     weigh_data of cos_session_options
/// @return 0, or any other number to make cos_step return CALLBACK with a message that names the number. A step that
///         has committed a token before returns success, and the next step calls the function again.
/// Since 0.1.
pub type cos_weigh_fn = Option<
    unsafe extern "C-unwind" fn(
        tokens: *const i32,
        tokens_count: usize,
        models: *const cos_model_summary,
        models_count: usize,
        weights: *mut f32,
        user_data: *mut c_void,
    ) -> i32,
>;

/// The weights function of a caller as a [`Weigher`].
///
/// # Safety
/// `function` keeps to [`cos_weigh_fn`], and `data` is the data that it expects, for as long as the result lives.
pub(super) unsafe fn weigher(
    function: unsafe extern "C-unwind" fn(
        *const i32,
        usize,
        *const cos_model_summary,
        usize,
        *mut f32,
        *mut c_void,
    ) -> i32,
    data: *mut c_void,
) -> Weigher {
    struct Caller {
        data: *mut c_void,
        /// Reused from call to call, so that a step allocates nothing.
        models: Mutex<Vec<cos_model_summary>>,
    }
    // SAFETY: one thread at a time uses a session, and only the session calls this function. The caller promises that
    // the data may move between threads with the session.
    unsafe impl Send for Caller {}
    // SAFETY: as above.
    unsafe impl Sync for Caller {}
    let caller = Caller { data, models: Mutex::default() };
    Weigher::new(move |tokens, summaries, weights| {
        let caller = &caller; // captures the whole struct; the pointer alone could not be sent to another thread
        let mut models = caller.models.lock();
        models.clear();
        models.extend(summaries.iter().map(|&ModelSummary { confidence, entropy, best }| cos_model_summary {
            confidence,
            entropy,
            best,
            reserved: 0,
        }));
        // SAFETY: the arrays have their lengths; the rest is promised by the caller.
        let status = unsafe {
            function(tokens.as_ptr(), tokens.len(), models.as_ptr(), models.len(), weights.as_mut_ptr(), caller.data)
        };
        match status {
            0 => Ok(()),
            other => Err(Error::Callback(format!("the weights function of the session returned {other}, not 0"))),
        }
    })
}
