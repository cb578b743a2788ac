//! Descriptions of engines and sessions in the C interface, as JSON and as a table.

use std::ffi::{CString, c_char};

use once_cell::sync::OnceCell;

use super::engine::{Descriptions, cos_engine};
use super::error::cos_error;
use super::session::{cos_session, with_session};
use super::{c_string, check_out, guard, hold};
use crate::engine::Engine;
use crate::engine::table::table;

/// Describe an engine as JSON: what was recognised of each model. For logs, bug reports, and checks after a model was
/// replaced.
///
///     {
///       "version": "0.1.0", "onnxruntime": path, "vocab_size": 4096, "stop_tokens": [0],
///       "thread_pool": "process",               one pool for all models of the process; "host": the pool of other code
///                                               in the process that used ONNX Runtime first; "model": each model
///                                               has its own
///       "threads": 2,                           of a pool; null if the pool is the host's
///       "tokenizer": true,                      whether a model has a tokenizer.json
///       "chat_templates": ["default"],          names of the chat templates; empty if there is none
///       "combine": as configured, "greedy_below": as configured,
///       "overlap": 0.83,                        if passes of several models run at the same time: the share of the
///                                               time of all but the longest pass that this saves; else null
///       "models": [ {
///         "name": "base", "kind": "onnx",       or "ngram", which has no more members
///         "file": path, "bytes": 1234567,       size with external data
///         "producer": "pytorch 2.11.0", "opset": 18,
///         "architecture": "llama",              null if it is not known
///         "provider": "cpu" or "cuda", "device_id": 0,
///         "graphs": true,                       whether passes are captured as CUDA graphs and replayed
///         "no_graphs": null,                    why not
///         "sdpa_kernel": null,                  the sdpa_kernel option that ONNX Runtime got for attention on the GPU
///         "cache_on": "gpu" or "host",          where the KV cache is
///         "rows_on": "gpu" or "host",           where rows of logits stay
///         "no_gpu_rows": null,                  why they cannot stay on the GPU
///         "inputs": [ { "name": "input_ids", "type": "int64" } ],       without those of the cache
///         "logits": {
///           "name": "logits", "type": "float32", "columns": 4096,
///           "rows": "all",                      which positions have a row; "counted": as many as the input
///                                               num_logits_to_keep says; "last": only the last one
///         },
///         "cache": {
///           "kind": "shared",                   updated in place; "fixed": the same, with a length that the export
///                                               sets; "concatenated": each pass returns the whole cache; "none"
///           "rollback": "shorten",              how positions are removed; "mask": they stay and are masked;
///                                               "compact": the others are moved together; "rerun": all tokens run
///                                               again
///           "layers": 8, "heads": [2, ...], "head_size": [64, ...],     one number for each layer
///           "type": "float32",
///           "capacity": null,                   most tokens, if the export sets it
///           "bytes_per_token": 16384
///         },
///         "vocab_size": 4096, "context_length": 2048, "stop_tokens": [0],
///         "scoring": "parallel",                how the positions of a draft are scored; "first_pass": in parallel on
///                                               an empty cache only; "one_by_one"
///         "batching": "packed",                 one pass serves several sessions; "alone": each has its own
///         "no_batching": null,                  why each has its own
///         "cache_blocks": 1024, "cache_block_tokens": 32, "cache_bytes": 536870912,   most blocks that all sessions
///                                               take together, tokens of a block, and bytes of all blocks; null if
///                                               each session has a cache of its own
///         "deviation": 1e-6,                    largest difference of logits scored in parallel, found at loading
///         "trials": [                           what was tried at loading; the last trial of the fastest scoring was
///                                               taken, or else the best one
///           { "scoring": "parallel", "rollback": "mask", "deviation": 0.11,
///             "spreads": 0.04 },                the deviation in standard deviations of a row
///           { ..., "refused": "logits change by up to 2.65" } ],
///         "warnings": [ ... ]                   about the model
///       } ],
///       "warnings": [ ... ]                     about the engine
///     }
///
/// Members may be added; the members above stay. May be called from any thread at any time.
///
/// @param engine    must not be NULL
/// @param out_json  out, must not be NULL: UTF-8, ends with NUL; owned by the engine and valid until it is freed
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
    unsafe { describe_engine(engine, out_json, "out_json", |kept| &kept.json, |engine| engine.describe().to_string()) }
}

/// Describe an engine as a table for people: one column for each model, and then the warnings. For logs. The content is
/// that of cos_engine_describe. May be called from any thread at any time.
///
/// @param engine     must not be NULL
/// @param out_table  out, must not be NULL: UTF-8, ends with NUL; owned by the engine and valid until it is freed
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
    unsafe { describe_engine(engine, out_table, "out_table", |kept| &kept.table, |engine| table(&engine.describe())) }
}

/// # Safety
/// As for [`cos_engine_describe`]: `out` is its second argument.
unsafe fn describe_engine(
    engine: *const cos_engine,
    out: *mut *const c_char,
    name: &str,
    kept: impl FnOnce(&Descriptions) -> &OnceCell<CString>,
    describe: impl FnOnce(&Engine) -> String,
) -> *mut cos_error {
    guard(|| {
        check_out(out, name)?;
        // SAFETY: promised by the caller.
        let engine = unsafe { cos_engine::of_this_process(engine) }?;
        let description = kept(&engine.1).get_or_init(|| c_string(&describe(&engine.0)));
        // SAFETY: not NULL, and promised by the caller.
        unsafe { out.write(description.as_ptr()) };
        Ok(())
    })
}

/// Describe how a session decodes now, and why, as JSON. For logs, bug reports, and a look at what COS_STRATEGY_AUTO
/// does.
///
///     {
///       "strategy": "standard",                 or "speculative" or "cos": what runs now. COS_STRATEGY_AUTO changes
///                                               it as it learns
///       "targets": "combined" or "routed",
///       "proposal_lengths": [0, 5],             most tokens that each model proposes in a row
///       "stop_below": 0.35,                     a draft ends where its acceptance is less probable than this; 0: never
///       "planned": true,                        whether COS_STRATEGY_AUTO planned this. If not, "changes" is 0 and the
///                                               gains are null
///       "changes": 2,                           how often the plan changed
///       "expected_gain": 1.62,                  speed relative to COS_STRATEGY_STANDARD, at the last evaluation
///       "measured_gain": 1.58,                  standard_ns / planned_ns of cos_stats
///       "models": [ {
///         "name": "base",
///         "pass_ms": [4.1, 4.3, 4.6, 4.8, 5.1, 5.3, 5.5, 5.8],    milliseconds of a pass over 1 to 8 positions,
///                                               measured; null if not planned
///         "acceptance": 0.71,                   acceptance rate of the model's proposals; null if not known
///         "rows_copied": 0,                     as in cos_stats, of this model
///         "captured": 12,                       passes captured as CUDA graphs by all sessions of the engine; null if
///                                               passes of the model are not captured
///         "no_graphs": null                     why passes are not captured any more
///       } ],
///       "routes": "own",                        or "shared", from the first step on: see COS_ROUTES_SHARED
///       "wasted": 0.29,                         share of the proposals that were rejected or dropped; null without any
///       "latency": {                            histograms; quantiles are right to a twentieth
///         "first_token_ms": {                   from cos_prompt to the end of the round that commits the first token
///           "count": 1, "mean": 31.4, "p50": 31.2, "p99": 31.2, "max": 31.2,     null if the count is 0
///           "buckets": [[31.7, 1]] },           upper bounds and counts of buckets that are not empty
///         "between_tokens_ms": { ... },         from one round that commits tokens to the next
///         "queue_ms": { ... },                  from the time when it asks for a pass until the pass begins
///         "pass_sessions": { ... }, "pass_tokens": { ... } },     how large its passes were. A pass of a model that
///                                               does not batch is not counted here
///       "memory": {                             of the KV caches, logits and distributions, without the weights
///         "bytes": 7340032, "peak_bytes": 7340032 }
///     }
///
/// Members may be added; the members above stay. One thread at a time.
///
/// @param session   must not be NULL, not in use on another thread (BUSY)
/// @param out_json  out, must not be NULL: UTF-8, ends with NUL; owned by the session and valid until the next call of
///                  this function with the session
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `out_json` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_describe(
    session: *const cos_session,
    out_json: *mut *const c_char,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with_session(session, |inner| {
            check_out(out_json, "out_json")?;
            let json = c_string(&inner.describe().to_string());
            let session = hold(session, "session")?;
            let mut kept = session.description.lock();
            *kept = json;
            out_json.write(kept.as_ptr());
            Ok(())
        })
    }
}
