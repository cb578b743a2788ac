//! The first session of a process, which meets passes that nobody has prepared, against later ones.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cos::engine::Engine;
use cos::engine::prepare::{Load, prepare};
use cos::engine::session::{Options, Session, State};
use serde::{Deserialize, Serialize};

use super::load::Mix;
use super::tally::percentile;
use crate::bench::measure::Result;

/// Sessions behind the first one.
const LATER: u64 = 8;

/// How an engine was prepared.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub struct Prepared {
    /// The share that was done, and the seconds that it took.
    pub share: f64,
    pub seconds: f64,
}

/// The first session of a process.
#[derive(Debug, Serialize, Deserialize)]
pub struct First {
    /// Its strategy.
    pub name: String,
    pub prepared: Prepared,
    /// Tokens per second of it, and the median of later ones.
    pub first: f64,
    pub later: f64,
}

/// Prepare an engine for so many sessions, for at most so many seconds.
pub fn prepared(engine: &Arc<Engine>, sessions: usize, seconds: f64) -> Result<Prepared> {
    if seconds == 0.0 {
        return Ok(Prepared::default());
    }
    let (began, load) = (Instant::now(), Load { sessions: sessions.clamp(1, 1024), tokens: 1024 });
    let share = prepare(engine, load, Duration::from_secs_f64(seconds), |_| true)?;
    Ok(Prepared { share, seconds: began.elapsed().as_secs_f64() })
}

/// Decode texts one after another in this process, and print what came of it for [`in_process`].
pub fn measure(engine: &Arc<Engine>, options: &Options, mix: &Mix, name: String, prepared: Prepared) -> Result<()> {
    let mut speeds = Vec::new();
    for index in 0..=LATER {
        let (prompt, tokens) = mix.request(index);
        let options = Options { seed: index, max_tokens: tokens, ..options.clone() };
        let began = Instant::now();
        let mut session = Session::new(engine, &options)?;
        session.set_scope(&index.to_string())?;
        session.prompt(&prompt)?;
        while session.step()?.1 == State::Open {}
        speeds.push(tokens as f64 / began.elapsed().as_secs_f64());
    }
    let first = speeds.remove(0);
    speeds.sort_by(f64::total_cmp);
    let first = First { name, prepared, first, later: percentile(&speeds, 50.0) };
    println!("{}", serde_json::to_string(&first)?);
    Ok(())
}

/// Let a process of its own decode by a strategy, after so many seconds of preparation.
pub fn in_process(config: &Path, name: &str, seconds: f64) -> Result<First> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).args(["--first-by", name, "--first-prepared", &seconds.to_string()]);
    let output = command.arg("--first-config").arg(config).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().filter(|_| output.status.success());
    match last {
        Some(line) => Ok(serde_json::from_str(line)?),
        None => Err(format!("the process ended: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}
