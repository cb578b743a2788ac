//! Requests of OpenAI's protocol in the C interface.

use std::borrow::Borrow;
use std::ffi::c_char;
use std::sync::Arc;

use super::engine::cos_engine;
use super::error::cos_error;
use super::exclusive::{Exclusive, Handle, Taken, free, usable};
use super::many::Outputs;
use super::session::{COS_FINISH_NONE, cos_origin, finish_number};
use super::text::utf8;
use super::{VersionedStruct, check_out, guard, handle, read_struct, slice, string, struct_size, write_struct};
use crate::engine::sharing::random_seed;
use crate::error::{Error, Result};
use crate::process::unix_time;
use crate::request::{Canceller, ClientRequest, Ending, Endpoint, News, Status, Terms, step_many};

/// The body of POST /v1/completions.
pub const COS_REQUEST_COMPLETION: i32 = 0;
/// The body of POST /v1/chat/completions.
pub const COS_REQUEST_CHAT: i32 = 1;

/// The request goes on.
pub const COS_REQUEST_OPEN: i32 = 0;
/// All choices have ended.
pub const COS_REQUEST_DONE: i32 = 1;
/// cos_request_cancel ended the request.
pub const COS_REQUEST_CANCELLED: i32 = 2;

/// For the choice of a request: a stop string ended the text.
pub const COS_FINISH_STOP_STRING: i32 = 6;

/// Choices that a request may have if the options do not say.
const MAX_CHOICES: usize = 128;

/// What a server knows of a request, and how much it allows. Set all members to 0 and then struct_size for the
/// defaults.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_request_options {
    /// sizeof(cos_request_options), set by the caller.
    pub struct_size: usize,
    /// One of COS_REQUEST_COMPLETION and COS_REQUEST_CHAT: what the body is.
    pub endpoint: i32,
    /// Most choices of all prompts together; 0: 128.
    pub max_choices: u32,
    /// Most tokens of a prompt; 0: as many as the context has.
    pub max_prompt_tokens: u32,
    /// Most tokens of a choice; 0: as the body says.
    pub max_tokens: u32,
    /// The name of the model. A body with another one is NOT_FOUND. NULL: any name is fine, and none too.
    pub model: *const c_char,
}

// SAFETY: plain data. The size of the first version never changes, and members are only added behind the last one.
unsafe impl VersionedStruct for cos_request_options {
    const NAME: &'static str = "cos_request_options";
    const MIN_SIZE: usize = size_of::<cos_request_options>();
}
const _: () = assert!(<cos_request_options as VersionedStruct>::MIN_SIZE == 32);

/// How a request stands.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_request_status {
    /// sizeof(cos_request_status), set by the caller.
    pub struct_size: usize,
    /// One of COS_REQUEST_OPEN, COS_REQUEST_DONE and COS_REQUEST_CANCELLED.
    pub state: i32,
    /// 1 if the body asks for a stream.
    pub streams: i32,
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Tokens decoded for all choices.
    pub completion_tokens: u64,
}

// SAFETY: as above.
unsafe impl VersionedStruct for cos_request_status {
    const NAME: &'static str = "cos_request_status";
    const MIN_SIZE: usize = size_of::<cos_request_status>();
}
const _: () = assert!(<cos_request_status as VersionedStruct>::MIN_SIZE == 32);

/// What is to be told of a choice of a request: what the last step brought if the body asks for a stream, and
/// otherwise all of it. Without news, all members are 0.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_choice_news {
    /// sizeof(cos_choice_news), set by the caller.
    pub struct_size: usize,
    /// UTF-8 without a NUL at the end; NULL if it is empty. It ends before a stop string, and may lag behind the
    /// tokens. Owned by the request; valid until its next call.
    pub text: *const c_char,
    /// Length of `text` in bytes.
    pub text_bytes: usize,
    /// The tokens, with those of a stop string or a stop token. Owned and valid as `text`.
    pub tokens: *const i32,
    /// Length of `tokens`.
    pub tokens_count: usize,
    /// One of COS_FINISH_*: why the text has ended.
    pub finish: i32,
    /// Always 0.
    pub reserved: i32,
    /// As in cos_step_result, as far as the body asks for it.
    pub log_probabilities: *const f32,
    /// As in cos_step_result.
    pub top_tokens: *const i32,
    /// As in cos_step_result.
    pub top_log_probabilities: *const f32,
    /// Alternatives of each token.
    pub top_count: usize,
    /// As in cos_step_result.
    pub model_log_probabilities: *const f32,
    /// As in cos_step_result.
    pub origins: *const cos_origin,
}

// SAFETY: as above.
unsafe impl VersionedStruct for cos_choice_news {
    const NAME: &'static str = "cos_choice_news";
    const MIN_SIZE: usize = std::mem::offset_of!(cos_choice_news, origins);
}
const _: () = assert!(<cos_choice_news as VersionedStruct>::MIN_SIZE == 88 && size_of::<cos_choice_news>() == 96);

/// A request of OpenAI's protocol: sessions and streams of text that a body asks for, and the answer. One thread at a
/// time may use it; a call from another thread returns BUSY. Only cos_request_cancel and cos_request_choices may be
/// called at any time.
///
/// Since 0.1.
pub struct cos_request {
    exclusive: Exclusive<cos_request, ClientRequest>,
    canceller: Arc<Canceller>,
    choices: usize,
}

impl Handle<ClientRequest> for cos_request {
    const NAME: &'static str = "request";

    fn exclusive(&self) -> &Exclusive<cos_request, ClientRequest> {
        &self.exclusive
    }

    fn cancel(&self) {
        self.canceller.cancel();
    }
}

/// Check the body of a request, and start the sessions that it asks for. Nothing is decoded yet: all faults of a body
/// are found here, before any part of an answer is sent. May be called from any thread at any time.
///
/// docs/requests.md lists the members of a body. They are those of OpenAI's interface, and those that other servers
/// have added to it, such as "top_k", "min_p" and "structured_outputs". What only this library has is in "cos".
///
/// @param engine       must not be NULL; may be freed before the request
/// @param options      must not be NULL; `struct_size` must be set
/// @param body         JSON in UTF-8; need not end with NUL
/// @param body_bytes   length of `body` in bytes
/// @param out_request  out, must not be NULL; owned by the caller, who frees it with cos_request_free
/// @return NULL, or an error to free with cos_error_free, which cos_error_status and cos_error_json turn into an
///         answer: INVALID_ARGUMENT (the message names the member), UNSUPPORTED (as before, or a member of `options`
///         is set that this library does not know), NOT_FOUND, CONTEXT_FULL (a prompt is too long), RUNTIME
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `options` is NULL or has `struct_size` bytes, and `model` is NULL
/// or a C string; `body` is NULL or has `body_bytes` bytes; `out_request` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_new(
    engine: *const cos_engine,
    options: *const cos_request_options,
    body: *const c_char,
    body_bytes: usize,
    out_request: *mut *mut cos_request,
) -> *mut cos_error {
    guard(|| {
        check_out(out_request, "out_request")?;
        // SAFETY: promised by the caller.
        let (engine, terms, body) = unsafe {
            let engine = cos_engine::of_this_process(engine)?;
            (engine, terms(options)?, utf8(body, body_bytes, "body", "body_bytes")?)
        };
        let request = ClientRequest::new(&engine.0, body, &terms)?;
        let raw = handle(cos_request {
            canceller: request.canceller().clone(),
            choices: request.choices(),
            exclusive: Exclusive::new(request, engine.0.process()),
        });
        // SAFETY: not NULL, and promised by the caller.
        unsafe { out_request.write(raw) };
        Ok(())
    })
}

/// # Safety
/// `options` is NULL or has `struct_size` bytes, and `model` is NULL or a C string.
unsafe fn terms(options: *const cos_request_options) -> Result<Terms> {
    // SAFETY: promised by the caller.
    let options = unsafe { read_struct(options) }?;
    let or = |number: u32, default: usize| if number == 0 { default } else { number as usize };
    Ok(Terms {
        endpoint: match options.endpoint {
            COS_REQUEST_COMPLETION => Endpoint::Completion,
            COS_REQUEST_CHAT => Endpoint::Chat,
            other => {
                return Err(Error::InvalidArgument(format!(
                    "endpoint is {other}; it must be COS_REQUEST_COMPLETION (0) or COS_REQUEST_CHAT (1)"
                )));
            }
        },
        // SAFETY: promised by the caller.
        model: (!options.model.is_null())
            .then(|| unsafe { string(options.model, "model") })
            .transpose()?
            .map(str::to_owned),
        number: random_seed(),
        created: unix_time(),
        max_choices: or(options.max_choices, MAX_CHOICES),
        max_prompt_tokens: or(options.max_prompt_tokens, usize::MAX),
        max_tokens: or(options.max_tokens, usize::MAX),
    })
}

/// The number of choices: prompts times "n". Each decodes in a session of its own, so a server may count them against
/// what it decodes at once. Never fails. May be called from any thread at any time until cos_request_free is called.
///
/// @param request  may be NULL
/// @return the number of choices, or 0 if `request` is NULL
/// Since 0.1.
///
/// # Safety
/// `request` is NULL or a request that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_choices(request: *const cos_request) -> usize {
    // SAFETY: promised by the caller.
    unsafe { request.as_ref() }.map_or(0, |request| request.choices)
}

/// Decode until a choice has news if the body asks for a stream, and otherwise to the end. All choices of the request
/// share passes, and those of other threads too. The first choice of a prompt goes ahead of the others, which then find
/// the prompt computed.
///
/// An error of a choice ends the request. One thread at a time.
///
/// @param request     in/out, must not be NULL, not in use on another thread (BUSY)
/// @param out_status  out, must not be NULL; `struct_size` must be set
/// @return NULL, or an error to free with cos_error_free: those of cos_step, and each later step returns it again
/// Since 0.1.
///
/// # Safety
/// `request` is NULL or a request that was not freed; `out_status` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_step(
    request: *mut cos_request,
    out_status: *mut cos_request_status,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { tell_status(request, out_status, ClientRequest::step) }
}

/// Run a call that tells how a request stands.
///
/// # Safety
/// As for [`cos_request_step`].
unsafe fn tell_status(
    request: *const cos_request,
    out_status: *mut cos_request_status,
    call: impl FnOnce(&mut ClientRequest) -> Result<Status>,
) -> *mut cos_error {
    guard(|| {
        check_out(out_status, cos_request_status::NAME)?;
        // SAFETY: promised by the caller.
        let (size, mut taken) = unsafe { (struct_size(out_status)?, Taken::new(request)?) };
        let status = taken.run(|request| {
            let status = call(request)?;
            Ok(status_of(size, request, status))
        })?;
        // SAFETY: promised by the caller; the size was checked.
        unsafe { write_struct(out_status, &status) };
        Ok(())
    })
}

/// How a request stands, such as before its first step. One thread at a time.
///
/// @param request     must not be NULL, not in use on another thread (BUSY)
/// @param out_status  out, must not be NULL; `struct_size` must be set
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED, and the error that has
///         ended the request
/// Since 0.1.
///
/// # Safety
/// `request` is NULL or a request that was not freed; `out_status` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_get_status(
    request: *const cos_request,
    out_status: *mut cos_request_status,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { tell_status(request, out_status, |request| request.status()) }
}

/// Advance many requests by one pass of each model, as cos_step_many does with sessions: for servers where one thread
/// drives all. Call it in a loop with all requests that are open. Those without news are in the middle of a round.
///
/// An error of one request is its own, and the others go on. These are errors of a request: it is NULL, was given
/// before in the same call (INVALID_ARGUMENT), is in use on another thread (BUSY), or any error of cos_request_step.
///
/// @param requests     the requests, in use by no other thread; may be NULL if `count` is 0
/// @param count        number of requests; 0 does nothing
/// @param out_results  out, `count` results, whose `struct_size` must be set in all; may be NULL if `count` is 0
/// @param out_errors   out, `count` errors, each NULL or to be freed with cos_error_free; may be NULL if `count` is 0.
///                     What it held before is overwritten.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (an array is NULL, `count` is absurd, or
///         struct_sizes are wrong or differ; then nothing was done or written), INTERNAL (poisons the requests)
/// Since 0.1.
///
/// # Safety
/// `requests`, `out_results` and `out_errors` are NULL or have `count` elements; each request is NULL or was not freed;
/// each result has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_step_many(
    requests: *const *mut cos_request,
    count: usize,
    out_results: *mut cos_request_status,
    out_errors: *mut *mut cos_error,
) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        let requests = unsafe { slice(requests, count, "requests", "count") }?;
        if requests.is_empty() {
            return Ok(());
        }
        // SAFETY: promised by the caller.
        let outputs = unsafe { Outputs::new(out_results, out_errors, count, empty_status) }?;
        // SAFETY: the index of a request is one of the elements; the rest is promised by the caller.
        let mut held = unsafe { Taken::all(requests, |index, error| outputs.write(index, Err(error))) };
        let result = super::catch(|| {
            step_many(&mut held, |taken: &mut Taken<cos_request, ClientRequest>, status| {
                if let Err(Error::Internal(_)) = status {
                    taken.poison();
                }
                let status = status.map(|status| status_of(outputs.size, (*taken).borrow(), status));
                // SAFETY: the index of a request is one of the elements.
                unsafe { outputs.write(taken.index, status) };
            });
            Ok(())
        });
        Taken::give_back(held, |each| {
            if result.is_err() {
                // A panic outside of any one request leaves all in an unknown state.
                each.poison();
            }
        });
        result
    })
}

fn empty_status(struct_size: usize) -> cos_request_status {
    cos_request_status { struct_size, state: COS_REQUEST_OPEN, streams: 0, prompt_tokens: 0, completion_tokens: 0 }
}

fn status_of(struct_size: usize, request: &ClientRequest, status: Status) -> cos_request_status {
    let usage = request.usage();
    cos_request_status {
        struct_size,
        state: match status {
            Status::Open => COS_REQUEST_OPEN,
            Status::Done => COS_REQUEST_DONE,
            Status::Cancelled => COS_REQUEST_CANCELLED,
        },
        streams: request.streams().into(),
        prompt_tokens: usage.prompt_tokens as u64,
        completion_tokens: usage.completion_tokens as u64,
    }
}

/// What a server of OpenAI's protocol sends for the last step. If the body asks for a stream, these are complete
/// server-sent events, the last of which is `data: [DONE]`, or nothing while text is held back. Otherwise it is the
/// body of the answer once the request is done, and nothing before. One thread at a time.
///
/// If a step fails, send cos_error_json, with cos_error_status or as an event.
///
/// @param request    in/out, must not be NULL, not in use on another thread (BUSY)
/// @param out_text   out, must not be NULL: UTF-8 without a NUL at the end; owned by the request and valid until its
///                   next call
/// @param out_bytes  out, must not be NULL: length of the text in bytes, possibly 0
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `request` is NULL or a request that was not freed; the others are NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_answer(
    request: *mut cos_request,
    out_text: *mut *const c_char,
    out_bytes: *mut usize,
) -> *mut cos_error {
    guard(|| {
        check_out(out_text, "out_text")?;
        check_out(out_bytes, "out_bytes")?;
        // SAFETY: promised by the caller.
        let mut taken = unsafe { Taken::new(request) }?;
        let (text, bytes) = taken.run(|request| {
            let answer = request.answer();
            // The pointer of an empty string is not an address, and some garbage collectors fail on it.
            Ok((if answer.is_empty() { c"".as_ptr().cast() } else { answer.as_ptr() }, answer.len()))
        })?;
        // SAFETY: not NULL, and promised by the caller.
        unsafe {
            out_text.write(text.cast());
            out_bytes.write(bytes);
        }
        Ok(())
    })
}

/// What the last step brought of a choice, for servers of another protocol. One thread at a time.
///
/// @param request   must not be NULL, not in use on another thread (BUSY)
/// @param choice    less than cos_request_choices. Choice c is of prompt c / "n".
/// @param out_news  out, must not be NULL; `struct_size` must be set
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `request` is NULL or a request that was not freed; `out_news` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_choice(
    request: *const cos_request,
    choice: usize,
    out_news: *mut cos_choice_news,
) -> *mut cos_error {
    guard(|| {
        check_out(out_news, cos_choice_news::NAME)?;
        // SAFETY: promised by the caller.
        let (size, mut taken) = unsafe { (struct_size(out_news)?, Taken::new(request)?) };
        let news = taken.run(|request| {
            if choice >= request.choices() {
                return Err(Error::InvalidArgument(format!(
                    "choice is {choice}, but the request has {}",
                    request.choices()
                )));
            }
            Ok(choice_news(size, request.news(choice), request.top()))
        })?;
        // SAFETY: promised by the caller; the size was checked.
        unsafe { write_struct(out_news, &news) };
        Ok(())
    })
}

fn choice_news(struct_size: usize, news: Option<&News>, top_count: usize) -> cos_choice_news {
    fn optional<T>(values: &[T]) -> *const T {
        if values.is_empty() { std::ptr::null() } else { values.as_ptr() }
    }
    let nothing = News::default();
    let told = news.unwrap_or(&nothing);
    cos_choice_news {
        struct_size,
        text: optional(told.text.as_bytes()).cast(),
        text_bytes: told.text.len(),
        tokens: optional(&told.tokens),
        tokens_count: told.tokens.len(),
        finish: match told.ending {
            None => COS_FINISH_NONE,
            Some(Ending::StopString) => COS_FINISH_STOP_STRING,
            Some(Ending::Decoder(finish)) => finish_number(finish),
        },
        reserved: 0,
        log_probabilities: optional(&told.log_probabilities.of_tokens),
        top_tokens: optional(&told.log_probabilities.top_tokens),
        top_log_probabilities: optional(&told.log_probabilities.of_top),
        top_count: if told.log_probabilities.top_tokens.is_empty() { 0 } else { top_count },
        model_log_probabilities: optional(&told.log_probabilities.of_models),
        origins: optional(&told.origins).cast(),
    }
}

/// Cancel a request: the running step ends early, or else the next one ends at once, with COS_REQUEST_CANCELLED. May
/// be called from any thread at any time until cos_request_free is called. Never waits for a pass.
///
/// @param request  must not be NULL
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
/// Since 0.1.
///
/// # Safety
/// `request` is NULL or a request that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_cancel(request: *mut cos_request) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        unsafe { usable(request) }?.cancel();
        Ok(())
    })
}

/// Free a request. In a child of fork(), a request of the parent stays as it is.
///
/// Calls that are running on other threads complete: a step is cancelled, and this call waits for it. No call with the
/// request may begin from now on, not even cos_request_cancel.
///
/// @param request  may be NULL, which does nothing
/// Since 0.1.
///
/// # Safety
/// `request` is NULL or a request that was not freed, and no call begins with it from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_request_free(request: *mut cos_request) {
    // SAFETY: promised by the caller.
    unsafe { free(request) };
}
