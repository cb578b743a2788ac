//! Prepares an engine for load, before users wait: passes of the sizes that many sessions will need.
//!
//! A GPU captures a pass of a new size, which takes many times as long as the pass. Caches and buffers grow, and what
//! passes take is not known. So sessions of made-up prompts decode by each strategy, in growing numbers.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Combine, RoutesName};
use crate::decode::policy::{Strategy, Targets};
use crate::engine::Engine;
use crate::engine::many::step_many;
use crate::engine::session::{Options, Session};
use crate::engine::sharing::random_seed;
use crate::error::{Error, Result};
use crate::rows::Sampler;

/// Rounds of each trial. A GPU runs a pass of a new size twice before it replays a capture.
const ROUNDS: usize = 4;

/// Tokens of prompts that are tried.
const PROMPTS: [usize; 5] = [32, 64, 128, 256, 512];

/// What sessions of a trial have in common.
struct Trial {
    strategy: Strategy,
    targets: Option<Targets>,
    /// Tokens that each model proposes; `None`: nobody proposes.
    length: Option<i32>,
    temperature: f32,
    /// Numbers of sessions, in the order in which they are tried; empty: one session for each of [`PROMPTS`].
    sessions: Vec<usize>,
}

/// What became of a trial.
enum Outcome {
    Done,
    /// There is no memory for so many sessions.
    Full,
    /// The time is over, or the caller has had enough.
    Stopped,
}

/// Let up to `sessions` sessions decode at the same time, for at most `time`, but for the pass that runs then.
/// `progress` is told which share is done, from 0 to 1, and returns whether to go on. Returns the share that was done.
///
/// The sessions count in no statistics but those of passes, and nothing that they computed is found by others.
pub fn prepare(
    engine: &Arc<Engine>,
    sessions: usize,
    time: Duration,
    mut progress: impl FnMut(f64) -> bool,
) -> Result<f64> {
    let end = engine.clock()().saturating_add(time);
    let trials = trials(engine, sessions);
    let parts: usize = trials.iter().map(|trial| trial.sessions.len().max(PROMPTS.len())).sum();
    let scope = format!("prepare {:x}", random_seed());
    let mut done = 0;
    let mut most = sessions;
    for trial in &trials {
        let prompts: &[usize] = if trial.sessions.is_empty() { &PROMPTS } else { &[] };
        let companies = trial.sessions.iter().map(|&count| (count, 4)).chain(prompts.iter().map(|&tokens| (1, tokens)));
        for (count, tokens) in companies {
            let share = done as f64 / parts as f64;
            if !progress(share) {
                return Ok(share);
            }
            done += 1;
            if count > most {
                continue;
            }
            let goes_on = |done: usize| engine.clock()() < end && (done == 0 || progress(share));
            match run(engine, trial, count, tokens, &scope, goes_on)? {
                Outcome::Done => {}
                Outcome::Full => most = count - 1,
                Outcome::Stopped => return Ok(share),
            }
        }
    }
    progress(1.0);
    Ok(1.0)
}

/// What is tried: first what all sessions need, then drafts.
fn trials(engine: &Engine, most: usize) -> Vec<Trial> {
    // Two sizes of an octave, as a GPU has them.
    let sizes = (0..=most.ilog2()).flat_map(|octave| [1 << octave, 3 << octave]).filter(|size| *size < most);
    let mut sizes: Vec<usize> = sizes.chain([most]).collect();
    sizes.sort_unstable();
    let trial =
        |strategy, length, temperature| Trial { strategy, targets: None, length, temperature, sessions: sizes.clone() };
    let mut trials = vec![
        trial(Strategy::Standard, None, 1.0),
        trial(Strategy::Standard, None, 0.0),
        Trial { sessions: Vec::new(), ..trial(Strategy::Standard, None, 0.0) },
    ];
    if matches!(engine.combine(), Combine::Weighted { .. }) {
        trials.insert(1, Trial { targets: Some(Targets::Routed), ..trial(Strategy::Standard, None, 1.0) });
    }
    if engine.participants().len() > 1 {
        for length in [1, 2, 4] {
            trials.push(trial(Strategy::Cos, Some(length), 1.0));
            trials.push(trial(Strategy::Speculative, Some(length), 0.0));
        }
    }
    trials
}

/// Let so many sessions decode a few rounds. `goes_on` is asked before each call, with the number of calls before it.
fn run(
    engine: &Arc<Engine>,
    trial: &Trial,
    count: usize,
    tokens: usize,
    scope: &str,
    mut goes_on: impl FnMut(usize) -> bool,
) -> Result<Outcome> {
    let options = Options {
        strategy: trial.strategy,
        targets: trial.targets,
        proposal_lengths: trial.length.map(|length| vec![length; engine.participants().len()]),
        sampler: Sampler::new(trial.temperature, 0, 0.0, 0.0)?,
        stop_tokens: Some(Vec::new()),
        max_tokens: ROUNDS,
        routes: Some(if trial.targets.is_some() { RoutesName::Shared } else { RoutesName::Own }),
        ..Options::default()
    };
    let mut sessions = Vec::with_capacity(count);
    for index in 0..count {
        let mut session = Session::new(engine, &Options { seed: index as u64, ..options.clone() })?;
        session.count_nothing();
        session.set_scope(scope)?;
        let vocabulary = engine.vocab_size();
        let token = |place: usize| ((7 * index + 3 * place + 1) % vocabulary) as i32;
        match session.prompt(&(0..tokens).map(token).collect::<Vec<i32>>()) {
            Err(Error::ContextFull(_)) => return Ok(Outcome::Done),
            other => other?,
        }
        sessions.push(session);
    }
    let mut outcome = Ok(Outcome::Done);
    for call in 0.. {
        if !goes_on(call) {
            return Ok(Outcome::Stopped);
        }
        step_many(&mut sessions, |_, state| match state {
            Ok(_) => {}
            Err(Error::NoMemory(_)) => outcome = Ok(Outcome::Full),
            Err(error) => outcome = Err(error),
        });
        sessions.retain(|session| session.decoder().is_open());
        if sessions.is_empty() || !matches!(outcome, Ok(Outcome::Done)) {
            break;
        }
    }
    outcome
}
