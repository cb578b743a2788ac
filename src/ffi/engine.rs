//! Engines.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::sync::Arc;

use once_cell::sync::OnceCell;

use super::error::cos_error;
use super::{check_out, guard, handle, hold, release, string};
use crate::config::Config;
use crate::engine::Engine;
use crate::engine::table::table;
use crate::error::Result;

/// An engine: the loaded models and how they are combined. Immutable; any number of threads may use one at once.
///
/// Since 0.1.
pub struct cos_engine(pub(super) Arc<Engine>, Descriptions);

/// What is made of an engine on the first demand, and lives as long as it.
#[derive(Default)]
struct Descriptions {
    json: OnceCell<CString>,
    table: OnceCell<CString>,
}

impl cos_engine {
    /// Hand an engine that was made in Rust to C.
    pub fn into_raw(engine: Arc<Engine>) -> *mut cos_engine {
        handle(cos_engine(engine, Descriptions::default()))
    }

    /// An engine of this process. A child of `fork()` may have it with a lock that a thread of the parent held.
    ///
    /// # Safety
    /// As for [`hold`].
    pub(super) unsafe fn of_this_process(engine: *const cos_engine) -> Result<Arc<cos_engine>> {
        // SAFETY: promised by the caller.
        let engine = unsafe { hold(engine, "engine") }?;
        engine.0.process().check()?;
        Ok(engine)
    }
}

/// Make an engine from a configuration file. Relative paths in it are relative to its folder.
///
/// The file is a JSON object in UTF-8, of at most 64 models. An unknown key is an error that names it:
///
///     {
///       "models": [ { "path": "base",         an .onnx file, or a folder that holds one
///                     "provider": "cpu",      or "cuda"; "cpu" by default
///                     "device_id": 0,         which GPU; 0 by default
///                     "options": {},          of ONNX Runtime's CUDA provider, by its names, such as "gpu_mem_limit": bytes;
///                                             "enable_cuda_graph": false has no passes captured
///                     "rows": "gpu",          or "host": where rows of logits stay that a GPU makes; by default on the GPU if
///                                             they are long
///                     "name": "base",         for messages; the folder's name by default
///                     "context_length": 4096, most tokens of a sequence; by default what the export says
///                     "scoring": "parallel" },  or "one_by_one": how positions of a draft are scored; by default
///                                             in parallel, if that is found to be the same when the model is loaded;
///                                             "parallel" insists, and refuses the model otherwise
///                   { "kind": "ngram" } ],    optional: a look-up of the last words in the sequence itself, which
///                                             drafts at no cost where text repeats itself. It counts as a model
///                                             everywhere, has the weight 0, and takes a "name" but no other key.
///                                             Other models are of the kind "onnx", the default.
///       "combine": one of
///         { "kind": "weighted", "weights": [0.5, 0.5] }             sum of the distributions
///         { "kind": "contrastive", "mu": 0.1, "plausibility": 0 }   model 0 the expert, model 1 the amateur
///         { "kind": "logits", "weights": [1, 0.5, -0.5] }           weighted sum of the logits
///         { "kind": "target", "model": 0 }                          one model; the others only draft
///       "threads": 0,                         of the pool that all models of the process share; 0 by default,
///                                             one for each core that the process may use; more than these do not spin
///       "spinning": true,                     whether they stay awake for a while when there is nothing to do; false
///                                             is for machines that have much else to do
///       "overlap": true,                      whether passes that do not depend on each other run at the same time: of models
///                                             on GPUs beside others; false: one after the other; by default it is found out
///                                             whether that pays, in some milliseconds
///       "greedy_below": 0.01,                 sessions with a temperature below this are greedy, for clients that send
///                                             a small one and mean 0; 0 by default, which is off
///       "onnxruntime": "libonnxruntime.so"    optional
///     }
///
/// ONNX Runtime (1.24 or newer) is loaded once for the process, from the first of: the path in the environment
/// variable ORT_DYLIB_PATH, "onnxruntime" of the first configuration, libonnxruntime.so beside libcos.so (or in a
/// folder onnxruntime there), and the system's loader. All models of the process share one thread pool.
///
/// @param config_path  UTF-8, must not be NULL
/// @param out_engine   out, must not be NULL; to free with cos_engine_free
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, CONFIG, MODEL (a file is missing or
///         corrupt, is no language model, or the vocabularies or tokenizers differ), RUNTIME, UNSUPPORTED (an export
///         that could not be verified with; the message says why)
/// Since 0.1.
///
/// # Safety
/// `config_path` is NULL or a C string, `out_engine` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_open(
    config_path: *const c_char,
    out_engine: *mut *mut cos_engine,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { make(config_path, "config_path", out_engine, |path| Config::open(Path::new(path))) }
}

/// Make an engine from configuration text, as cos_engine_open does from a file. Relative paths in it are
/// relative to the working directory.
///
/// @param config_json  UTF-8, must not be NULL
/// @param out_engine   out, must not be NULL; to free with cos_engine_free
/// @return as for cos_engine_open
/// Since 0.1.
///
/// # Safety
/// `config_json` is NULL or a C string, `out_engine` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_new(
    config_json: *const c_char,
    out_engine: *mut *mut cos_engine,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { make(config_json, "config_json", out_engine, Config::parse) }
}

unsafe fn make(
    text: *const c_char,
    name: &str,
    out_engine: *mut *mut cos_engine,
    config: impl FnOnce(&str) -> Result<Config>,
) -> *mut cos_error {
    guard(|| {
        check_out(out_engine, "out_engine")?;
        // SAFETY: promised by the caller.
        let engine = Engine::load(&config(unsafe { string(text, name) }?)?)?;
        // SAFETY: not NULL, and promised by the caller.
        unsafe { out_engine.write(cos_engine::into_raw(Arc::new(engine))) };
        Ok(())
    })
}

/// Free an engine. Sessions, text streams and calls that are running keep what they need alive and go on. No call may
/// begin with it from now on. NULL is fine.
///
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed, and no call begins with it from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_free(engine: *mut cos_engine) {
    // SAFETY: promised by the caller. NULL, and an error, has nowhere to go.
    let _ = super::catch(|| unsafe {
        cos_engine::of_this_process(engine)?; // in a child of fork() it stays, since its threads are in the parent
        release(engine);
        Ok(())
    });
}

/// Number of tokens of the vocabulary that the models share; tokens are 0 to this less 1. 0 if `engine` is NULL.
///
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_vocab_size(engine: *const cos_engine) -> usize {
    // SAFETY: promised by the caller.
    unsafe { hold(engine, "engine") }.map_or(0, |engine| engine.0.vocab_size())
}

/// Number of models, in the order of the configuration: the length of proposal_lengths and weights in
/// cos_session_options. 0 if `engine` is NULL.
///
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_model_count(engine: *const cos_engine) -> usize {
    // SAFETY: promised by the caller.
    unsafe { hold(engine, "engine") }.map_or(0, |engine| engine.0.participants().len())
}

/// What was recognised of each model, as JSON: to be looked at, kept with a bug report, or checked when a model is
/// exchanged.
///
///     {
///       "version": "0.1.0", "onnxruntime": path, "vocab_size": 4096, "stop_tokens": [0],
///       "thread_pool": "process",                               all models of the process share one; "host": they share the one of
///                                                               the code that used ONNX Runtime first; "model": each has its own
///       "threads": 2,                                           of a pool; null for that of a host
///       "tokenizer": true, "combine": as configured, "greedy_below": as configured,
///       "overlap": 0.83,                                        where passes of several models run at the same time, the share of
///                                                               all but the longest that is hidden by it; else null
///       "models": [ {
///         "name": "base", "kind": "onnx",                       or "ngram", which has no more members
///         "file": path, "bytes": with external data, "producer": "pytorch 2.11.0", "opset": 18,
///         "architecture": "llama",                              or null
///         "provider": "cpu" or "cuda", "device_id": 0,
///         "graphs": true,                                       whether passes are captured and replayed on the GPU
///         "no_graphs": null,                                    or why not
///         "sdpa_kernel": null,                                  or what ONNX Runtime was told of attention on the GPU
///         "cache_on": "gpu" or "host",                          where the cache is
///         "rows_on": "gpu" or "host",                           where rows of logits stay
///         "no_gpu_rows": null,                                  or why they cannot stay on the GPU
///         "inputs": [ { "name": "input_ids", "type": "int64" } ],       the caches aside
///         "logits": { "name": "logits", "type": "float32", "columns": 4096,
///                     "rows": "all", "counted" (by num_logits_to_keep) or "last" },
///         "cache": {
///           "kind": "shared" (updated in place), "fixed" (the same, of a length that the export sets),
///                   "concatenated" (present is past and new) or "none",
///           "rollback": "shorten", "mask" (dead entries stay, masked), "compact" (they are moved out) or "rerun",
///           "layers": 8, "heads": [2, ...], "head_size": [64, ...],     one for each layer
///           "type": "float32", "capacity": null or tokens, "bytes_per_token": 16384 },
///         "vocab_size": 4096, "context_length": 2048, "stop_tokens": [0],
///         "scoring": "parallel", "first_pass" (so on an empty cache only) or "one_by_one",
///         "deviation": 1e-6,                                    of logits scored in parallel, seen when loaded
///         "trials": [ { "scoring": "parallel", "rollback": "mask",      what was tried when loaded; the last of the
///                       "deviation": 0.11, "spreads": 0.04 },           fastest scoring, or the best, was taken
///                     { ..., "refused": "logits change by up to 2.65" } ],    spreads: in standard deviations of a row
///         "warnings": [ "what should be known of it" ] } ],
///       "warnings": [ ... ]
///     }
///
/// Members may be added; those here stay.
///
/// @param engine    must not be NULL
/// @param out_json  out, must not be NULL: UTF-8; owned by the engine, lives as long as that
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `out_json` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_describe(
    engine: *const cos_engine,
    out_json: *mut *const c_char,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { describe_as(engine, out_json, "out_json", |of| &of.json, |engine| engine.describe().to_string()) }
}

/// The same as cos_engine_describe as a table for people, such as for a log: one column for each model, then the warnings.
///
/// @param engine     must not be NULL
/// @param out_table  out, must not be NULL: UTF-8; owned by the engine, lives as long as that
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `out_table` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_describe_table(
    engine: *const cos_engine,
    out_table: *mut *const c_char,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { describe_as(engine, out_table, "out_table", |of| &of.table, |engine| table(&engine.describe())) }
}

unsafe fn describe_as(
    engine: *const cos_engine,
    out: *mut *const c_char,
    name: &str,
    place: impl FnOnce(&Descriptions) -> &OnceCell<CString>,
    describe: impl FnOnce(&Engine) -> String,
) -> *mut cos_error {
    guard(|| {
        check_out(out, name)?;
        // SAFETY: promised by the caller.
        let engine = unsafe { cos_engine::of_this_process(engine) }?;
        let made = place(&engine.1)
            .get_or_init(|| CString::new(describe(&engine.0).replace('\0', "\u{fffd}")).unwrap_or_default());
        // SAFETY: not NULL, and promised by the caller.
        unsafe { out.write(made.as_ptr()) };
        Ok(())
    })
}
