//! The results of a run as in results.json.

use serde::{Deserialize, Deserializer, Serialize};

use super::first::{First, Prepared};
use super::tally::Figures;
use crate::bench::results::Spread;

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Versions, machine and command.
    pub facts: Vec<(String, String)>,
    /// Things that were left out, with reasons.
    pub notes: Vec<String>,
    pub cases: Vec<Case>,
}

/// A configuration.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Case {
    /// The name of its file.
    pub name: String,
    /// Its combination and its models.
    pub about: String,
    /// How the engine was prepared.
    #[serde(default)]
    pub prepared: Prepared,
    /// First sessions of processes, if they were measured.
    #[serde(default)]
    pub first: Vec<First>,
    pub closed: Vec<Point>,
    pub open: Vec<Point>,
    /// The most sessions at once in the open loop.
    pub most: usize,
}

/// One way of decoding under one load.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Point {
    /// A strategy, or a peer.
    pub name: String,
    pub peer: bool,
    /// Clients of a closed loop, or requests per second of an open one.
    pub load: f64,
    pub tokens_per_second: Spread,
    /// Over `standard` under the same load, within each round.
    pub ratio: Spread,
    pub requests_per_second: Spread,
    /// Milliseconds: the median and the 99th percentile.
    #[serde(deserialize_with = "pair")]
    pub first: [f64; 2],
    #[serde(deserialize_with = "pair")]
    pub between: [f64; 2],
    #[serde(deserialize_with = "pair")]
    pub each: [f64; 2],
    pub requests: usize,
    /// What sessions held at most, in MiB.
    pub held: f64,
    /// Peak of the process's resident memory, in MiB. Caches keep what nobody needs, so it includes earlier loads.
    pub memory: f64,
    /// The mean number of requests that waited, in an open loop.
    pub waiting: f64,
    /// Whether the queue grew over the whole measured time.
    pub collapsed: bool,
}

/// Two numbers, or NaN for null in JSON.
fn pair<'de, D: Deserializer<'de>>(from: D) -> Result<[f64; 2], D::Error> {
    Ok(<[Option<f64>; 2]>::deserialize(from)?.map(|number| number.unwrap_or(f64::NAN)))
}

impl Point {
    pub fn new(name: &str, load: f64, figures: &Figures) -> Point {
        Point {
            name: name.into(),
            load,
            tokens_per_second: Spread::of(figures.tokens_per_second.iter().copied()),
            requests_per_second: Spread::of(figures.requests_per_second.iter().copied()),
            first: figures.first,
            between: figures.between,
            each: figures.each,
            requests: figures.requests,
            held: figures.bytes as f64 / f64::from(1 << 20),
            ..Point::default()
        }
    }
}
