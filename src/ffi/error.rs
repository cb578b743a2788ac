//! Error codes and error objects of the C interface.

use std::ffi::{CString, c_char};

use once_cell::sync::OnceCell;

use super::c_string;
use crate::error::Error;
use crate::request::refusal;

/// An argument is NULL, out of range or of the wrong size.
pub const COS_ERROR_INVALID_ARGUMENT: i32 = 1;
/// The engine configuration is wrong.
pub const COS_ERROR_CONFIG: i32 = 2;
/// A model cannot be loaded, is not a language model, or does not fit the other models.
pub const COS_ERROR_MODEL: i32 = 3;
/// ONNX Runtime is missing, too old, or failed.
pub const COS_ERROR_RUNTIME: i32 = 4;
/// The tokens do not fit into the context of the models.
pub const COS_ERROR_CONTEXT_FULL: i32 = 5;
/// Logits or scores were NaN or plus infinity, or minus infinity for every token.
pub const COS_ERROR_NUMERIC: i32 = 6;
/// Another thread is using the session or the text stream.
pub const COS_ERROR_BUSY: i32 = 7;
/// The request is valid, but this version does not support it.
pub const COS_ERROR_UNSUPPORTED: i32 = 8;
/// The buffer of the caller is too small. The message says how much is needed.
pub const COS_ERROR_BUFFER_TOO_SMALL: i32 = 9;
/// An earlier call on the session returned INTERNAL. The session can only be freed.
pub const COS_ERROR_POISONED: i32 = 10;
/// A bug of this library (a panic). The process is unharmed, and the session of the call is poisoned.
pub const COS_ERROR_INTERNAL: i32 = 11;
/// A function of the caller failed. The message says what it returned.
pub const COS_ERROR_CALLBACK: i32 = 12;
/// The caches of other sessions take all the memory that the configuration allows. Nothing is lost: try again later.
pub const COS_ERROR_NO_MEMORY: i32 = 13;
/// A request names a model that is not there.
pub const COS_ERROR_NOT_FOUND: i32 = 14;

/// An error: a code and a message. The caller owns it and frees it with cos_error_free. Any number of threads may read
/// it at once, and any thread may free it.
///
/// Since 0.1.
pub struct cos_error {
    error: Error,
    message: CString,
    /// The answer of a server, made when it is first asked for.
    json: OnceCell<CString>,
}

impl From<Error> for cos_error {
    fn from(error: Error) -> Self {
        cos_error { message: c_string(&error.to_string()), error, json: OnceCell::new() }
    }
}

impl cos_error {
    pub(super) fn into_raw(self) -> *mut cos_error {
        Box::into_raw(Box::new(self))
    }
}

/// The code of an error. The values never change.
///
/// @param error  may be NULL
/// @return one of COS_ERROR_*, or 0 if `error` is NULL, which means success
/// Since 0.1.
///
/// # Safety
/// `error` is NULL or an error that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_error_code(error: *const cos_error) -> i32 {
    // SAFETY: promised by the caller.
    unsafe { error.as_ref() }.map_or(0, |error| error.error.code())
}

/// The message of an error, for people: what is wrong, and how to mend it where that is known.
///
/// @param error  may be NULL
/// @return one sentence in UTF-8, valid until the error is freed; empty if `error` is NULL
/// Since 0.1.
///
/// # Safety
/// `error` is NULL or an error that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_error_message(error: *const cos_error) -> *const c_char {
    // SAFETY: promised by the caller.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// The status of HTTP with which a server answers a request that met this error: 400, 404, 500 or 503.
///
/// @param error  may be NULL
/// @return the status, or 200 if `error` is NULL
/// Since 0.1.
///
/// # Safety
/// `error` is NULL or an error that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_error_status(error: *const cos_error) -> i32 {
    // SAFETY: promised by the caller.
    unsafe { error.as_ref() }.map_or(200, |error| refusal::status(&error.error).into())
}

/// The body with which a server of OpenAI's protocol answers a request that met this error, and the event if it
/// streams: `{"error": {"message": ..., "type": ..., "param": null, "code": ...}}`.
///
/// @param error  may be NULL
/// @return JSON in UTF-8, valid until the error is freed; empty if `error` is NULL
/// Since 0.1.
///
/// # Safety
/// `error` is NULL or an error that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_error_json(error: *const cos_error) -> *const c_char {
    // SAFETY: promised by the caller.
    unsafe { error.as_ref() }
        .map_or(c"".as_ptr(), |error| error.json.get_or_init(|| c_string(&refusal::body(&error.error))).as_ptr())
}

/// Free an error.
///
/// @param error  may be NULL, which does nothing
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
