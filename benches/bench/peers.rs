//! Other ways of decoding with several models, as long-lived workers: `scripts/bench_peers.py`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::Value;

/// The kinds of workers: a name, what the worker is told, and what it decodes with.
pub const WORKERS: [(&str, &[&str]); 4] = [
    ("genai", &["genai"]),
    ("genai, spinning off", &["genai", "session.intra_op.allow_spinning=0"]),
    ("genai, one thread", &["genai", "intra_op_num_threads=1"]),
    ("torch", &["torch"]),
];

/// A running worker.
pub struct Worker {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Of the packages that it decodes with.
    pub versions: BTreeMap<String, String>,
}

/// A worker, or why there is none.
pub type Started = Result<Worker, String>;

/// What a worker answers.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Answer {
    Done { tokens: Vec<i32>, seconds: f64 },
    Failed { error: String },
}

impl Worker {
    pub fn start(python: &Path, arguments: &[&str]) -> Started {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench_peers.py");
        let mut child = Command::new(python)
            .arg(script)
            .args(arguments)
            // As fast, and steady where something else runs: torch's threads would spin against it.
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", python.display()))?;
        let (requests, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("piped")));
        let mut worker = Worker { child, requests, answers, versions: BTreeMap::new() };
        let mut first = worker.read()?;
        worker.versions = serde_json::from_value(first["versions"].take()).map_err(|error| error.to_string())?;
        Ok(worker)
    }

    pub fn ask(&mut self, request: &Value) -> Result<Answer, String> {
        let requests = self.requests.as_mut().expect("open until dropped");
        writeln!(requests, "{request}").map_err(|error| error.to_string())?;
        serde_json::from_value(self.read()?).map_err(|error| error.to_string())
    }

    fn read(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| error.to_string())?;
        if line.is_empty() {
            return Err("the worker ended; are the packages of scripts/export-requirements.txt installed?".into());
        }
        serde_json::from_str(&line).map_err(|error| error.to_string())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.requests.take()); // the end of its input ends it
        let _ = self.child.wait();
    }
}
