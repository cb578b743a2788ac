//! Engines.

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

use super::error::cos_error;
use super::{check_out, guard, reference, string};
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Result;

/// An engine: the loaded models and how they are combined. Immutable; any number of threads may use one at once.
///
/// Since 0.1.
pub struct cos_engine(pub(super) Arc<Engine>);

impl cos_engine {
    /// Hand an engine that was made in Rust to C.
    pub fn into_raw(engine: Arc<Engine>) -> *mut cos_engine {
        Box::into_raw(Box::new(cos_engine(engine)))
    }
}

/// Make an engine from a configuration file. Relative paths in it are relative to its folder.
///
/// The file is a JSON object; an unknown key is an error that names it:
///
///     {
///       "models": [ { "path": "base",         an .onnx file, or a folder that holds one
///                     "provider": "cpu",      or "cuda"; "cpu" by default
///                     "device_id": 0,         which GPU; 0 by default
///                     "name": "base" },       for messages; the folder's name by default
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
///                                             one for each core
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
///         corrupt, is no language model, or the vocabularies or tokenizers differ), RUNTIME, UNSUPPORTED
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

/// Free an engine. Sessions keep what they need alive and go on. NULL is fine.
///
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed, and no other call uses it now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_free(engine: *mut cos_engine) {
    if !engine.is_null() {
        // SAFETY: promised by the caller. An error has nowhere to go.
        let _ = super::catch(|| {
            drop(unsafe { Box::from_raw(engine) });
            Ok(())
        });
    }
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
    unsafe { reference(engine, "engine") }.map_or(0, |engine| engine.0.vocab_size())
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
    unsafe { reference(engine, "engine") }.map_or(0, |engine| engine.0.models().len())
}
