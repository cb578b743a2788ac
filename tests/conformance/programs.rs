//! Builds programs with cargo, and runs them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The longest time that a program may run. A planted fault may keep it from ending.
const PATIENCE: Duration = Duration::from_secs(300);

/// The target folder, which contains this program.
pub fn target() -> PathBuf {
    let program = std::env::current_exe().expect("this program's path");
    program.ancestors().nth(3).expect("target/release/examples or deps").to_path_buf()
}

/// Builds programs of the package in a folder. Returns their paths by their names.
pub fn build(package: &Path, arguments: &[&str]) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--release", "--message-format=json-render-diagnostics"]).args(arguments);
    cargo.arg("--target-dir").arg(target()).current_dir(package);
    let output = cargo.output().map_err(|error| format!("{cargo:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{cargo:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let mut programs = BTreeMap::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        if let Ok(line) = serde_json::from_slice::<Value>(line)
            && let (Some(name), Some(program)) = (line["target"]["name"].as_str(), line["executable"].as_str())
        {
            programs.insert(name.to_string(), PathBuf::from(program));
        }
    }
    Ok(programs)
}

/// The result of a program.
pub struct Done {
    pub success: bool,
    /// Its standard output and error.
    pub text: String,
}

/// Runs a program. `None` if it does not end.
pub fn run(program: &Path, arguments: &[&str], variables: &[(&str, String)]) -> Option<Done> {
    let mut command = Command::new(program);
    command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("a program that was just built");
    fn read(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let (out, err) = (read(child.stdout.take().expect("a pipe")), read(child.stderr.take().expect("a pipe")));
    let started = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status,
            None if started.elapsed() > PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text = out.join().expect("no panic") + &err.join().expect("no panic");
    Some(Done { success: status.success(), text })
}
