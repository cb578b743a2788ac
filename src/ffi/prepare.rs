//! Preparation of an engine in the C interface.

use std::ffi::c_void;
use std::time::Duration;

use super::engine::cos_engine;
use super::error::cos_error;
use super::{VersionedStruct, guard, read_struct};
use crate::engine::prepare::prepare;
use crate::error::{Error, Result};

/// A function that is told how far cos_engine_prepare has come. It is called on the thread of that call, at least once
/// for each pass.
///
/// The function must return: an exception ends the process, and longjmp is undefined behaviour.
///
/// @param share      what is done, 0 to 1; never less than in the call before
/// @param user_data  progress_data of cos_prepare_options
/// @return 0 to go on, or any other number to stop. Then cos_engine_prepare returns success.
/// Since 0.1.
pub type cos_progress_fn = Option<unsafe extern "C-unwind" fn(share: f32, user_data: *mut c_void) -> i32>;

/// How cos_engine_prepare works. Set all members to 0 and then struct_size for the defaults.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_prepare_options {
    /// sizeof(cos_prepare_options), set by the caller.
    pub struct_size: usize,
    /// Most sessions that will decode at the same time, up to 1024. 0: 16.
    pub sessions: u32,
    /// Seconds after which no further pass begins. 0: 30.
    pub seconds: f32,
    /// Is told how far the preparation has come, or NULL.
    pub progress: cos_progress_fn,
    /// Passed to `progress`. Owned by the caller. May be NULL.
    pub progress_data: *mut c_void,
}

// SAFETY: plain data. The size of the first version never changes, and members are only added behind the last one.
unsafe impl VersionedStruct for cos_prepare_options {
    const NAME: &'static str = "cos_prepare_options";
    const MIN_SIZE: usize = size_of::<cos_prepare_options>();
}
const _: () = assert!(size_of::<cos_prepare_options>() == 32);

/// Most sessions of a preparation.
const MOST_SESSIONS: u32 = 1024;

/// Prepare an engine for load, before users wait: run the passes that up to `sessions` sessions at the same time will
/// need, by all strategies. On a GPU, the first passes of each size take many times as long as later ones. On a CPU,
/// memory is touched, and COS_STRATEGY_AUTO learns what passes take.
///
/// Decodes made-up prompts of a scope that nobody else has. They do not count in cos_engine_stats, but their passes
/// count in the histograms of cos_engine_metrics. Sessions of other threads may decode meanwhile; they wait longer. If
/// there is no memory for so many sessions, smaller numbers of them are tried. May be called from any thread at any
/// time, and more than once.
///
/// @param engine   must not be NULL
/// @param options  NULL for the defaults; `struct_size` must be set
/// @return NULL, also if the time was over or `progress` stopped it, or an error to free with cos_error_free:
///         INVALID_ARGUMENT (a member is out of range), and any error of cos_step. What was prepared stays.
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed. `options` is NULL or has `struct_size` bytes. `progress` keeps to
/// [`cos_progress_fn`], and `progress_data` is the data that it expects, until this function returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_prepare(
    engine: *const cos_engine,
    options: *const cos_prepare_options,
) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        let engine = &unsafe { cos_engine::of_this_process(engine) }?.0;
        let default = cos_prepare_options {
            struct_size: size_of::<cos_prepare_options>(),
            sessions: 0,
            seconds: 0.0,
            progress: None,
            progress_data: std::ptr::null_mut(),
        };
        // SAFETY: promised by the caller.
        let options = if options.is_null() { default } else { unsafe { read_struct(options) }? };
        let (sessions, time) = (sessions(options.sessions)?, time(options.seconds)?);
        prepare(engine, sessions, time, |share| {
            // SAFETY: promised by the caller.
            options.progress.is_none_or(|progress| unsafe { progress(share as f32, options.progress_data) } == 0)
        })?;
        Ok(())
    })
}

fn sessions(number: u32) -> Result<usize> {
    match number {
        0 => Ok(16),
        1..=MOST_SESSIONS => Ok(number as usize),
        _ => Err(Error::InvalidArgument(format!("sessions is {number}; it must be 0 (for 16) to {MOST_SESSIONS}"))),
    }
}

fn time(seconds: f32) -> Result<Duration> {
    match seconds {
        0.0 => Ok(Duration::from_secs(30)),
        _ if seconds > 0.0 && seconds <= 86400.0 => Ok(Duration::from_secs_f32(seconds)),
        _ => Err(Error::InvalidArgument(format!("seconds is {seconds}; it must be 0 (for 30) to 86400"))),
    }
}
