//! Engines of the C interface: open, free, and their sizes.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::sync::Arc;

use once_cell::sync::OnceCell;

use super::error::cos_error;
use super::{check_out, guard, handle, hold, release, string};
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Result;

/// An engine: the loaded models and how they are combined. Immutable; any number of threads may use one at once.
///
/// Since 0.1.
pub struct cos_engine(pub(super) Arc<Engine>, pub(super) Descriptions);

/// The descriptions of an engine. Each is made on the first request and lives as long as the engine.
#[derive(Default)]
pub(super) struct Descriptions {
    pub(super) json: OnceCell<CString>,
    pub(super) table: OnceCell<CString>,
}

impl cos_engine {
    /// Give an engine that was made in Rust to C. `cos_engine_free` frees it.
    pub fn into_raw(engine: Arc<Engine>) -> *mut cos_engine {
        handle(cos_engine(engine, Descriptions::default()))
    }

    /// The engine, or an error in a child of `fork()`: there, a thread of the parent may hold one of its locks for
    /// ever.
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

/// Make an engine from a configuration file. Loads the models and their tokenizer, which can take many seconds.
///
/// The file is a JSON object in UTF-8. Relative paths in it are relative to its folder. "models" and "combine" are
/// required, and all other keys have defaults. An unknown key is an error that names the key:
///
///     {
///       "models": [                    1 to 64 models; all arrays of this interface have their order
///         {
///           "path": "base",            an .onnx file, or a folder that holds one
///           "provider": "cpu",         default "cpu"; "cuda" runs the model on an NVIDIA GPU
///           "device_id": 0,            default 0; the number of the GPU
///           "options": {},             options of ONNX Runtime's CUDA provider, by its names: "gpu_mem_limit" (in
///                                      bytes), "enable_cuda_graph" (false: capture no passes) and others
///           "rows": "gpu",             where a model on a GPU leaves its rows of logits: "gpu" or "host"; default:
///                                      "gpu" if the rows are long
///           "name": "base",            the name in messages; default: the name of the folder
///           "context_length": 4096,    most tokens of a sequence; default: what the export says
///           "cache_bytes": 4294967296, most bytes that the caches of all sessions take together, if passes of the
///                                      model serve several sessions. At least one sequence of the context length must
///                                      fit, and the 256 tokens of the trial at load. Default: half of the memory that
///                                      is free when the engine is made, on the model's device, shared equally by all
///                                      models; on a GPU at most what 256 sequences of the context length need. A CPU
///                                      gives it as it is used, a GPU at once.
///           "scoring": "parallel"      how the positions of a draft are scored: "parallel" (in one pass) or
///                                      "one_by_one"; default: parallel if both give the same logits when the
///                                      model is loaded. "parallel" refuses a model for which they differ.
///         },
///         { "kind": "ngram" }          a look-up, optional: it proposes the tokens that followed when the last
///                                      tokens occurred before. It never scores and its drafts cost no pass. It
///                                      counts as a model, has the weight 0, and takes no other key than "name".
///                                      The default "kind" of a model is "onnx".
///       ],
///       "combine":                     one of
///         { "kind": "weighted", "weights": [0.5, 0.5] }              a weighted sum of the distributions
///         { "kind": "contrastive", "mu": 0.1, "plausibility": 0 }    model 0 is the expert, model 1 the amateur
///         { "kind": "logits", "weights": [1, 0.5, -0.5] }            a weighted sum of the logits
///         { "kind": "target", "model": 0 }                           one model; the other models only draft
///       "threads": 0,                  size of the thread pool that all models of the process share; default 0: one
///                                      thread for each physical core that the process may use. More threads than
///                                      cores never spin.
///       "spinning": true,              default true: idle threads of the pool stay awake for a while. false suits
///                                      machines that run other work too.
///       "overlap": true,               whether independent passes of models on GPUs and of other models run at the
///                                      same time; default: if a measurement of some milliseconds shows a gain
///       "greedy_below": 0.01,          sessions with a temperature below this are greedy; default 0: off. For
///                                      clients that send a small temperature and mean 0.
///       "when_full": "wait",           what becomes of a new session while the caches of others take all memory that
///                                      they may: default "wait": its first step waits; "refuse": its first step is
///                                      the error NO_MEMORY. Sessions that have begun always wait.
///       "routes": "shared",            "own" or "shared", for sessions with COS_ROUTES_AUTO; default: shared for
///                                      COS_STRATEGY_AUTO, own for all others
///       "onnxruntime": "libonnxruntime.so"    the file of ONNX Runtime
///     }
///
/// The process loads ONNX Runtime (1.24 or newer) once, from the first of these that is given or exists: the path in
/// the environment variable ORT_DYLIB_PATH; "onnxruntime" of the first configuration; libonnxruntime.so in the folder
/// of libcos.so, or in a folder onnxruntime there; the library that the system's loader finds.
///
/// May be called from any thread at any time.
///
/// @param config_path  path of the file in UTF-8, must not be NULL
/// @param out_engine   out, must not be NULL; owned by the caller, who frees it with cos_engine_free
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, CONFIG, MODEL (a file is missing or
///         corrupt, a model is not a language model, or the vocabularies or tokenizers differ), RUNTIME,
///         UNSUPPORTED (drafts could not be verified with an export; the message says why)
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
    unsafe { load(config_path, "config_path", out_engine, |path| Config::open(Path::new(path))) }
}

/// Make an engine from the text of a configuration, in the format of cos_engine_open. Relative paths in it are relative
/// to the working directory. May be called from any thread at any time.
///
/// @param config_json  UTF-8, ends with NUL, must not be NULL
/// @param out_engine   out, must not be NULL; owned by the caller, who frees it with cos_engine_free
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
    unsafe { load(config_json, "config_json", out_engine, Config::parse) }
}

/// # Safety
/// As for [`cos_engine_open`]: `text` is its first argument.
unsafe fn load(
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

/// Free an engine. Its sessions, its text streams and running calls go on: they keep the models alive until they end.
/// No other call with the engine may begin from now on. In a child of fork(), an engine of the parent stays as it is.
///
/// @param engine  may be NULL, which does nothing
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed, and no call begins with it from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_free(engine: *mut cos_engine) {
    // SAFETY: promised by the caller. An error, such as for NULL, has no receiver.
    let _ = super::catch(|| unsafe {
        cos_engine::of_this_process(engine)?; // the threads of a parent's engine are in the parent, so it is not freed
        release(engine);
        Ok(())
    });
}

/// The number of tokens in the vocabulary that all models share. Tokens are 0 to this number - 1. Never fails. May be
/// called from any thread at any time.
///
/// @param engine  may be NULL
/// @return the number of tokens, or 0 if `engine` is NULL
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_vocab_size(engine: *const cos_engine) -> usize {
    // SAFETY: promised by the caller.
    unsafe { hold(engine, "engine") }.map_or(0, |engine| engine.0.vocab_size())
}

/// The number of models, look-ups included: the length of proposal_lengths and weights in cos_session_options. Their
/// order is that of the configuration. Never fails. May be called from any thread at any time.
///
/// @param engine  may be NULL
/// @return the number of models, or 0 if `engine` is NULL
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_model_count(engine: *const cos_engine) -> usize {
    // SAFETY: promised by the caller.
    unsafe { hold(engine, "engine") }.map_or(0, |engine| engine.0.participants().len())
}
