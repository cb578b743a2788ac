//! What was measured, as it goes into results.json, and the statistics of it.

use serde::{Deserialize, Deserializer, Serialize};

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Versions, machine, command.
    pub facts: Vec<(String, String)>,
    /// What was left out, and why.
    pub notes: Vec<String>,
    pub cases: Vec<Case>,
    /// Passes beside those of plain ONNX Runtime.
    #[serde(default)]
    pub raw: Vec<RawCost>,
    #[serde(default)]
    pub prompts: Vec<PromptCost>,
}

/// Rows that were measured side by side.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Case {
    pub title: String,
    pub about: String,
    pub models: Vec<String>,
    /// Weighted, contrastive, …; empty for configurations of the caller.
    pub kind: String,
    pub temperature: f32,
    pub prompts: String,
    pub prompts_count: usize,
    pub tokens: usize,
    pub rounds: usize,
    /// For a sweep, what varies.
    pub sweep: Option<String>,
    /// Whether sampled text was judged by its likelihood.
    pub judge: Option<String>,
    pub pass_costs: Vec<PassCost>,
    pub rows: Vec<Row>,
}

/// Time of a pass, of a model as CoS runs it and as ONNX Runtime does with nothing around it.
#[derive(Debug, Serialize, Deserialize)]
pub struct RawCost {
    pub model: String,
    pub width: usize,
    /// Tokens before the pass.
    pub context: usize,
    pub ours: Spread,
    pub raw: Spread,
    /// With copies of what goes in and of the logits; on a GPU.
    pub copied: Option<Spread>,
}

/// Milliseconds of prompts on an empty cache, of lengths that the process has not met, and of the same lengths again.
#[derive(Debug, Serialize, Deserialize)]
pub struct PromptCost {
    pub model: String,
    /// Of the shortest.
    pub tokens: usize,
    pub first: Spread,
    pub again: Spread,
}

/// Time of a pass.
#[derive(Debug, Serialize, Deserialize)]
pub struct PassCost {
    pub model: String,
    pub width: usize,
    pub milliseconds: Spread,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// Not CoS.
    pub peer: bool,
    /// In a sweep: the curve, and where on it.
    pub series: String,
    pub at: f64,
    /// Why it was not measured.
    pub failed: Option<String>,
    pub tokens_per_second: Spread,
    /// Over `standard`, within each round.
    pub ratio: Spread,
    pub ratios: Vec<f64>,
    pub accepted: Option<f64>,
    /// Of each model's proposals.
    pub acceptance: Vec<Option<f64>>,
    pub passes_per_token: Option<f64>,
    pub positions_per_pass: Option<f64>,
    /// Share of the time outside ONNX Runtime.
    pub host_share: Option<f64>,
    /// Greedily: prompts that got the very tokens of `standard`, of how many.
    pub equal: Option<(usize, usize)>,
    /// What `auto` settled for.
    pub chosen: Option<String>,
    pub theory: Option<Theory>,
    /// What a session held at the end of its text, or before: its peak.
    #[serde(default)]
    pub memory: Option<usize>,
    /// Mean log-likelihood of a token under the judge.
    pub likelihood: Option<f64>,
}

/// What should have been gained.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Theory {
    /// Theorem 3.1 or 3.6, for two models.
    pub theorem: Option<f64>,
    /// Counted with the cost of passes by width, within each round.
    #[serde(deserialize_with = "number")]
    pub expected: f64,
    /// Measured over expected, within each round.
    pub reached: Spread,
    /// The factors of that: work outside ONNX Runtime, more passes than acceptance says, and all else (dearer passes).
    #[serde(deserialize_with = "number")]
    pub host: f64,
    #[serde(deserialize_with = "number")]
    pub passes: f64,
    #[serde(deserialize_with = "number")]
    pub rest: f64,
}

/// A median with the range around it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    #[serde(deserialize_with = "number")]
    pub median: f64,
    #[serde(deserialize_with = "number")]
    pub least: f64,
    #[serde(deserialize_with = "number")]
    pub most: f64,
}

/// JSON has null for what is not a number.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Spread {
    /// Of no values: not a number.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (values.first(), values.last()) else {
            return Spread { median: f64::NAN, least: f64::NAN, most: f64::NAN };
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Spread { median, least, most }
    }
}

/// One prompt decoded once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub tokens: u64,
    pub seconds: f64,
}

/// Tokens per second of one round.
pub fn speed<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> f64 {
    let (mut tokens, mut seconds) = (0, 0.0);
    for sample in samples {
        tokens += sample.tokens;
        seconds += sample.seconds;
    }
    tokens as f64 / seconds
}

/// How much faster a row was than another within each round, over the prompts that both decoded: the first ones.
pub fn paired(own: &[Vec<Sample>], other: &[Vec<Sample>]) -> Vec<f64> {
    let ratio = |(own, other): (&Vec<Sample>, &Vec<Sample>)| {
        let both = own.len().min(other.len());
        speed(&own[..both]) / speed(&other[..both])
    };
    own.iter().zip(other).map(ratio).collect()
}
