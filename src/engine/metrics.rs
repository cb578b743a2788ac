//! The metrics of an engine, as text that Prometheus reads.

use std::fmt::Write;

use crate::engine::Engine;
use crate::engine::histogram::{Histogram, Passes};
use crate::engine::participant::Participant;
use crate::onnx;

/// Bounds of buckets of times, in microseconds: from a step of a fast GPU to a prompt that waits in a long queue.
const TIMES: [u64; 19] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];

/// Bounds of buckets of sessions and tokens.
const SIZES: [u64; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Microseconds of a second.
const SECOND: f64 = 1e6;

/// A histogram of each model that batches.
struct Family {
    name: &'static str,
    help: &'static str,
    bounds: &'static [u64],
    unit: f64,
    of: fn(&Passes) -> &Histogram,
}

const PASSES: [Family; 3] = [
    Family {
        name: "queue_seconds",
        help: "Time that a session waits for a pass of the model to begin.",
        bounds: &TIMES,
        unit: SECOND,
        of: |passes| &passes.queue,
    },
    Family {
        name: "pass_sessions",
        help: "Sessions of a pass of the model.",
        bounds: &SIZES,
        unit: 1.0,
        of: |passes| &passes.sessions,
    },
    Family {
        name: "pass_tokens",
        help: "Tokens of a pass of the model.",
        bounds: &SIZES,
        unit: 1.0,
        of: |passes| &passes.tokens,
    },
];

/// Text in the format 0.0.4 of Prometheus.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        _ = writeln!(self.0, "# HELP cos_{name} {help}\n# TYPE cos_{name} {kind}");
    }

    fn value(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        _ = writeln!(self.0, "cos_{name} {value}");
    }

    /// A histogram with a label, or without one. Its values are divided by `unit`.
    fn histogram(&mut self, name: &str, label: &str, histogram: &Histogram, bounds: &[u64], unit: f64) {
        let comma = if label.is_empty() { "" } else { "," };
        for bound in bounds {
            let (le, count) = (*bound as f64 / unit, histogram.up_to(*bound));
            _ = writeln!(self.0, "cos_{name}_bucket{{{label}{comma}le=\"{le}\"}} {count}");
        }
        let (count, sum) = (histogram.count(), histogram.sum() as f64 / unit);
        let labels = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        _ = writeln!(
            self.0,
            "cos_{name}_bucket{{{label}{comma}le=\"+Inf\"}} {count}\ncos_{name}_sum{labels} {sum}\n\
             cos_{name}_count{labels} {count}"
        );
    }
}

/// A name as the value of a label.
fn label(participant: &Participant) -> String {
    let name = participant.name().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("model=\"{name}\"")
}

/// The metrics of an engine. `cos_engine_metrics` documents them.
pub fn metrics(engine: &Engine) -> String {
    let mut text = Exposition::default();
    let stats = *engine.totals().lock();
    let counters = stats.counters;
    let nanoseconds = 1e-9;
    for (name, help, value) in [
        ("steps_total", "Rounds.", stats.steps as f64),
        ("tokens_total", "Tokens committed, without prompts.", counters.tokens as f64),
        ("proposed_total", "Tokens proposed.", counters.proposed as f64),
        ("tested_total", "Proposals that were accepted or rejected.", counters.tested as f64),
        ("accepted_total", "Proposals accepted.", counters.accepted as f64),
        ("wasted_total", "Proposals rejected or dropped.", counters.wasted as f64),
        ("forwards_total", "Passes of sessions, prompts excluded.", counters.forwards as f64),
        ("positions_total", "Positions scored, prompts excluded.", counters.positions as f64),
        ("prefix_tokens_total", "Tokens that were found computed.", stats.cache_use.found as f64),
        ("recomputed_tokens_total", "Tokens computed once more.", stats.cache_use.recomputed as f64),
        ("model_seconds_total", "Time inside ONNX Runtime, a share of each pass.", nanoseconds * stats.model_ns as f64),
        ("step_seconds_total", "Time inside steps.", nanoseconds * stats.total_ns as f64),
        ("calm_passes_total", "Passes that gave way to other work on the cores.", onnx::calm_passes() as f64),
    ] {
        text.value(name, "counter", help, value);
    }
    text.value("sessions_decoding", "gauge", "Sessions in the middle of a round.", engine.queues().company() as f64);
    let waits = engine.waits().lock();
    for (name, help, histogram) in [
        ("first_token_seconds", "Time from a prompt to its first token.", &waits.first_token),
        ("between_tokens_seconds", "Time from one round that commits tokens to the next.", &waits.between_tokens),
    ] {
        text.head(name, "histogram", help);
        text.histogram(name, "", histogram, &TIMES, SECOND);
    }
    drop(waits);
    for family in PASSES {
        text.head(family.name, "histogram", family.help);
        for (index, participant) in engine.participants().iter().enumerate() {
            let Some(queue) = engine.queues().of(index) else { continue };
            let label = label(participant);
            queue.passes(|passes| text.histogram(family.name, &label, (family.of)(passes), family.bounds, family.unit));
        }
    }
    text.0
}
