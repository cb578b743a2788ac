//! Error objects.

use std::ffi::{CString, c_char};

use crate::error::Error;

/// An argument of the call is wrong: NULL, out of range, or of the wrong size.
pub const COS_ERROR_INVALID_ARGUMENT: i32 = 1;
/// The engine configuration is wrong.
pub const COS_ERROR_CONFIG: i32 = 2;
/// A model cannot be loaded, is no language model, or does not fit the others.
pub const COS_ERROR_MODEL: i32 = 3;
/// ONNX Runtime is missing, too old, or failed.
pub const COS_ERROR_RUNTIME: i32 = 4;
/// The context of the models has no room for the tokens.
pub const COS_ERROR_CONTEXT_FULL: i32 = 5;
/// Logits were NaN or infinite, or left no token possible.
pub const COS_ERROR_NUMERIC: i32 = 6;
/// The session is in use on another thread.
pub const COS_ERROR_BUSY: i32 = 7;
/// The request is valid, but this version does not support it.
pub const COS_ERROR_UNSUPPORTED: i32 = 8;
/// The caller's buffer is too small; the message says what is needed.
pub const COS_ERROR_BUFFER_TOO_SMALL: i32 = 9;
/// An earlier call on the session ended in INTERNAL; the session can only be freed.
pub const COS_ERROR_POISONED: i32 = 10;
/// A bug of this library (a panic). The process is unharmed.
pub const COS_ERROR_INTERNAL: i32 = 11;
/// A function of the caller failed; the message says what it returned.
pub const COS_ERROR_CALLBACK: i32 = 12;

/// An error: a code and a message. Owned by the caller, who frees it with cos_error_free. It may be passed
/// between threads, and read by several at once.
///
/// Since 0.1.
pub struct cos_error {
    code: i32,
    message: CString,
}

impl From<Error> for cos_error {
    fn from(error: Error) -> Self {
        let message = error.to_string().replace('\0', "\u{fffd}");
        cos_error { code: error.code(), message: CString::new(message).unwrap_or_default() }
    }
}

impl cos_error {
    pub(super) fn into_raw(self) -> *mut cos_error {
        Box::into_raw(Box::new(self))
    }
}

/// The code of an error, one of COS_ERROR_*. The values never change. 0 if `error` is NULL, which means success.
///
/// Since 0.1.
///
/// # Safety
/// `error` is NULL or an error that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_error_code(error: *const cos_error) -> i32 {
    // SAFETY: promised by the caller.
    unsafe { error.as_ref() }.map_or(0, |error| error.code)
}

/// What went wrong, and the mend where there is one: one sentence in UTF-8, for people. Lives as long as the error.
/// Empty if `error` is NULL.
///
/// Since 0.1.
///
/// # Safety
/// `error` is NULL or an error that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_error_message(error: *const cos_error) -> *const c_char {
    // SAFETY: promised by the caller.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// Free an error. NULL is fine.
///
/// Since 0.1.
///
/// # Safety
/// `error` is NULL or an error that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_error_free(error: *mut cos_error) {
    if !error.is_null() {
        // SAFETY: promised by the caller.
        drop(unsafe { Box::from_raw(error) });
    }
}
