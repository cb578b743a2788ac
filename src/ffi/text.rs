//! Text.

use std::ffi::c_char;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::engine::cos_engine;
use super::error::cos_error;
use super::{check_out, guard, handle, hold, release, slice};
use crate::error::{Error, Result};
use crate::process::Process;
use crate::text::TextStream;

/// # Safety
/// `text` is NULL or has `bytes` bytes.
unsafe fn utf8<'a>(text: *const c_char, bytes: usize, name: &str, bytes_name: &str) -> Result<&'a str> {
    // SAFETY: promised by the caller.
    let bytes = unsafe { slice(text.cast::<u8>(), bytes, name, bytes_name) }?;
    std::str::from_utf8(bytes).map_err(|error| Error::InvalidArgument(format!("{name} is not UTF-8: {error}")))
}

/// The tokens of a text, by the tokenizer.json beside the models.
///
/// @param engine          must not be NULL
/// @param text            UTF-8, `text_bytes` bytes, need not end with NUL
/// @param text_bytes      length of `text`
/// @param add_special     not 0: add the tokens that the post_processor of tokenizer.json puts around a text, such as
///                        one for its start. If tokenizer_config.json asks for others, cos_engine_describe warns.
/// @param tokens          filled; may be NULL if `capacity` is 0
/// @param capacity        how many tokens fit; one token for each byte and a few more are always enough
/// @param out_count       out, must not be NULL: the number of tokens. With a capacity of 0 it is counted only.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also if the text has a token that the
///         models do not have), BUFFER_TOO_SMALL (nothing is written), UNSUPPORTED (the models came without a
///         tokenizer.json)
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `text` and `tokens` are NULL or have their counts; `out_count` is
/// NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_encode(
    engine: *const cos_engine,
    text: *const c_char,
    text_bytes: usize,
    add_special: i32,
    tokens: *mut i32,
    capacity: usize,
    out_count: *mut usize,
) -> *mut cos_error {
    guard(|| {
        check_out(out_count, "out_count")?;
        // SAFETY: promised by the caller.
        let (engine, text) =
            unsafe { (cos_engine::of_this_process(engine)?, utf8(text, text_bytes, "text", "text_bytes")?) };
        let encoded = engine.0.text()?.encode(text, add_special != 0)?;
        // SAFETY: promised by the caller.
        unsafe {
            fill(&encoded, tokens, "tokens", capacity, "tokens")?;
            out_count.write(encoded.len());
        }
        Ok(())
    })
}

/// The text of tokens, by the tokenizer.json beside the models, without special tokens. Bytes that are no whole
/// character become U+FFFD. The first token begins the text, and some tokenizers leave out the space of a first word.
/// So use cos_text_stream_new for the tokens behind a prompt, and to decode a sequence piece by piece.
///
/// @param engine        must not be NULL
/// @param tokens        `tokens_count` tokens
/// @param tokens_count  length of `tokens`
/// @param text          filled with UTF-8, without a NUL at the end; may be NULL if `capacity` is 0
/// @param capacity      how many bytes fit
/// @param out_bytes     out, must not be NULL: the number of bytes. With a capacity of 0 they are counted only.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUFFER_TOO_SMALL (nothing is written),
///         UNSUPPORTED
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `tokens` and `text` are NULL or have their counts; `out_bytes` is
/// NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_decode(
    engine: *const cos_engine,
    tokens: *const i32,
    tokens_count: usize,
    text: *mut c_char,
    capacity: usize,
    out_bytes: *mut usize,
) -> *mut cos_error {
    guard(|| {
        check_out(out_bytes, "out_bytes")?;
        // SAFETY: promised by the caller.
        let (engine, tokens) =
            unsafe { (cos_engine::of_this_process(engine)?, slice(tokens, tokens_count, "tokens", "tokens_count")?) };
        let decoded = engine.0.text()?.decode(tokens)?;
        // SAFETY: promised by the caller.
        unsafe {
            fill(decoded.as_bytes(), text.cast(), "text", capacity, "bytes")?;
            out_bytes.write(decoded.len());
        }
        Ok(())
    })
}

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

/// Turns a stream of tokens into a stream of text that is cut between characters only, and ends before a stop string if
/// there are any. One thread at a time may use it (another one gets BUSY).
///
/// The text continues a prompt, so the space before its first word stays: the text of the prompt and the text of the
/// stream together are the text of all tokens. Unless cos_text_stream_prompt tells the prompt, the stream assumes one
/// that ends with a whole word.
///
/// Since 0.1.
pub struct cos_text_stream {
    inner: Mutex<TextStream>,
    /// What the stream said after the last call.
    stopped: AtomicBool,
    process: Process,
}

/// # Safety
/// `stream` is NULL or a stream that was not freed.
unsafe fn with<T>(stream: *mut cos_text_stream, body: impl FnOnce(&mut TextStream) -> Result<T>) -> Result<T> {
    // SAFETY: promised by the caller.
    let stream = unsafe { hold(stream, "stream") }?;
    stream.process.check()?;
    let mut inner = stream.inner.try_lock().ok_or(Error::Busy)?;
    let result = body(&mut inner);
    stream.stopped.store(inner.stopped(), Ordering::Release);
    result
}

/// Start a stream of text.
///
/// @param engine      must not be NULL; may be freed before the stream
/// @param out_stream  out, must not be NULL; to free with cos_text_stream_free
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, UNSUPPORTED (no tokenizer.json)
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `out_stream` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_new(
    engine: *const cos_engine,
    out_stream: *mut *mut cos_text_stream,
) -> *mut cos_error {
    guard(|| {
        check_out(out_stream, "out_stream")?;
        // SAFETY: promised by the caller.
        let engine = unsafe { cos_engine::of_this_process(engine) }?;
        let stream = cos_text_stream {
            inner: Mutex::new(TextStream::new(engine.0.text()?.clone())?),
            stopped: AtomicBool::new(false),
            process: engine.0.process(),
        };
        // SAFETY: not NULL, and promised by the caller.
        unsafe { out_stream.write(handle(stream)) };
        Ok(())
    })
}

/// Tell a stream what its text continues. With some tokenizers the text depends on it if the prompt is empty, has no
/// text (such as a start token alone), or ends within a word: then no space begins the text. The call is optional. It
/// comes before the first push, or after cos_text_stream_finish. The stream gives no text for these tokens.
///
/// @param stream        in/out, must not be NULL
/// @param tokens        all tokens before the text, such as those given to cos_prompt; NULL if there are none
/// @param tokens_count  length of `tokens`; 0 if the next token that is pushed begins the text
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also after a push; nothing is changed),
///         BUSY
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed; `tokens` is NULL or has its count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_prompt(
    stream: *mut cos_text_stream,
    tokens: *const i32,
    tokens_count: usize,
) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        unsafe {
            let tokens = slice(tokens, tokens_count, "tokens", "tokens_count")?;
            with(stream, |stream| stream.prompt(tokens))
        }
    })
}

/// End the text before the first of some strings that appears in it, such as the turn of another speaker: that is the
/// one that is complete first, and the longest of those. They may be of any length, and reach across tokens. Special
/// tokens give no text, but a stop string that is the name of one, such as "<|im_end|>", or contains it, is found all
/// the same. This replaces the strings set before; what was given out stays.
///
/// @param stream       in/out, must not be NULL
/// @param stops        `stops_count` strings in UTF-8, none of them empty, of at most 16 MiB together; they need not end
///                     with NUL
/// @param stops_bytes  their lengths
/// @param stops_count  length of `stops` and of `stops_bytes`; 0 is none
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (the strings before stay), BUSY
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed; the arrays are NULL or have their count, and each string is NULL or
/// has its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_set_stops(
    stream: *mut cos_text_stream,
    stops: *const *const c_char,
    stops_bytes: *const usize,
    stops_count: usize,
) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        unsafe {
            let stops = slice(stops, stops_count, "stops", "stops_count")?;
            let lengths = slice(stops_bytes, stops_count, "stops_bytes", "stops_count")?;
            let text =
                |(&stop, &bytes)| Ok(utf8(stop, bytes, "a stop string", "its length in stops_bytes")?.to_owned());
            let stops = stops.iter().zip(lengths).map(text).collect::<Result<_>>()?;
            with(stream, |stream| stream.set_stops(stops))
        }
    })
}

/// Whether a stop string has ended the text, or did when that was finished: 1 if it has, otherwise 0, also if `stream` is
/// NULL. Tokens then make no more text until cos_text_stream_finish. While another thread uses the stream, this is the
/// answer from before that call.
///
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_stopped(stream: *const cos_text_stream) -> i32 {
    // SAFETY: promised by the caller.
    unsafe { hold(stream, "stream") }.map_or(0, |stream| stream.stopped.load(Ordering::Acquire).into())
}

/// The text that further tokens complete, such as those of a step. The bytes of an unfinished character are held back
/// until it is whole, and what may become a stop string until that is certain.
///
/// @param stream        in/out, must not be NULL
/// @param tokens        `tokens_count` tokens; NULL if that is 0
/// @param tokens_count  length of `tokens`; 0 is fine
/// @param out_text      out, must not be NULL: UTF-8, without a NUL at the end; owned by the stream, valid until its
///                      next call
/// @param out_bytes     out, must not be NULL: length of the text, possibly 0
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no token is taken), BUSY
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed; `tokens` is NULL or has its count; the outs are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_push(
    stream: *mut cos_text_stream,
    tokens: *const i32,
    tokens_count: usize,
    out_text: *mut *const c_char,
    out_bytes: *mut usize,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        advance(stream, out_text, out_bytes, |stream| {
            stream.push(slice(tokens, tokens_count, "tokens", "tokens_count")?)
        })
    }
}

/// The rest of the text: what was held back, with U+FFFD for bytes that are no character, up to a stop string. The
/// next push starts a new text with the same stop strings, whose prompt is not known.
///
/// @param stream     in/out, must not be NULL
/// @param out_text   as for cos_text_stream_push
/// @param out_bytes  as for cos_text_stream_push
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY
/// Since 0.1.
///
/// # Safety
/// As for cos_text_stream_push.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_finish(
    stream: *mut cos_text_stream,
    out_text: *mut *const c_char,
    out_bytes: *mut usize,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { advance(stream, out_text, out_bytes, TextStream::finish) }
}

/// # Safety
/// As for [`cos_text_stream_push`].
unsafe fn advance(
    stream: *mut cos_text_stream,
    out_text: *mut *const c_char,
    out_bytes: *mut usize,
    body: impl FnOnce(&mut TextStream) -> Result<&str>,
) -> *mut cos_error {
    guard(|| {
        check_out(out_text, "out_text")?;
        check_out(out_bytes, "out_bytes")?;
        // SAFETY: promised by the caller, and the outs are not NULL.
        unsafe {
            with(stream, |stream| {
                let text = body(stream)?;
                // An empty string has a pointer to nothing.
                out_text.write(if text.is_empty() { c"".as_ptr() } else { text.as_ptr().cast() });
                out_bytes.write(text.len());
                Ok(())
            })
        }
    })
}

/// Free a stream of text. Calls that are running keep what they need. No call may begin with it from now on. NULL is
/// fine.
///
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed, and no call begins with it from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_free(stream: *mut cos_text_stream) {
    // SAFETY: promised by the caller.
    unsafe { release(stream) }
}
