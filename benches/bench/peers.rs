//! Other programs that decode with several models, as long-lived worker processes (`scripts/bench_peers.py`).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The kinds of workers: a name, and the arguments of the script.
pub const WORKERS: [(&str, &[&str]); 7] = [
    ("genai", &["genai"]),
    ("genai, spinning off", &["genai", "session.intra_op.allow_spinning=0"]),
    ("genai, one thread", &["genai", "intra_op_num_threads=1"]),
    ("torch", &["torch"]),
    ("genai on the GPU", &["genai", "provider=cuda"]),
    ("genai on the GPU with graphs", &["genai", "provider=cuda", "enable_cuda_graph=1"]),
    ("torch on the GPU", &["torch", "cuda"]),
];

/// A worker that does not answer for so long is killed, because all others wait for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running worker.
pub struct Worker {
    child: Child,
    requests: Option<ChildStdin>,
    answers: Receiver<String>,
    /// The versions of its packages.
    pub versions: BTreeMap<String, String>,
}

/// A worker, or the reason why there is none.
pub type Started = Result<Worker, String>;

/// The answer of a worker.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Answer {
    Done { tokens: Vec<i32>, seconds: f64 },
    Failed { error: String },
}

impl Worker {
    /// Start a script with these arguments. It answers lines of JSON.
    pub fn start(python: &Path, script: &Path, arguments: &[&str]) -> Started {
        let mut child = Command::new(python)
            .arg(script)
            .args(arguments)
            // Torch's threads would otherwise spin while other decoders run. Its speed is the same.
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", python.display()))?;
        let (requests, lines) =
            (child.stdin.take(), BufReader::new(child.stdout.take().expect("standard output is piped")));
        let (sender, answers) = channel();
        std::thread::spawn(move || lines.lines().map_while(|line| line.ok()).try_for_each(|line| sender.send(line)));
        let mut worker = Worker { child, requests, answers, versions: BTreeMap::new() };
        let mut first = worker.read()?;
        if let Some(error) = first["error"].as_str() {
            return Err(error.into());
        }
        worker.versions = serde_json::from_value(first["versions"].take()).map_err(|error| error.to_string())?;
        Ok(worker)
    }

    pub fn ask<T: DeserializeOwned>(&mut self, request: &Value) -> Result<T, String> {
        let requests = self.requests.as_mut().expect("standard input is open until drop");
        writeln!(requests, "{request}").map_err(|error| error.to_string())?;
        serde_json::from_value(self.read()?).map_err(|error| error.to_string())
    }

    /// The worker's process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    fn read(&mut self) -> Result<Value, String> {
        let line = self.answers.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                let _ = self.child.kill();
                format!("it did not answer for {} s", PATIENCE.as_secs())
            }
            RecvTimeoutError::Disconnected => {
                "the worker ended; are the packages of scripts/export-requirements.txt installed?".into()
            }
        })?;
        serde_json::from_str(&line).map_err(|error| error.to_string())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.requests.take()); // the worker exits at the end of its input
        let _ = self.child.wait();
    }
}
