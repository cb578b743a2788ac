//! What the tests that call the C interface share.

use std::ffi::CStr;

use cos::ffi::*;

/// The code and message of an error, which is freed; 0 of none. Every error says what is wrong.
pub fn outcome(error: *mut cos_error) -> (i32, String) {
    // SAFETY: an error comes from the library, and is freed once; NULL is fine.
    unsafe {
        let message = CStr::from_ptr(cos_error_message(error)).to_str().expect("UTF-8").to_owned();
        let code = cos_error_code(error);
        assert_eq!(message.is_empty(), code == 0, "{code}: {message:?}");
        cos_error_free(error);
        (code, message)
    }
}

/// The code alone.
pub fn code(error: *mut cos_error) -> i32 {
    outcome(error).0
}

/// Greedy and automatic.
pub fn options() -> cos_session_options {
    // SAFETY: all zero is what the interface asks for.
    let zero: cos_session_options = unsafe { std::mem::zeroed() };
    cos_session_options { struct_size: size_of::<cos_session_options>(), ..zero }
}

/// A result to be written.
pub fn result() -> cos_step_result {
    // SAFETY: as above.
    let zero: cos_step_result = unsafe { std::mem::zeroed() };
    cos_step_result { struct_size: size_of::<cos_step_result>(), ..zero }
}

/// Statistics to be written.
pub fn no_stats() -> cos_stats {
    // SAFETY: as above.
    let zero: cos_stats = unsafe { std::mem::zeroed() };
    cos_stats { struct_size: size_of::<cos_stats>(), ..zero }
}
