//! Prepares an engine for load, before users wait: runs passes of the sizes that its sessions will need.
//!
//! A GPU plans and captures a pass of a new size, which takes many times as long as the pass. A processor touches
//! memory for the first time, and nobody knows yet what passes take. So a few sessions decode made-up prompts by each
//! strategy, and then each model rehearses. All of that counts in no statistics.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Combine, RoutesName};
use crate::decode::policy::{Strategy, Targets};
use crate::engine::Engine;
use crate::engine::many::step_many;
use crate::engine::session::{Options, Session};
use crate::engine::sharing::random_seed;
use crate::engine::stage::{Stage, Stop, Watch};
use crate::error::{Error, Result};
use crate::model::Priority;
use crate::model::rehearsal::SMALL_COMPANY;
use crate::rows::Sampler;

/// Tokens of the sessions that decode by each strategy, and those that each model proposes.
const TOKENS: usize = 4;
const DRAFT: i32 = 2;

/// Most calls for sessions that decode at the same time. They may wait for memory that others have.
const MOST_CALLS: usize = 64;

/// What to prepare for.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Most sessions that decode at the same time; at least one.
    pub sessions: usize,
    /// Most tokens of a text, with its prompt.
    pub tokens: usize,
}

/// Prepare an engine. After `time` no further pass begins. `progress` is told which share is done, from 0 to 1, before
/// passes, and returns whether to go on. Returns that share.
///
/// Nothing that is computed here is found by others. If memory is short, sessions of users have it, and less is
/// prepared.
pub fn prepare(engine: &Arc<Engine>, load: Load, time: Duration, mut progress: impl FnMut(f64) -> bool) -> Result<f64> {
    let end = engine.clock()().saturating_add(time);
    let mut watch = Watch { clock: engine.clock(), end, progress: &mut progress, all: 1, done: 0 };
    match run(engine, load, &mut watch) {
        Err(Stop::Failed(error)) => Err(error),
        _ => Ok(watch.share()),
    }
}

fn run(engine: &Arc<Engine>, load: Load, watch: &mut Watch) -> Result<(), Stop> {
    let scope = format!("prepare {:x}", random_seed());
    let Load { sessions, tokens } = load;
    let models = engine.participants().iter().enumerate().filter_map(|(index, each)| Some((index, each.model()?)));
    let stage = |(index, model)| Stage::new(model, engine.queues().of(index), &scope, (sessions, tokens));
    let mut stages: Vec<Stage> = models.map(stage).collect();
    let rehearsals = stages.iter().map(Stage::count).max().unwrap_or(0);
    let kinds = kinds(engine);
    watch.all = kinds.len() + rehearsals + 1;
    stages.iter_mut().try_for_each(|stage| stage.grow(watch))?;
    // Passes of these sessions have graphs that would serve smaller ones.
    let common = stages.iter().map(Stage::common).max().unwrap_or(0);
    let mut rehearse = |number: usize, watch: &mut Watch| {
        let rehearsed = stages.iter_mut().try_for_each(|stage| stage.rehearse(number, watch));
        watch.done += usize::from(rehearsed.is_ok());
        rehearsed
    };
    (0..common).try_for_each(|number| rehearse(number, watch))?;
    for options in &kinds {
        decode(engine, options, sessions.min(SMALL_COMPANY), &scope, watch)?;
    }
    (common..rehearsals).try_for_each(|number| rehearse(number, watch))?;
    drop(stages);
    decode(engine, &kinds[0], sessions, &scope, watch)?;
    (watch.progress)(1.0);
    Ok(())
}

/// Options of sessions by all strategies. Questions about rows on a GPU need kernels and buffers, too.
fn kinds(engine: &Engine) -> Vec<Options> {
    let (plain, greedy, filtered) = ((1.0, 0.0), (0.0, 0.0), (1.0, 0.9));
    let several = engine.participants().len() > 1;
    let mut kinds = Vec::new();
    for draws in [plain, greedy] {
        kinds.extend(several.then_some((Strategy::Cos, None, draws)));
        kinds.extend(several.then_some((Strategy::Speculative, None, draws)));
        kinds.push((Strategy::Standard, None, draws));
    }
    kinds.push((kinds[0].0, None, filtered));
    let routes = matches!(engine.combine(), Combine::Weighted { .. });
    kinds.extend(routes.then_some((Strategy::Standard, Some(Targets::Routed), plain)));
    let options = |(strategy, targets, (temperature, top_p)): (Strategy, Option<Targets>, (f32, f32))| Options {
        strategy,
        targets,
        proposal_lengths: (strategy != Strategy::Standard).then(|| vec![DRAFT; engine.participants().len()]),
        sampler: Sampler::new(temperature, 0, top_p, 0.0).expect("these are in range"),
        stop_tokens: Some(Vec::new()),
        max_tokens: TOKENS,
        routes: Some(if targets.is_some() { RoutesName::Shared } else { RoutesName::Own }),
        priority: Priority::Batch,
        ..Options::default()
    };
    kinds.into_iter().map(options).collect()
}

/// Let so many sessions decode made-up prompts, if there is memory for them.
fn decode(engine: &Arc<Engine>, options: &Options, count: usize, scope: &str, watch: &mut Watch) -> Result<(), Stop> {
    match decode_all(engine, options, count, scope, watch) {
        Ok(()) | Err(Stop::Full) => {
            watch.done += 1;
            Ok(())
        }
        stopped => stopped,
    }
}

fn decode_all(
    engine: &Arc<Engine>,
    options: &Options,
    count: usize,
    scope: &str,
    watch: &mut Watch,
) -> Result<(), Stop> {
    let mut sessions = Vec::with_capacity(count);
    for index in 0..count {
        let session = Session::new(engine, &Options { seed: index as u64, ..options.clone() });
        // A further session fails for want of memory. Whatever else is wrong, a pass tells it.
        let mut session = session.map_err(|error| if index == 0 { error.into() } else { Stop::Full })?;
        session.driver.count_nothing();
        session.set_scope(scope)?;
        let token = |place: usize| ((7 * index + 3 * place + 1) % engine.vocab_size()) as i32;
        match session.prompt(&[0, 1, 2, 3].map(token)) {
            Err(Error::ContextFull(_)) => return Ok(()), // of a tiny model
            other => other?,
        }
        sessions.push(session);
    }
    let mut outcome = Ok(());
    for _ in 0..MOST_CALLS {
        watch.check()?;
        step_many(&mut sessions, |_, state| {
            if let Err(error) = state {
                outcome = Err(error.into());
            }
        });
        sessions.retain(|session| session.decoder().is_open());
        if sessions.is_empty() || outcome.is_err() {
            break;
        }
    }
    outcome
}
