//! Many sessions of the C interface, driven by one thread.

use std::borrow::Borrow;

use super::error::cos_error;
use super::exclusive::Taken;
use super::session::{cos_session, cos_step_result, step_result};
use super::{VersionedStruct, check_out, guard, slice, struct_size, write_struct};
use crate::engine::many::step_many;
use crate::engine::session::{Session, State};
use crate::error::{Error, Result};

/// The results and errors of a call.
pub(super) struct Outputs<T> {
    results: *mut T,
    /// Bytes of a result, in the version of the caller.
    pub(super) size: usize,
    errors: *mut *mut cos_error,
}

impl<T: VersionedStruct> Outputs<T> {
    /// Without news and errors. `empty` makes a result without news of the size of the caller.
    ///
    /// # Safety
    /// `results` and `errors` have `count` elements, and each result has its `struct_size` bytes. At least one element.
    pub(super) unsafe fn new(
        results: *mut T,
        errors: *mut *mut cos_error,
        count: usize,
        empty: impl Fn(usize) -> T,
    ) -> Result<Self> {
        check_out(results, "out_results")?;
        check_out(errors, "out_errors")?;
        // SAFETY: promised by the caller.
        let size = unsafe { struct_size(results) }?;
        let outputs = Outputs { results, size, errors };
        for index in 0..count {
            // SAFETY: promised by the caller; the elements before have the size that steps to this one.
            let other = unsafe { outputs.result(index).cast::<usize>().read_unaligned() };
            if other != size {
                return Err(Error::InvalidArgument(format!(
                    "struct_size of out_results[{index}] is {other}, but that of out_results[0] is {size}; set it to \
                     sizeof({}) in all",
                    T::NAME
                )));
            }
        }
        for index in 0..count {
            // SAFETY: promised by the caller; the size of each element was checked.
            unsafe {
                write_struct(outputs.result(index), &empty(size));
                outputs.errors.add(index).write(std::ptr::null_mut());
            }
        }
        Ok(outputs)
    }

    /// The elements are as large as they were to the caller, who may have been compiled against another version.
    fn result(&self, index: usize) -> *mut T {
        self.results.wrapping_byte_add(index * self.size)
    }

    /// # Safety
    /// `index` is one of the elements.
    pub(super) unsafe fn write(&self, index: usize, news: Result<T>) {
        // SAFETY: promised by the caller.
        unsafe {
            match news {
                Ok(result) => write_struct(self.result(index), &result),
                Err(error) => self.errors.add(index).write(cos_error::from(error).into_raw()),
            }
        }
    }
}

/// Advance many sessions by one pass of each model: for servers with an event loop, where one thread drives all.
///
/// Each session goes on with its round until it needs a pass. Then each model runs one pass for all that need one. Then
/// each session goes on until it needs the next pass, or has news. A round takes one pass of each model without drafts,
/// and more with drafts or a long prompt; so a session has news in most calls, but not in all. A session with news has
/// committed tokens, or a finish, as by cos_step. A session without news has tokens_count 0, finish 0 and no error: it
/// is in the middle of a round, and the next call goes on there.
///
/// Call it in a loop with all sessions that are open, and take out those that have finished. New ones may come and go
/// from call to call, in any order. Calls of cos_step, cos_step_many and cos_prompt with one session may follow each
/// other: cos_step completes the round, and cos_prompt gives it up, as cos_session_set_weights does.
///
/// The sessions may belong to several engines; each engine runs passes of its own. Each session has the distribution,
/// or the greedy text, that it has with cos_step. No session waits for the next call of another: what does not fit into
/// a pass comes first in the next one. Prompts are run in chunks beside the sessions that decode, those of the oldest
/// sessions first. Passes are combined with those of other threads that call cos_step or cos_step_many at the same
/// time.
///
/// An error of one session is its own, and the others go on. These are errors of a session: it is NULL, was given
/// before in the same call (INVALID_ARGUMENT), is in use on another thread (BUSY), or any error of cos_step. A session
/// that has finished answers as cos_step does: its finish again. cos_cancel works as for cos_step.
///
/// @param sessions     the sessions, in use by no other thread; may be NULL if `count` is 0
/// @param count        number of sessions; 0 does nothing
/// @param out_results  out, `count` results, whose `struct_size` must be set in all; may be NULL if `count` is 0. A
///                     session owns its `tokens` and `log_probabilities`, which are valid until its next call.
/// @param out_errors   out, `count` errors, each NULL or to be freed with cos_error_free; may be NULL if `count` is 0.
///                     What it held before is overwritten. A session with an error has a result without news.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (an array is NULL, `count` is absurd, or
///         struct_sizes are wrong or differ; then nothing was done or written), INTERNAL (poisons the sessions; those
///         that had errors before have them in out_errors)
/// Since 0.1.
///
/// # Safety
/// `sessions`, `out_results` and `out_errors` are NULL or have `count` elements; each session is NULL or was not freed;
/// each result has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_step_many(
    sessions: *const *mut cos_session,
    count: usize,
    out_results: *mut cos_step_result,
    out_errors: *mut *mut cos_error,
) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        let sessions = unsafe { slice(sessions, count, "sessions", "count") }?;
        if sessions.is_empty() {
            return Ok(());
        }
        let empty = |size| step_result(size, None, State::Open);
        // SAFETY: promised by the caller.
        let outputs = unsafe { Outputs::new(out_results, out_errors, count, empty) }?;
        // SAFETY: the index of a session is one of the elements; the rest is promised by the caller.
        let mut held = unsafe { Taken::all(sessions, |index, error| outputs.write(index, Err(error))) };
        // SAFETY: the index of a session is one of the elements.
        let result = super::catch(|| {
            step_many(&mut held, |each, news| unsafe { tell(&outputs, each, news) });
            Ok(())
        });
        Taken::give_back(held, |each| {
            if result.is_err() {
                // A panic outside of any one session leaves all in an unknown state.
                each.poison();
            }
            each.tell_stats();
        });
        result
    })
}

/// Write the news of a session.
///
/// # Safety
/// Its index is one of the elements.
unsafe fn tell(outputs: &Outputs<cos_step_result>, each: &mut Taken<cos_session, Session>, news: Result<State>) {
    let result = news.map(|state| {
        let session: &Session = (*each).borrow();
        step_result(outputs.size, Some(session), state)
    });
    if let Err(Error::Internal(_)) = result {
        each.poison();
    }
    // SAFETY: promised by the caller.
    unsafe { outputs.write(each.index, result) };
}
