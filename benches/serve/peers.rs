//! Other programs that serve clients, as long-lived worker processes (`scripts/bench_serve.py`).

use std::path::{Path, PathBuf};

use cos::config::{Combine, Config, ModelConfig};
use serde::Deserialize;
use serde_json::json;

use super::load::Mix;
use super::tally::Measurement;
use crate::bench::measure::Result;
use crate::bench::peers::Worker;
use crate::bench::{self, Provider};

/// A peer that runs.
pub struct Peer {
    pub name: String,
    pub worker: Worker,
    /// What it said about itself first.
    pub note: Option<String>,
    has_spoken: bool,
}

/// The answer of a worker.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Done {
        #[serde(flatten)]
        measurement: Measurement,
        note: Option<String>,
    },
    Failed {
        error: String,
    },
}

/// Requests that a peer is given. It begins anew behind the last one.
const REQUESTS: u64 = 1000;

/// Start the peers that can decode what a configuration says, and note why others cannot be started.
pub fn start(config: &Config, originals: Option<&Path>, provider: Provider, notes: &mut Vec<String>) -> Vec<Peer> {
    let exports = config.models.iter().filter_map(|model| match model {
        ModelConfig::Onnx(export) => Some(export.path.clone()),
        ModelConfig::Ngram { .. } => None,
    });
    let exports: Vec<PathBuf> = exports.collect();
    let original = |export: &PathBuf| Some(originals?.join(export.file_name()?)).filter(|it| it.is_dir());
    let (alone, together) = match &config.combine {
        Combine::Target { model } => (exports.get(*model), None),
        Combine::Weighted { weights } if weights.windows(2).all(|pair| pair[0] == pair[1]) => (None, Some(&exports)),
        _ => (None, None),
    };
    let mut wanted: Vec<(&str, &str, Option<Vec<PathBuf>>)> = Vec::new();
    if let Some(export) = alone {
        wanted.push(("genai Engine", "genai", Some(vec![export.clone()])));
        wanted.push(("transformers", "transformers", original(export).map(|it| vec![it])));
    }
    if let Some(exports) = together {
        wanted.push(("PyTorch loop", "torch", exports.iter().map(original).collect()));
    }
    let mut peers = Vec::new();
    for (name, kind, paths) in wanted {
        let started = match paths {
            None => Err("its models are not available in Hugging Face's format (MODELS= names a folder)".into()),
            Some(paths) => worker(kind, provider, &paths),
        };
        match started {
            Ok(worker) => peers.push(Peer { name: name.into(), worker, note: None, has_spoken: false }),
            Err(reason) => {
                let note = format!("{name}: skipped, because {reason}");
                if !notes.contains(&note) {
                    println!("{note}");
                    notes.push(note);
                }
            }
        }
    }
    peers
}

fn worker(kind: &str, provider: Provider, paths: &[PathBuf]) -> std::result::Result<Worker, String> {
    let own = bench::root().join("target/bench/venv/bin/python");
    let python = std::env::var_os("BENCH_PYTHON").filter(|path| !path.is_empty()).map_or(own, PathBuf::from);
    let device = if provider == Provider::Cuda { "cuda" } else { "cpu" };
    let paths: Vec<String> = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = [kind, device].into_iter().chain(paths.iter().map(String::as_str)).collect();
    Worker::start(&python, &bench::root().join("scripts/bench_serve.py"), &words)
}

impl Peer {
    /// What so many clients saw, and the peak of the process's memory in MiB. The load is a closed loop.
    pub fn measure(&mut self, clients: usize, mix: &Mix, seconds: f64) -> Result<(Measurement, f64)> {
        forget_peak(self.worker.process())?;
        let request = |index| if index < clients as u64 { mix.first(index) } else { mix.request(index) };
        let (prompts, tokens): (Vec<_>, Vec<_>) = (0..REQUESTS).map(request).unzip();
        let request = json!({ "clients": clients, "prompts": prompts, "tokens": tokens, "seconds": seconds });
        match self.worker.ask(&request)? {
            Answer::Done { measurement, note } => {
                self.note = note.filter(|_| !self.has_spoken).map(|note| format!("{}: {note}", self.name));
                self.has_spoken = true;
                Ok((measurement, bench::kibibytes(self.worker.process(), "VmHWM")? / 1024.0))
            }
            Answer::Failed { error } => Err(error.into()),
        }
    }
}

/// Let a process's peak of memory begin anew.
pub fn forget_peak(process: u32) -> Result<()> {
    Ok(std::fs::write(format!("/proc/{process}/clear_refs"), "5")?)
}
