//! Chat of the C interface: messages rendered by the chat template beside the models, as text or as tokens.

use std::ffi::c_char;

use super::engine::cos_engine;
use super::error::cos_error;
use super::text::{utf8, write_tokens};
use super::{check_out, guard, write_text};

/// Render messages to text with the chat template beside the models, as `apply_chat_template(tokenize=False)` of
/// transformers 5 does. May be called from any thread at any time.
///
/// `messages_json` is an array of messages as in OpenAI's interface, or an object that has more:
///
///     {
///       "messages": [ { "role": "user", "content": "Hello" } ],   at least one
///       "tools": [ ... ],                  optional: the schemas of the functions that the model may call
///       "documents": [ ... ],              optional: objects with a title and a text
///       "template": "tool_use",            optional: one of the chat_templates of cos_engine_describe
///       "enable_thinking": false           any other key is a variable of the template
///     }
///
/// The templates are those of the first model that has some beside its tokenizer.json: `chat_template.jinja` and
/// `additional_chat_templates/NAME.jinja`, or else those of tokenizer_config.json, or else chat_template.json. Without
/// "template", "tool_use" is taken if there are tools and such a template, or else "default". A template is a program:
/// it cannot read files, and its steps are counted, but one made to do harm may end the process. So trust it as you
/// trust its model.
///
/// A message goes to the template as it is, but for two things that transformers does too. Its keys that are null are
/// left out, and its `reasoning_content`, `thinking` or `reasoning` is there under the first two names. A key that the
/// template does not read is an error, because it would do nothing.
///
/// The text holds control tokens by their names, and what users say as they said it. To get tokens, call
/// cos_engine_chat_encode. It keeps what users say from becoming control tokens.
///
/// @param engine                 must not be NULL
/// @param messages_json          JSON in UTF-8, `length` bytes; need not end with NUL; at most 128 levels deep
/// @param length                 length of `messages_json` in bytes
/// @param add_generation_prompt  not 0: end with what begins an answer of the assistant
/// @param buffer                 out: UTF-8 without a NUL at the end, in a buffer of the caller; may be NULL if
///                               `capacity` is 0
/// @param capacity               length of `buffer` in bytes. 0: the bytes are only counted.
/// @param out_length             out, must not be NULL: the number of bytes
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also if the template refuses the messages,
///         fails on them, or takes too many steps), BUFFER_TOO_SMALL (nothing is written), UNSUPPORTED (no model has
///         a tokenizer.json and a chat template that can be used)
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `messages_json` and `buffer` are NULL or have their counts;
/// `out_length` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_chat(
    engine: *const cos_engine,
    messages_json: *const c_char,
    length: usize,
    add_generation_prompt: i32,
    buffer: *mut c_char,
    capacity: usize,
    out_length: *mut usize,
) -> *mut cos_error {
    guard(|| {
        check_out(out_length, "out_length")?;
        // SAFETY: promised by the caller.
        let (engine, json) =
            unsafe { (cos_engine::of_this_process(engine)?, utf8(messages_json, length, "messages_json", "length")?) };
        let (_, chat) = engine.0.chat()?;
        let text = chat.render(json, add_generation_prompt != 0)?;
        // SAFETY: promised by the caller.
        unsafe { write_text(&text, buffer, "buffer", capacity, out_length) }
    })
}

/// Render messages and encode them as tokens, so that only the template writes control tokens. It is
/// `apply_chat_template(sanitize_control_tokens=True)` of transformers 5. May be called from any thread at any time.
///
/// The text is that of cos_engine_chat. Where a string of `messages_json` has the name of a control token, that name
/// becomes tokens of plain text. Control tokens are the special tokens of the tokenizer, and the other added tokens
/// that the template has in its source. `chat_control_tokens` of tokenizer_config.json may list these others instead.
///
/// Keys of objects are not searched. A template may join a string of a message with other text to a control token, such
/// as the role in "<|user|>", so check the roles of messages. The characters U+F0000 and U+F0001 are removed from what
/// `messages_json` says.
///
/// @param engine                 must not be NULL
/// @param messages_json          as for cos_engine_chat
/// @param length                 length of `messages_json` in bytes
/// @param add_generation_prompt  not 0: end with what begins an answer of the assistant
/// @param tokens                 out: the tokens, in a buffer of the caller; may be NULL if `capacity` is 0. They are
///                               the whole prompt: the template writes the start token where the model wants one.
/// @param capacity               length of `tokens`. 0: the tokens are only counted.
/// @param out_count              out, must not be NULL: the number of tokens
/// @return NULL, or an error to free with cos_error_free: those of cos_engine_chat, and INVALID_ARGUMENT if a control
///         token in a message cannot be plain text, or the text has a token that the models do not have
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `messages_json` and `tokens` are NULL or have their counts;
/// `out_count` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_chat_encode(
    engine: *const cos_engine,
    messages_json: *const c_char,
    length: usize,
    add_generation_prompt: i32,
    tokens: *mut i32,
    capacity: usize,
    out_count: *mut usize,
) -> *mut cos_error {
    guard(|| {
        check_out(out_count, "out_count")?;
        // SAFETY: promised by the caller.
        let (engine, json) =
            unsafe { (cos_engine::of_this_process(engine)?, utf8(messages_json, length, "messages_json", "length")?) };
        let (text, chat) = engine.0.chat()?;
        let encoded = chat.encode(text, json, add_generation_prompt != 0)?;
        // SAFETY: promised by the caller.
        unsafe { write_tokens(&encoded, tokens, capacity, out_count) }
    })
}
