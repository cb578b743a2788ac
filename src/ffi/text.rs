//! Text of the C interface: encode, decode, and streams of text.

use std::ffi::c_char;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::engine::cos_engine;
use super::error::cos_error;
use super::{check_out, fill, guard, handle, hold, release, slice, write_text};
use crate::error::{Error, Result};
use crate::process::Process;
use crate::text::{Text, TextStream};

/// # Safety
/// `text` is NULL or has `bytes` bytes.
pub(super) unsafe fn utf8<'a>(text: *const c_char, bytes: usize, name: &str, bytes_name: &str) -> Result<&'a str> {
    // SAFETY: promised by the caller.
    let bytes = unsafe { slice(text.cast::<u8>(), bytes, name, bytes_name) }?;
    std::str::from_utf8(bytes).map_err(|error| Error::InvalidArgument(format!("{name} is not UTF-8: {error}")))
}

/// For cos_engine_encode: add the tokens that the post_processor of tokenizer.json puts around a text, such as a start
/// token.
pub const COS_ENCODE_ADD_SPECIAL: i32 = 1;
/// For cos_engine_encode: take the names of special tokens in the text for plain text.
pub const COS_ENCODE_PLAIN: i32 = 2;

/// Write tokens to a buffer of the caller as [`fill`] does, and their number.
///
/// # Safety
/// `buffer` is NULL or has `capacity` elements, and `out_count` is valid for a write.
pub(super) unsafe fn write_tokens(
    written: &[i32],
    buffer: *mut i32,
    capacity: usize,
    out_count: *mut usize,
) -> Result<()> {
    // SAFETY: promised by the caller.
    unsafe {
        fill(written, buffer, "tokens", capacity, "tokens")?;
        out_count.write(written.len());
    }
    Ok(())
}

/// Decode tokens to a buffer of the caller.
///
/// # Safety
/// As for [`cos_engine_decode`].
unsafe fn decode(
    engine: *const cos_engine,
    (tokens, tokens_count): (*const i32, usize),
    (text, capacity, out_bytes): (*mut c_char, usize, *mut usize),
    decode: impl FnOnce(&Text, &[i32]) -> Result<String>,
) -> *mut cos_error {
    guard(|| {
        check_out(out_bytes, "out_bytes")?;
        // SAFETY: promised by the caller.
        unsafe {
            let engine = cos_engine::of_this_process(engine)?;
            let tokens = slice(tokens, tokens_count, "tokens", "tokens_count")?;
            write_text(&decode(engine.0.text()?, tokens)?, text, "text", capacity, out_bytes)
        }
    })
}

/// Encode a text as tokens, with the tokenizer.json beside the models. May be called from any thread at any time.
///
/// @param engine       must not be NULL
/// @param text         UTF-8, `text_bytes` bytes; need not end with NUL
/// @param text_bytes   length of `text` in bytes
/// @param add_special  the sum of COS_ENCODE_*, or 0.
///                     COS_ENCODE_ADD_SPECIAL: add the tokens that the post_processor of tokenizer.json puts around a
///                     text. If tokenizer_config.json asks for others, cos_engine_describe has a warning.
///                     COS_ENCODE_PLAIN: the names of special tokens in the text, such as "<|im_end|>", become tokens
///                     of plain text. Without it, they become these special tokens, so set it for what users say.
/// @param tokens       out: the tokens, in a buffer of the caller; may be NULL if `capacity` is 0
/// @param capacity     length of `tokens`. 0: the tokens are only counted. One token for each byte of the text and a
///                     few more are always enough.
/// @param out_count    out, must not be NULL: the number of tokens
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also if the text has a token that the
///         models do not have, or a special token that cannot be plain text), BUFFER_TOO_SMALL (nothing is written),
///         UNSUPPORTED (no model has a tokenizer.json)
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
        let known = COS_ENCODE_ADD_SPECIAL | COS_ENCODE_PLAIN;
        if add_special & !known != 0 {
            return Err(Error::InvalidArgument(format!(
                "add_special is {add_special}; pass a sum of COS_ENCODE_*, which is 0 to {known}"
            )));
        }
        let special = add_special & COS_ENCODE_ADD_SPECIAL != 0;
        let tokenizer = engine.0.text()?;
        let encoded = match add_special & COS_ENCODE_PLAIN {
            0 => tokenizer.encode(text, special)?,
            _ => tokenizer.encode_plain(text, special)?,
        };
        // SAFETY: promised by the caller.
        unsafe { write_tokens(&encoded, tokens, capacity, out_count) }
    })
}

/// Decode tokens to text, with the tokenizer.json beside the models. Special tokens give no text. Bytes that do not
/// form a character become U+FFFD.
///
/// The first token begins the text, and some tokenizers drop the space before the first word. So for tokens that
/// continue a prompt, or to decode piece by piece, use cos_text_stream_new. May be called from any thread at any time.
///
/// @param engine        must not be NULL
/// @param tokens        `tokens_count` tokens; may be NULL if that is 0
/// @param tokens_count  length of `tokens`
/// @param text          out: UTF-8 without a NUL at the end, in a buffer of the caller; may be NULL if `capacity` is 0
/// @param capacity      length of `text` in bytes. 0: the bytes are only counted.
/// @param out_bytes     out, must not be NULL: the number of bytes
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUFFER_TOO_SMALL (nothing is written),
///         UNSUPPORTED (no model has a tokenizer.json)
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
    // SAFETY: promised by the caller.
    unsafe { decode(engine, (tokens, tokens_count), (text, capacity, out_bytes), Text::decode) }
}

/// As cos_engine_decode, but special tokens give their names, such as "<|im_end|>". For logs, and for text that another
/// program parses. May be called from any thread at any time.
///
/// @param engine        must not be NULL
/// @param tokens        as for cos_engine_decode
/// @param tokens_count  length of `tokens`
/// @param text          as for cos_engine_decode
/// @param capacity      length of `text` in bytes. 0: the bytes are only counted.
/// @param out_bytes     out, must not be NULL: the number of bytes
/// @return NULL, or an error to free with cos_error_free: those of cos_engine_decode
/// Since 0.1.
///
/// # Safety
/// As for cos_engine_decode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_decode_special(
    engine: *const cos_engine,
    tokens: *const i32,
    tokens_count: usize,
    text: *mut c_char,
    capacity: usize,
    out_bytes: *mut usize,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { decode(engine, (tokens, tokens_count), (text, capacity, out_bytes), Text::decode_special) }
}

/// A stream that decodes tokens to text as they come. It gives out whole characters only, and can end the text before a
/// stop string. One thread at a time may use it; a call from another thread returns BUSY.
///
/// The text continues a prompt: the text of the prompt and the text of the stream together are the text of all tokens.
/// So the space before the first word stays. If cos_text_stream_prompt does not set the prompt, the stream assumes that
/// it ends with a whole word.
///
/// Since 0.1.
pub struct cos_text_stream {
    inner: Mutex<TextStream>,
    /// Whether a stop string had ended the text after the last call.
    stopped: AtomicBool,
    process: Process,
}

/// # Safety
/// `stream` is NULL or a stream that was not freed.
unsafe fn with_stream<T>(stream: *mut cos_text_stream, body: impl FnOnce(&mut TextStream) -> Result<T>) -> Result<T> {
    // SAFETY: promised by the caller.
    let stream = unsafe { hold(stream, "stream") }?;
    stream.process.check()?;
    let mut inner = stream.inner.try_lock().ok_or(Error::Busy)?;
    let result = body(&mut inner);
    stream.stopped.store(inner.stopped(), Ordering::Release);
    result
}

/// Start a stream of text. May be called from any thread at any time.
///
/// @param engine      must not be NULL; may be freed before the stream
/// @param out_stream  out, must not be NULL; owned by the caller, who frees it with cos_text_stream_free
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, UNSUPPORTED (no model has a
///         tokenizer.json)
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

/// Set the prompt that the text continues. The call is optional. It must come before the first push, or after
/// cos_text_stream_finish. The stream gives no text for the tokens of the prompt.
///
/// With some tokenizers, the start of the text depends on the prompt: no space begins the text if the prompt is empty,
/// has no text (such as a start token alone), or ends within a word. On error, nothing changes. One thread at a time.
///
/// @param stream        in/out, must not be NULL, not in use on another thread (BUSY)
/// @param tokens        all tokens before the text, such as those of cos_prompt; NULL if there are none
/// @param tokens_count  length of `tokens`; 0: the next token that is pushed begins the text
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also after a push), BUSY
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
            with_stream(stream, |stream| stream.prompt(tokens))
        }
    })
}

/// Set whether special tokens give their names as text, such as "<|im_end|>". A new stream shows none. The call must
/// come before the first push, or after cos_text_stream_finish, and holds for later texts too. The prompt is unknown
/// again, so call cos_text_stream_prompt behind it. On error, nothing changes. One thread at a time.
///
/// @param stream  in/out, must not be NULL, not in use on another thread (BUSY)
/// @param show    not 0: special tokens give their names
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also after a push), BUSY
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_show_special(stream: *mut cos_text_stream, show: i32) -> *mut cos_error {
    // SAFETY: promised by the caller.
    guard(|| unsafe { with_stream(stream, |stream| stream.show_special(show != 0)) })
}

/// Set the stop strings: the text ends before the first one that appears in it. They replace those set before. Text
/// that was given out already stays.
///
/// The first stop string is the one that is complete first. If several are complete at the same place, it is the
/// longest of them. A stop string may span tokens. Special tokens give no text, but a stop string may be or contain the
/// name of one, such as "<|im_end|>". On error, nothing changes. One thread at a time.
///
/// @param stream       in/out, must not be NULL, not in use on another thread (BUSY)
/// @param stops        copied: `stops_count` strings in UTF-8, which need not end with NUL. None may be empty, and
///                     together they may have 16 MiB.
/// @param stops_bytes  the length of each string in bytes
/// @param stops_count  length of `stops` and of `stops_bytes`; 0: no stop strings
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY
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
            with_stream(stream, |stream| stream.set_stops(stops))
        }
    })
}

/// Tell whether a stop string has ended the text. If it has, pushed tokens give no more text until
/// cos_text_stream_finish is called. After that call, the answer is about the finished text until the next push. May be
/// called from any thread until cos_text_stream_free is called: while another call runs, the answer is from before it.
///
/// @param stream  may be NULL
/// @return 1 if a stop string has ended the text; otherwise 0, also if `stream` is NULL
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_stopped(stream: *const cos_text_stream) -> i32 {
    // SAFETY: promised by the caller.
    unsafe { hold(stream, "stream") }.map_or(0, |stream| stream.stopped.load(Ordering::Acquire).into())
}

/// Push tokens, such as those of a step, and get the text that they complete. The stream holds back the bytes of an
/// unfinished character, and text that may become a stop string. On error, no token is taken. One thread at a time.
///
/// @param stream        in/out, must not be NULL, not in use on another thread (BUSY)
/// @param tokens        `tokens_count` tokens; may be NULL if that is 0
/// @param tokens_count  length of `tokens`; may be 0, and such a call does not count as a push
/// @param out_text      out, must not be NULL: UTF-8 without a NUL at the end; owned by the stream and valid until its
///                      next call
/// @param out_bytes     out, must not be NULL: length of the text in bytes, possibly 0
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed; `tokens` is NULL or has its count; the outputs are NULL or valid.
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

/// Finish the text and get its rest: what the stream held back, up to a stop string. Bytes that do not form a character
/// become U+FFFD. The next push starts a new text with the same stop strings, and without a prompt that was set. One
/// thread at a time.
///
/// @param stream     in/out, must not be NULL, not in use on another thread (BUSY)
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
        // SAFETY: promised by the caller, and the outputs are not NULL.
        unsafe {
            with_stream(stream, |stream| {
                let text = body(stream)?;
                // The pointer of an empty slice is not an address.
                out_text.write(if text.is_empty() { c"".as_ptr() } else { text.as_ptr().cast() });
                out_bytes.write(text.len());
                Ok(())
            })
        }
    })
}

/// Free a stream of text. Calls that are running on other threads complete. No call with the stream may begin from now
/// on.
///
/// @param stream  may be NULL, which does nothing
/// Since 0.1.
///
/// # Safety
/// `stream` is NULL or a stream that was not freed, and no call begins with it from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_text_stream_free(stream: *mut cos_text_stream) {
    // SAFETY: promised by the caller.
    unsafe { release(stream) }
}
