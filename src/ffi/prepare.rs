//! Preparation of an engine in the C interface.

use std::ffi::c_void;
use std::time::Duration;

use super::engine::cos_engine;
use super::error::cos_error;
use super::{VersionedStruct, check_aligned, guard, read_struct};
use crate::engine::prepare::{Load, prepare};
use crate::error::{Error, Result};

/// A function of the caller that is told how far cos_engine_prepare has come. It is called on the thread of that call:
/// before each pass, or before passes of several models at once, and with 1 when all is done.
///
/// The function must return: an exception ends the process, and longjmp is undefined behaviour. It may call any
/// function of this interface.
///
/// @param share      the share that is done, from 0 to 1, never less than in the call before. Equal parts do not take
///                   equal times.
/// @param user_data  progress_data of cos_prepare_options
/// @return 0 to go on, or any other number to stop
/// Since 0.1.
pub type cos_progress_fn = Option<unsafe extern "C-unwind" fn(share: f64, user_data: *mut c_void) -> i32>;

/// What cos_engine_prepare prepares for, and for how long. Set all members to 0 and then struct_size for the defaults.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_prepare_options {
    /// sizeof(cos_prepare_options), set by the caller.
    pub struct_size: usize,
    /// Most sessions that will decode at the same time, up to 1024; 0: 16.
    pub sessions: u32,
    /// Most tokens of a usual text, with its prompt; 0: 1024. More than the context of a model counts as that.
    pub tokens: u32,
    /// Seconds after which no further pass begins, up to 86400; 0: 30.
    pub seconds: f64,
    /// Is told how far it has come, and may stop it; or NULL.
    pub progress: cos_progress_fn,
    /// Passed to `progress`. Owned by the caller. May be NULL.
    pub progress_data: *mut c_void,
}

// SAFETY: plain data. The size of the first version never changes, and members are only added behind the last one.
unsafe impl VersionedStruct for cos_prepare_options {
    const NAME: &'static str = "cos_prepare_options";
    const MIN_SIZE: usize = std::mem::offset_of!(cos_prepare_options, progress_data) + size_of::<*mut c_void>();
}
const _: () =
    assert!(<cos_prepare_options as VersionedStruct>::MIN_SIZE == 40 && size_of::<cos_prepare_options>() == 40);

/// Most sessions of a preparation, and most seconds.
const MOST_SESSIONS: u32 = 1024;
const MOST_SECONDS: f64 = 86400.0;

/// Prepare an engine for load, before users wait: run the passes that sessions of all strategies will need most, first
/// those of a few sessions, then those of many. For servers, between cos_engine_open and the first request.
///
/// On a GPU, a pass of a size that the engine has not met takes many times as long, because it is planned and captured.
/// Without preparation, users wait for that. On a processor there is less to gain: memory is touched, and
/// COS_STRATEGY_AUTO learns what passes take. Whenever it ends, what was prepared stays so.
///
/// The passes are over made-up tokens. They count in no statistics, and no session finds what they have computed.
/// Sessions of other threads may decode meanwhile. Their passes may take longer, and where memory is short, they have
/// it. May be called from any thread at any time, and more than once.
///
/// @param engine     must not be NULL
/// @param options    NULL for the defaults; else its `struct_size` must be set
/// @param out_share  out: the share that was done, 1 if all; may be NULL
/// @return NULL, also if the time was over or `progress` has stopped it, or an error to free with cos_error_free:
///         INVALID_ARGUMENT (the message names the member), UNSUPPORTED (a member is set that this library does not
///         know), RUNTIME, NUMERIC
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed. `options` is NULL or has `struct_size` bytes. `progress` keeps to
/// [`cos_progress_fn`], and `progress_data` is the data that it expects, until this function returns. `out_share` is
/// NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_prepare(
    engine: *const cos_engine,
    options: *const cos_prepare_options,
    out_share: *mut f64,
) -> *mut cos_error {
    guard(|| {
        check_aligned(out_share, "out_share")?;
        // SAFETY: promised by the caller.
        let engine = unsafe { cos_engine::of_this_process(engine) }?;
        let options = match options.is_null() {
            true => None,
            // SAFETY: promised by the caller.
            false => Some(unsafe { read_struct(options) }?),
        };
        let (load, time) = read(options.as_ref())?;
        let share = prepare(&engine.0, load, time, |share| {
            let call = |options: &cos_prepare_options| {
                // SAFETY: promised by the caller.
                options.progress.map(|progress| unsafe { progress(share, options.progress_data) })
            };
            options.as_ref().and_then(call).unwrap_or(0) == 0
        })?;
        if !out_share.is_null() {
            // SAFETY: promised by the caller.
            unsafe { out_share.write(share) };
        }
        Ok(())
    })
}

/// What to prepare for, and the bound in time.
fn read(options: Option<&cos_prepare_options>) -> Result<(Load, Duration)> {
    let (sessions, tokens, seconds) = options.map_or((0, 0, 0.0), |it| (it.sessions, it.tokens, it.seconds));
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    if sessions > MOST_SESSIONS {
        return refuse(format!("sessions is {sessions}; it must be from 1 to {MOST_SESSIONS}, or 0 for 16"));
    }
    if !(0.0..=MOST_SECONDS).contains(&seconds) {
        return refuse(format!("seconds is {seconds}; it must be above 0 and up to {MOST_SECONDS}, or 0 for 30"));
    }
    let or = |number: u32, default: usize| if number == 0 { default } else { number as usize };
    let time = Duration::from_secs_f64(if seconds == 0.0 { 30.0 } else { seconds });
    Ok((Load { sessions: or(sessions, 16), tokens: or(tokens, 1024) }, time))
}
