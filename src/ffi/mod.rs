//! The C interface: every `extern "C"` function and all handling of C pointers. It holds no other logic.
//!
//! Each function runs its body in [`guard`], which turns errors and panics into error objects. `cbindgen` makes
//! `include/cos.h` from these files, so their documentation is the manual for C.

#![allow(non_camel_case_types)]

// The order of the modules is the order of the header: blank lines keep rustfmt from sorting them.
mod error;

mod exclusive;

mod engine;

mod prepare;

mod controls;

mod weigh;

mod options;

mod session;

mod many;

mod text;

mod chat;

mod request;

mod stats;

mod describe;

pub use chat::*;
pub use controls::*;
pub use describe::*;
pub use engine::*;
pub use error::*;
pub use many::*;
pub use options::*;
pub use prepare::*;
pub use request::*;
pub use session::*;
pub use stats::*;
pub use text::*;
pub use weigh::*;

use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::{Error, Result};

/// The version of the library, such as "0.1.0". Never fails. May be called from any thread at any time.
///
/// @return a string of ASCII that is valid as long as the library is loaded
/// Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn cos_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version without NUL"),
    };
    VERSION.as_ptr()
}

/// Run the body of a C function. An error or a panic becomes an error object.
fn guard(body: impl FnOnce() -> Result<()>) -> *mut cos_error {
    match catch(body) {
        Ok(()) => std::ptr::null_mut(),
        Err(error) => cos_error::from(error).into_raw(),
    }
}

/// Turn a panic into [`Error::Internal`].
fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(Error::of_panic(panic.as_ref())))
}

/// A string for C. C strings end at the first NUL, so U+FFFD takes the place of each NUL.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

fn null(name: &str) -> Error {
    Error::InvalidArgument(format!("{name} is NULL"))
}

/// Give an object to C as a handle. [`release`] takes it back.
fn handle<T>(object: T) -> *mut T {
    Arc::into_raw(Arc::new(object)).cast_mut()
}

/// The object of a handle. A call keeps the object alive while it runs, even if another thread frees the handle
/// meanwhile. A call must not begin after the handle was freed: the object may be gone by then.
///
/// # Safety
/// `handle` is NULL, or comes from [`handle`] and was not released.
unsafe fn hold<T>(handle: *const T, name: &str) -> Result<Arc<T>> {
    if handle.is_null() {
        return Err(null(name));
    }
    // SAFETY: promised by the caller.
    unsafe {
        Arc::increment_strong_count(handle);
        Ok(Arc::from_raw(handle))
    }
}

/// Free a handle, or do nothing for NULL. The object lives until the last running call has released it.
///
/// # Safety
/// As for [`hold`]. No call with this handle begins from now on.
unsafe fn release<T>(handle: *const T) {
    if !handle.is_null() {
        // SAFETY: promised by the caller. The result is dropped, because no caller could receive an error.
        let _ = catch(|| {
            drop(unsafe { Arc::from_raw(handle) });
            Ok(())
        });
    }
}

fn check_out<T>(pointer: *mut T, name: &str) -> Result<()> {
    if pointer.is_null() { Err(null(name)) } else { check_aligned(pointer, name) }
}

/// Copy values to a buffer of the caller, unless that only asks for their number.
///
/// # Safety
/// `buffer` is NULL or has room for `capacity` elements.
unsafe fn fill<T: Copy>(values: &[T], buffer: *mut T, name: &str, capacity: usize, unit: &'static str) -> Result<()> {
    if capacity == 0 {
        return Ok(());
    }
    check_out(buffer, name)?;
    if values.len() > capacity {
        return Err(Error::BufferTooSmall { needed: values.len(), capacity, unit });
    }
    // SAFETY: it fits, and the rest is promised by the caller.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), buffer, values.len()) };
    Ok(())
}

/// Write a text to a buffer of the caller as [`fill`] does, and its number of bytes.
///
/// # Safety
/// `buffer` is NULL or has `capacity` bytes, and `out_bytes` is valid for a write.
unsafe fn write_text(
    written: &str,
    buffer: *mut c_char,
    name: &str,
    capacity: usize,
    out_bytes: *mut usize,
) -> Result<()> {
    // SAFETY: promised by the caller.
    unsafe {
        fill(written.as_bytes(), buffer.cast(), name, capacity, "bytes")?;
        out_bytes.write(written.len());
    }
    Ok(())
}

/// Rust must not read a value at an address that its type does not allow.
fn check_aligned<T>(pointer: *const T, name: &str) -> Result<()> {
    if pointer.is_aligned() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{name} is {pointer:p}, which is not a multiple of {}; pass the address of a value of its type, not of bytes",
        align_of::<T>()
    )))
}

/// The longest array of this interface. A larger count is taken for garbage, and the array is not read.
const MAX_COUNT: usize = 1 << 30;

/// # Safety
/// `pointer` is NULL or points to `count` elements that live for `'a`.
unsafe fn slice<'a, T>(pointer: *const T, count: usize, name: &str, count_name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(Error::InvalidArgument(format!("{name} is NULL, but {count_name} is {count}")));
    }
    if count > MAX_COUNT {
        return Err(Error::InvalidArgument(format!("{count_name} is {count}; pass at most {MAX_COUNT}")));
    }
    check_aligned(pointer, name)?;
    // SAFETY: promised by the caller; the size and the alignment were checked.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// As [`slice`], but NULL with a count of 0 gives `None`: the caller leaves the choice to the library.
///
/// # Safety
/// As for [`slice`].
unsafe fn optional_slice<'a, T>(
    pointer: *const T,
    count: usize,
    name: &str,
    count_name: &str,
) -> Result<Option<&'a [T]>> {
    if pointer.is_null() && count == 0 {
        return Ok(None);
    }
    // SAFETY: promised by the caller.
    unsafe { slice(pointer, count, name, count_name) }.map(Some)
}

/// # Safety
/// `pointer` is NULL or a NUL-terminated string that lives for `'a`.
unsafe fn string<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, and promised by the caller.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| Error::InvalidArgument(format!("{name} is not UTF-8")))
}

/// A struct of the interface that later versions may extend at its end. Its first member is its size in the version of
/// the header that the caller was compiled with.
///
/// # Safety
/// The type is `repr(C)`, starts with a `usize`, is valid for all bit patterns, and its first `MIN_SIZE` bytes are
/// those of version 0.1.
unsafe trait VersionedStruct: Sized {
    const NAME: &'static str;
    /// Size in bytes of the struct in its first version. Members behind it were added later.
    const MIN_SIZE: usize;
}

/// The largest size in bytes of any version of a struct. A larger `struct_size` is taken for garbage.
const MAX_STRUCT_SIZE: usize = 4096;

/// # Safety
/// `pointer` is not NULL and starts with a size. If the size is plausible, that many bytes can be read.
unsafe fn struct_size<T: VersionedStruct>(pointer: *const T) -> Result<usize> {
    // SAFETY: promised by the caller.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    if (T::MIN_SIZE..=MAX_STRUCT_SIZE).contains(&size) {
        Ok(size)
    } else {
        Err(Error::InvalidArgument(format!(
            "struct_size of {0} is {size}; set it to sizeof({0}), which is {1} in this version",
            T::NAME,
            size_of::<T>()
        )))
    }
}

/// Read a struct from a caller of an older, the same or a newer version. Members that the caller does not know become
/// 0. Members that this library does not know must be 0.
///
/// # Safety
/// `pointer` is NULL, or starts with a size and has that many bytes.
unsafe fn read_struct<T: VersionedStruct>(pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        return Err(null(T::NAME));
    }
    check_aligned(pointer, T::NAME)?;
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the size was promised by the caller; all bit patterns of `T` are valid.
    unsafe {
        let size = struct_size(pointer)?;
        let known = size.min(size_of::<T>());
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known);
        let unknown = std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known);
        if unknown.iter().any(|&byte| byte != 0) {
            return Err(Error::Unsupported(format!(
                "{} sets members that version {} of the library does not know; update the library or leave them 0",
                T::NAME,
                env!("CARGO_PKG_VERSION")
            )));
        }
        Ok(value.assume_init())
    }
}

/// Write a struct for a caller of an older, the same or a newer version. Members that this library does not know become
/// 0. The caller's size stays as it is, and was checked with [`struct_size`].
///
/// # Safety
/// `pointer` starts with a size and has that many bytes.
unsafe fn write_struct<T: VersionedStruct>(pointer: *mut T, value: &T) {
    let header = size_of::<usize>();
    // SAFETY: promised by the caller.
    unsafe {
        let size = pointer.cast::<usize>().read_unaligned();
        let known = size.min(size_of::<T>());
        let (from, to) = ((value as *const T).cast::<u8>(), pointer.cast::<u8>());
        std::ptr::copy_nonoverlapping(from.add(header), to.add(header), known - header);
        std::ptr::write_bytes(to.add(known), 0, size - known);
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};

    use super::*;
    use crate::config::Combine;
    use crate::engine::Engine;
    use crate::engine::participant::Participant;
    use crate::model::scripted::Scripted;

    /// Such calls began on another thread before the session was freed.
    #[test]
    fn calls_that_are_running_outlive_the_session() {
        let used = Arc::new(());
        let script = {
            let used = used.clone();
            move |_: &[i32], row: &mut [f32]| {
                let _ = &used;
                row.fill(0.0);
                Ok(())
            }
        };
        let combine = Combine::Target { model: 0 };
        let engine =
            Engine::new(vec![Participant::Model(Arc::new(Scripted::new(4, script)))], combine, Vec::new(), None)
                .unwrap();
        let engine = cos_engine::into_raw(Arc::new(engine));
        let mut session = null_mut();
        // SAFETY: engine and session live until they are freed. After that, `held` keeps the session as a call would.
        unsafe {
            assert!(cos_session_new(engine, null(), &mut session).is_null());
            cos_engine_free(engine);
            let held = hold(session, "session").unwrap();
            cos_free(session);
            assert_eq!(Arc::strong_count(&used), 1, "the session and its models are gone");
            assert!(cos_cancel(session).is_null());
            let mut stats = std::mem::zeroed::<cos_stats>();
            stats.struct_size = size_of::<cos_stats>();
            assert!(cos_session_stats(session, &mut stats).is_null());
            let error = cos_prompt(session, [1].as_ptr(), 1);
            assert_eq!(cos_error_code(error), COS_ERROR_INVALID_ARGUMENT);
            cos_error_free(error);
            assert_eq!(Arc::strong_count(&held), 1);
        }
    }
}
