//! The results of a run as in results.json, and their statistics.

use serde::{Deserialize, Deserializer, Serialize};

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Versions, machine and command.
    pub facts: Vec<(String, String)>,
    /// Things that were left out, with reasons.
    pub notes: Vec<String>,
    pub cases: Vec<Case>,
    /// Passes compared with those of plain ONNX Runtime.
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
    /// Such as `contrastive`. Empty for configurations of the caller.
    pub kind: String,
    pub temperature: f32,
    pub prompts: String,
    pub prompts_count: usize,
    pub tokens: usize,
    pub rounds: usize,
    /// For a sweep, the symbol of the parameter that varies.
    pub sweep: Option<String>,
    /// The model that judged sampled text by its likelihood.
    pub judge: Option<String>,
    pub pass_costs: Vec<PassCost>,
    pub rows: Vec<Row>,
}

/// Milliseconds of a pass in CoS and in plain ONNX Runtime.
#[derive(Debug, Serialize, Deserialize)]
pub struct RawCost {
    pub model: String,
    pub width: usize,
    /// Tokens before the pass.
    pub context: usize,
    pub ours: Spread,
    pub raw: Spread,
    /// On a GPU: plain ONNX Runtime with copies of inputs and logits.
    pub copied: Option<Spread>,
}

/// Milliseconds of prompts on an empty cache: of lengths that the process has not met, and of the same lengths again.
#[derive(Debug, Serialize, Deserialize)]
pub struct PromptCost {
    pub model: String,
    /// The length of the shortest prompt.
    pub tokens: usize,
    pub first: Spread,
    pub again: Spread,
}

/// The time of a pass.
#[derive(Debug, Serialize, Deserialize)]
pub struct PassCost {
    pub model: String,
    pub width: usize,
    pub milliseconds: Spread,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// Whether another program than CoS decoded.
    pub peer: bool,
    /// In a sweep, the curve and the place on it.
    pub series: String,
    pub at: f64,
    /// Why it was not measured.
    pub failed: Option<String>,
    pub tokens_per_second: Spread,
    /// Speed over `standard`, within each round.
    pub ratio: Spread,
    pub ratios: Vec<f64>,
    pub accepted: Option<f64>,
    /// For each model, the share of its tested proposals that were accepted.
    pub acceptance: Vec<Option<f64>>,
    pub passes_per_token: Option<f64>,
    pub positions_per_pass: Option<f64>,
    /// The share of time outside ONNX Runtime.
    pub host_share: Option<f64>,
    /// With greedy decoding: the number of prompts with exactly the tokens of `standard`, and of all prompts.
    pub equal: Option<(usize, usize)>,
    /// The plan that `auto` chose.
    pub chosen: Option<String>,
    pub theory: Option<Theory>,
    /// The peak memory of a session in bytes.
    #[serde(default)]
    pub memory: Option<usize>,
    /// The mean log-likelihood of a token under the judge.
    pub likelihood: Option<f64>,
}

/// The expected gain of a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Theory {
    /// Theorem 3.1 or 3.6, for two models.
    pub theorem: Option<f64>,
    /// The exact count with the costs of passes by width, within each round.
    #[serde(deserialize_with = "number")]
    pub expected: f64,
    /// The measured gain over the expected one, within each round.
    pub reached: Spread,
    /// The factors of `reached`: work outside ONNX Runtime, more passes than expected, and the rest, such as slower
    /// passes.
    #[serde(deserialize_with = "number")]
    pub host: f64,
    #[serde(deserialize_with = "number")]
    pub passes: f64,
    #[serde(deserialize_with = "number")]
    pub rest: f64,
}

/// A median with its range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    #[serde(deserialize_with = "number")]
    pub median: f64,
    #[serde(deserialize_with = "number")]
    pub least: f64,
    #[serde(deserialize_with = "number")]
    pub most: f64,
}

/// A number, or NaN for null in JSON.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

impl Spread {
    /// The spread of values. NaN if there are none.
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

/// Tokens per second over samples of a round.
pub fn speed<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> f64 {
    let (mut tokens, mut seconds) = (0, 0.0);
    for sample in samples {
        tokens += sample.tokens;
        seconds += sample.seconds;
    }
    tokens as f64 / seconds
}

/// The speed of a row over another one, within each round, over the first prompts that both decoded.
pub fn paired(own: &[Vec<Sample>], other: &[Vec<Sample>]) -> Vec<f64> {
    let ratio = |(own, other): (&Vec<Sample>, &Vec<Sample>)| {
        let both = own.len().min(other.len());
        speed(&own[..both]) / speed(&other[..both])
    };
    own.iter().zip(other).map(ratio).collect()
}
