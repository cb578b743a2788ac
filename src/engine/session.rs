//! A session: one sequence, decoded by the models of an engine.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Combine, RoutesName};
use crate::control::Controls;
use crate::decode::chance::CounterRng;
use crate::decode::combine::{Combination, Function};
use crate::decode::decoder::{Alternatives, Counters, Decoder, Finish, LogProbabilities, Origin, Settings};
use crate::decode::policy::{Plan, Request, Strategy, Targets};
use crate::decode::weigh::Weigher;
use crate::engine::Engine;
use crate::engine::drive::Driver;
use crate::engine::participant::Participant;
use crate::engine::phase::{CallBuffers, Phase};
use crate::engine::sharing::Claim;
use crate::engine::stats::Stats;
use crate::error::{Error, Result};
use crate::grammar::Language;
use crate::learn::estimates::Estimates;
use crate::model::{Cancel, Memory, Model, Priority};
use crate::plan::choices::Choices;
use crate::plan::session::{PlanTimes, Planning, describe_plan};
use crate::rows::Sampler;

/// The options of a session. The default is greedy and automatic.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The strategy.
    pub strategy: Strategy,
    /// What proposals are verified against; `None` leaves it to the strategy.
    pub targets: Option<Targets>,
    /// How logits become distributions.
    pub sampler: Sampler,
    /// What changes the scores of tokens before that.
    pub controls: Controls,
    /// A grammar that the text follows. Then the controls have no constraint of their own.
    pub constraint: Option<(Language, String)>,
    /// Seed of the session's random numbers.
    pub seed: u64,
    /// Most tokens after a prompt; 0 is no limit.
    pub max_tokens: usize,
    /// γ of each participant; `None` leaves them to the library.
    pub proposal_lengths: Option<Vec<i32>>,
    /// Weights that replace the engine's.
    pub weights: Option<Vec<f32>>,
    /// Stop tokens that replace those of the exports.
    pub stop_tokens: Option<Vec<i32>>,
    /// Whether [`Session::log_probabilities`] are wanted. Pinned routed targets have none.
    pub log_probabilities: bool,
    /// What else is wanted with them.
    pub alternatives: Alternatives,
    /// A function that changes the weights of each position. Pinned routed targets have none.
    pub weigher: Option<Weigher>,
    /// A function that replaces the engine's combination.
    pub combine: Option<Function>,
    /// Whether it has numbers of routes in common with other sessions; `None` leaves it to the engine.
    pub routes: Option<RoutesName>,
    /// How urgent it is.
    pub priority: Priority,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            strategy: Strategy::Auto,
            targets: None,
            sampler: Sampler::GREEDY,
            controls: Controls::default(),
            constraint: None,
            seed: 0,
            max_tokens: 0,
            proposal_lengths: None,
            weights: None,
            stop_tokens: None,
            log_probabilities: false,
            alternatives: Alternatives::default(),
            weigher: None,
            combine: None,
            routes: None,
            priority: Priority::Interactive,
        }
    }
}

/// How a step left the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It goes on.
    Open,
    /// It has ended; a further prompt opens it again.
    Ended(Finish),
    /// The step was cancelled; the next one goes on.
    Cancelled,
}

/// One sequence. Used by one thread at a time.
pub struct Session {
    pub(super) driver: Driver<CounterRng>,
    /// `None` if the strategy is pinned.
    pub(super) planning: Option<Planning>,
    pub(super) cancel: Arc<Cancel>,
    pub(super) steps: u64,
    pub(super) total_ns: u64,
    /// Until when its time is counted: the beginning of the call, or the end of a round or a probe in it.
    pub(super) since: Duration,
    /// What was left of the last call for many sessions when its round had ended.
    pub(super) left: Duration,
    /// The statistics that the totals of the engine have.
    pub(super) counted: Stats,
    pub(super) phase: Phase,
    /// Buffers of [`step_many`](crate::engine::many::step_many), if this is the first of its sessions.
    pub(super) many: CallBuffers,
    /// Whether its first round is to see whether it may route by common numbers.
    claims: bool,
    /// If it does.
    claim: Option<Claim>,
    /// Whether its round scores tokens that are given.
    pub(super) is_scoring: bool,
    /// What the last [`Session::score`] has told.
    scored: LogProbabilities,
    /// What its scope is called.
    pub(super) scope: String,
    /// How often it was forked.
    pub(super) forks: u64,
    pub(super) options: Options,
    /// Keeps the models alive after the caller has freed the engine.
    pub(super) engine: Arc<Engine>,
}

impl Session {
    /// An empty sequence.
    pub fn new(engine: &Arc<Engine>, options: &Options) -> Result<Self> {
        engine.process().check()?;
        let sampler = options.sampler.greedy_below(engine.greedy_below());
        let options = &Options { sampler, ..options.clone() };
        let mut combination = engine.combination(options.weights.as_deref())?;
        if let Some(function) = &options.combine {
            combination = combination.with_function(function.clone());
        }
        check_weigher(engine, options)?;
        let costs = costs(engine);
        let request = request(options, &combination, &costs);
        let plan = Plan::new(&request)?;
        let (planning, estimates) = planning(engine, &request, options, plan.clone()).unzip();
        let plan = planning.as_ref().map_or(plan, |planning: &Planning| planning.plan().clone());
        let cancel = Arc::new(Cancel::new(options.priority));
        let settings = settings(engine, options, combination)?;
        let chance = CounterRng::new(options.seed);
        let driver = Driver::new(engine.participants(), &cancel, settings, plan, chance)?;
        Ok(Self::of(engine, driver, planning, estimates, cancel, options.clone()))
    }

    /// A session that goes on from where this one stands, with the same options but for the seed. It has numbers and
    /// statistics of its own, and proposals that are pending here are not pending there. It costs no pass; models that
    /// do not share caches compute the tokens anew in later passes.
    pub fn fork(&mut self, seed: u64) -> Result<Self> {
        self.engine.process().check()?;
        let options = Options { seed, ..self.options.clone() };
        let cancel = Arc::new(Cancel::new(options.priority));
        let (current, costs) = (self.driver.plan().clone(), costs(&self.engine));
        let request = request(&options, &self.driver.settings().combination, &costs);
        let mut planning = planning(&self.engine, &request, &options, current.clone()).map(|(planning, _)| planning);
        if let Some(planning) = planning.as_mut().filter(|planning| planning.allows(&current)) {
            planning.begin_with(current.clone());
        }
        let plan = planning.as_ref().map_or(current, |planning| planning.plan().clone());
        let chance = self.driver.chance().fork(seed, self.forks);
        let driver = self.driver.fork(&cancel, plan, chance)?;
        self.forks += 1;
        Ok(Self::of(&self.engine, driver, planning, self.driver.estimates().cloned(), cancel, options))
    }

    fn of(
        engine: &Arc<Engine>,
        mut driver: Driver<CounterRng>,
        planning: Option<Planning>,
        estimates: Option<Estimates>,
        cancel: Arc<Cancel>,
        options: Options,
    ) -> Self {
        driver.set_overlaps(engine.overlaps());
        driver.set_turns(engine.takes_turns());
        driver.set_priority(options.priority);
        driver.histograms_mut().prompt(engine.clock()());
        driver.share_passes(engine.queues(), !calls_back(&options));
        estimates.into_iter().for_each(|estimates| driver.observe(estimates));
        Session {
            driver,
            planning,
            cancel,
            steps: 0,
            total_ns: 0,
            since: Duration::ZERO,
            left: Duration::ZERO,
            counted: Stats::default(),
            phase: Phase::Between,
            many: CallBuffers::default(),
            claims: false,
            claim: None,
            is_scoring: false,
            scored: LogProbabilities::default(),
            scope: String::new(),
            forks: 0,
            options,
            engine: engine.clone(),
        }
    }

    /// Decode by other weights from the next position on; see [`Decoder::set_combination`].
    ///
    /// [`Error::InvalidArgument`] as for [`Session::new`], and for a session with a function of its own.
    pub fn set_weights(&mut self, weights: &[f32]) -> Result<()> {
        if self.options.combine.is_some() {
            return Err(Error::InvalidArgument(
                "the session has a combine function, which takes no weights; let the function's data change instead"
                    .into(),
            ));
        }
        let combination = self.engine.combination(Some(weights))?;
        let settings = Settings { combination, ..self.driver.settings().clone() };
        self.go_on_by(self.options.clone(), settings)
    }

    /// Decode by other options from the next position on. Those of how it is decoded stay: `options` must have the same
    /// strategy, targets, seed, proposal lengths, routes and priority. So do the weights, and the functions that
    /// combine and weigh, whatever `options` say.
    ///
    /// [`Error::InvalidArgument`] as for [`Session::new`], and for an option that cannot change.
    pub fn set_options(&mut self, options: &Options) -> Result<()> {
        let (old, new) = (&self.options, options);
        let changed = [
            ("strategy", old.strategy != new.strategy),
            ("targets", old.targets != new.targets),
            ("seed", old.seed != new.seed),
            ("proposal_lengths", old.proposal_lengths != new.proposal_lengths),
            ("routes", old.routes != new.routes),
            ("priority", old.priority != new.priority),
        ];
        if let Some((name, _)) = changed.into_iter().find(|(_, is_changed)| *is_changed) {
            return Err(Error::InvalidArgument(format!(
                "{name} is another one than when the session was made; only what is decoded can change, not how"
            )));
        }
        let options = Options {
            sampler: options.sampler.greedy_below(self.engine.greedy_below()),
            weights: self.options.weights.clone(),
            combine: self.options.combine.clone(),
            weigher: self.options.weigher.clone(),
            ..options.clone()
        };
        let combination = self.driver.settings().combination.clone();
        let settings = settings(&self.engine, &options, combination)?;
        self.go_on_by(options, settings)
    }

    /// Decode by other settings from the next position on, with a plan for them.
    fn go_on_by(&mut self, options: Options, settings: Settings) -> Result<()> {
        let costs = costs(&self.engine);
        let request = request(&options, &settings.combination, &costs);
        let plan = Plan::new(&request)?;
        match planning(&self.engine, &request, &options, plan.clone()) {
            None => {
                self.driver.set_settings(settings, plan)?;
                self.abandon();
            }
            Some((mut planning, estimates)) => {
                // What was learned may depend on pending proposals, so it must not choose the plan that verifies them.
                let current = self.driver.plan().clone();
                planning.begin_with(if planning.allows(&current) { current } else { plan });
                self.driver.set_settings(settings, planning.plan().clone())?;
                self.abandon();
                self.driver.observe(estimates);
                planning.take_over(self.planning.as_ref());
                self.planning = Some(planning);
            }
        }
        self.driver.set_in_crowd(!calls_back(&options));
        self.options = options;
        Ok(())
    }

    /// Append to the sequence; see [`Decoder::prompt`].
    pub fn prompt(&mut self, tokens: &[i32]) -> Result<()> {
        if self.driver.committed().is_empty() {
            self.claims = true;
        }
        self.driver.prompt(tokens)?;
        self.driver.histograms_mut().prompt(self.engine.clock()());
        self.abandon();
        Ok(())
    }

    /// Route by common numbers from the first round on, if that is wanted and no other session began with this prompt.
    pub(super) fn claim_routes(&mut self) {
        if !std::mem::take(&mut self.claims) {
            return;
        }
        self.claim = None;
        let sharing = self.engine.sharing();
        let Options { routes, strategy, targets, .. } = self.options;
        let request = request(&self.options, &self.driver.settings().combination, &[]);
        let may_route = strategy == Strategy::Auto || targets == Some(Targets::Routed);
        if may_route && request.allows(Targets::Routed) && sharing.wants(routes, strategy) {
            self.claim = sharing.claim(&self.scope, self.driver.committed());
        }
        self.driver.share_routes(self.claim.is_some());
    }

    /// Append tokens as [`Session::prompt`] does, and tell their [log-probabilities](Session::scored). That of the
    /// first token of a sequence is NaN. Returns [`State::Cancelled`] if it was cancelled, and otherwise whether the
    /// sequence has room.
    ///
    /// On an error, and if it is cancelled, nothing is appended.
    pub fn score(&mut self, tokens: &[i32]) -> Result<State> {
        self.engine.process().check()?;
        let start = self.driver.committed().len();
        self.driver.begin_scoring(tokens)?;
        self.abandon();
        self.claims |= start == 0;
        let alternatives = self.options.alternatives;
        self.scored.clear();
        if start == 0 {
            self.scored.add_unknown(alternatives, self.engine.participants().len());
        }
        let mut state = State::Open;
        while self.driver.is_scoring() && state == State::Open {
            match self.step().map(|(_, state)| state) {
                Ok(next) => state = next,
                Err(error) => {
                    self.give_up_scoring()?;
                    return Err(error);
                }
            }
            self.scored.append((*self.driver).log_probabilities());
        }
        if state == State::Cancelled {
            self.give_up_scoring()?;
            self.scored.clear();
        } else {
            self.driver.histograms_mut().prompt(self.engine.clock()());
        }
        Ok(state)
    }

    fn give_up_scoring(&mut self) -> Result<()> {
        self.driver.give_up_scoring()?;
        self.abandon();
        Ok(())
    }

    /// What the last [`Session::score`] has told.
    pub fn scored(&self) -> &LogProbabilities {
        &self.scored
    }

    /// Forget all tokens from index `length` on; see [`Decoder::rewind`].
    pub fn rewind(&mut self, length: usize) -> Result<()> {
        self.driver.rewind(length)?;
        self.abandon();
        Ok(())
    }

    /// Share computed tokens with sessions of the same scope only; see [`Decoder::set_scope`].
    pub fn set_scope(&mut self, scope: &str) -> Result<()> {
        self.driver.set_scope(scope)?;
        scope.clone_into(&mut self.scope);
        Ok(())
    }

    /// Log-probabilities of the tokens of the last round; see [`Decoder::log_probabilities`].
    pub fn log_probabilities(&self) -> &LogProbabilities {
        self.driver.log_probabilities()
    }

    /// How the tokens of the last round came about; see [`Decoder::origins`].
    pub fn origins(&self) -> &[Origin] {
        self.driver.origins()
    }

    /// The engine, whose models decode.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Stops this session's steps from other threads.
    pub fn cancel(&self) -> &Arc<Cancel> {
        &self.cancel
    }

    /// The decoder, to read.
    pub fn decoder(&self) -> &Decoder<CounterRng> {
        &self.driver
    }

    /// The memory that the session holds: caches, logits, distributions and tokens. It does not include the weights,
    /// nor the memory that ONNX Runtime keeps from pass to pass, which all sessions of a model share.
    pub fn memory(&self) -> Memory {
        self.driver.memory()
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        Stats {
            steps: self.steps,
            counters: self.driver.counters(),
            model_ns: self.driver.elapsed().as_nanos() as u64,
            total_ns: self.total_ns,
            rows_copied: self.driver.all_rows_copied(),
            cache_use: self.driver.cache_use(),
            plan_times: self.planning.as_ref().map_or_else(PlanTimes::default, Planning::times),
        }
    }

    /// The plan and the reasons for it, as documented with `cos_session_describe`.
    pub fn describe(&self) -> Value {
        let names: Vec<&str> = self.engine.participants().iter().map(Participant::name).collect();
        let Memory { bytes, peak_bytes } = self.memory();
        let mut description = match (&self.planning, self.driver.estimates()) {
            (Some(planning), Some(estimates)) => planning.describe(&names, estimates),
            _ => describe_plan(self.driver.plan(), &names),
        };
        for (model, copied) in self.driver.rows_copied().enumerate() {
            let captures = self.engine.participants()[model].model().and_then(Model::captured);
            let (captured, why_not) = captures.unzip();
            let of_model = &mut description["models"][model];
            of_model["rows_copied"] = json!(copied);
            of_model["captured"] = json!(captured);
            of_model["no_graphs"] = json!(why_not.flatten());
        }
        for participant in 0..names.len() {
            let tested = self.driver.tested().of(participant);
            description["models"][participant]["drafts"] = json!({
                "tested": tested.iter().map(|counts| counts[0]).collect::<Vec<_>>(),
                "accepted": tested.iter().map(|counts| counts[1]).collect::<Vec<_>>(),
            });
        }
        description["routes"] = json!(if self.driver.shares_routes() { "shared" } else { "own" });
        let Counters { proposed, wasted, .. } = self.driver.counters();
        description["wasted"] = json!((proposed > 0).then(|| wasted as f64 / proposed as f64));
        description["latency"] = self.driver.histograms().describe();
        description["memory"] = json!({ "bytes": bytes, "peak_bytes": peak_bytes });
        description
    }
}

/// Whether functions of the caller are called in steps. They may take any time, and nobody waits for them.
fn calls_back(options: &Options) -> bool {
    options.combine.is_some() || options.weigher.is_some() || options.controls.constraint.is_some()
}

/// Check that weights may depend on positions, if they do.
fn check_weigher(engine: &Engine, options: &Options) -> Result<()> {
    let takes_weights = matches!(engine.combine(), Combine::Weighted { .. } | Combine::Logits { .. });
    let why = match &options.weigher {
        None => return Ok(()),
        Some(_) if options.combine.is_some() => "the combine function takes no weights; leave one of both out",
        Some(_) if !takes_weights => "\"combine\" of the engine is neither \"weighted\" nor \"logits\"",
        Some(_) if options.targets == Some(Targets::Routed) => "routed targets are drawn before rows are known",
        Some(_) => return Ok(()),
    };
    Err(Error::InvalidArgument(format!("weigh is set, but {why}")))
}

/// What a decoder is asked for.
fn settings(engine: &Engine, options: &Options, combination: Combination) -> Result<Settings> {
    let stop_tokens = options.stop_tokens.clone().unwrap_or_else(|| engine.stop_tokens().to_vec());
    let mut controls = options.controls.clone();
    if let Some((language, source)) = &options.constraint {
        controls.constraint = Some(engine.constraint(*language, source, &stop_tokens)?);
    }
    Ok(Settings {
        combination,
        sampler: options.sampler,
        weigher: options.weigher.clone(),
        controls,
        stop_tokens,
        max_tokens: options.max_tokens,
        log_probabilities: options.log_probabilities,
        alternatives: options.alternatives,
    })
}

fn costs(engine: &Engine) -> Vec<u64> {
    engine.participants().iter().map(Participant::cost).collect()
}

/// The request that a plan is made from.
fn request<'a>(options: &'a Options, combination: &'a Combination, costs: &'a [u64]) -> Request<'a> {
    Request {
        strategy: options.strategy,
        targets: options.targets,
        lengths: options.proposal_lengths.as_deref(),
        combination,
        greedy: options.sampler.is_greedy(),
        // The weights of a position may depend on all rows.
        log_probabilities: options.log_probabilities || options.weigher.is_some(),
        costs,
    }
}

/// The planning of a session, and the estimates that it begins with; `None` if the strategy is pinned.
fn planning(engine: &Engine, request: &Request, options: &Options, plan: Plan) -> Option<(Planning, Estimates)> {
    if request.strategy != Strategy::Auto {
        return None;
    }
    let scores: Vec<bool> = engine.participants().iter().map(|each| each.model().is_some()).collect();
    let pass_times: Vec<_> = engine.participants().iter().map(Participant::pass_times).collect();
    let choices = Choices::new(request, &scores);
    Some(Planning::new(
        &engine.shared_planning().lock(),
        &pass_times,
        request.combination,
        &options.sampler,
        choices,
        plan,
    ))
}
