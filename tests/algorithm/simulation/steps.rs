//! What a step must return, and what must hold after every call.

use std::ffi::CStr;
use std::ptr::null;

use cos::decode::combine::Combination;
use cos::ffi::*;
use serde_json::Value;

use super::calls::{Check, Simulation};
use super::faults::{Events, Fault, PLANTED, is_bad};
use super::models::{Bug, look_up};
use super::session::{Session, error_name, finish_name, is_untouched, members, ranking, sentinel};
use crate::common::boundary::{code, no_stats, outcome};
use crate::common::{mix, oracle};

impl Simulation {
    pub fn step(&mut self, session: &mut Session) -> Check {
        let open = session.finish == COS_FINISH_NONE && !session.is_empty();
        let cancelled = open && session.cancel_requested;
        let runs = open && !session.poisoned && !cancelled;
        self.report.rounds += u64::from(runs);
        let mut result = sentinel();
        // SAFETY: the session is live.
        let (code, message) = outcome(unsafe { cos_step(session.handle, &mut result) });
        let mut events = std::mem::take(&mut self.stage.state.lock().events);
        if let Some(what) = events.violation.take() {
            return Err(what);
        }
        match self.bug {
            Some(Bug::LosesToken) if code == 0 && result.tokens_count > 1 => result.tokens_count -= 1,
            Some(Bug::MissesTheEnd) if result.finish == COS_FINISH_MAX_TOKENS => result.finish = COS_FINISH_NONE,
            Some(Bug::WritesOnError) if code != 0 => result.finish = 0,
            _ => {}
        }
        events.cover(&mut self.report);
        self.report.cover(if code == 0 { finish_name(result.finish) } else { error_name(code) });
        session.steps += u64::from(!session.poisoned);
        session.cancel_requested |= events.happened(Fault::Cancel);
        session.spoilt.extend(&events.spoilt);
        ensure!(runs || events.rows == 0, "a model ran, but there was nothing to decode");
        if code != 0 {
            trace!(self, "step {} -> {}: {message}", session.name, error_name(code));
            ensure!(is_untouched(&result), "a failed step wrote its result");
            let explained = self.explains(session, &events, cancelled, code, &message);
            ensure!(explained, "step gave {} ({message}), which nothing explains", error_name(code));
            session.poisoned |= code == COS_ERROR_INTERNAL;
            return if runs { self.rolled_back(session) } else { self.look(session) };
        }

        // SAFETY: the step succeeded, so each pointer is NULL or has `tokens_count` elements.
        let (tokens, values) = unsafe {
            let count = result.tokens_count;
            let tokens = if count > 0 { std::slice::from_raw_parts(result.tokens, count) } else { &[] };
            let values = result.log_probabilities;
            (tokens, (!values.is_null()).then(|| std::slice::from_raw_parts(values, count)))
        };
        trace!(self, "step {} -> {tokens:?} {values:?}, {}", session.name, finish_name(result.finish));
        ensure!(!session.poisoned, "a poisoned session made a step");
        ensure!(result.reserved == 0, "reserved is {}", result.reserved);
        ensure!(!events.happened(Fault::Panic), "a panic went unnoticed");
        // `auto` may ignore the failure of a drafter that it only probes.
        let probed = session.options.strategy == COS_STRATEGY_AUTO && !session.combination.needs(events.failed);
        ensure!(!events.happened(Fault::Failure) || probed, "a failed pass went unnoticed");
        let wanted = session.options.log_probabilities && !tokens.is_empty();
        ensure!(values.is_some() == wanted, "log-probabilities are missing, or were not asked for");
        if result.finish == COS_FINISH_CANCELLED {
            ensure!(session.cancel_requested, "a step was cancelled without a request");
            ensure!(tokens.is_empty(), "a cancelled step has tokens");
            self.report.cover(if cancelled { "cancelled between steps" } else { "cancelled within a pass" });
            session.cancel_requested = false;
            return if runs { self.rolled_back(session) } else { self.look(session) };
        }
        ensure!(!cancelled, "a cancellation had no effect");
        ensure!(!session.is_empty(), "a session without a prompt made a step");
        if !open {
            ensure!(tokens.is_empty() && result.finish == session.finish, "a sequence that has ended went on");
            self.report.cover("step after an end");
            return self.look(session);
        }
        self.commit(session, tokens, values, result.finish)
    }

    /// Whether something that was planted explains the error of a step.
    fn explains(&mut self, session: &Session, events: &Events, cancelled: bool, code: i32, message: &str) -> bool {
        match code {
            COS_ERROR_POISONED => session.poisoned,
            _ if session.poisoned || cancelled => false,
            COS_ERROR_INVALID_ARGUMENT => session.is_empty(),
            COS_ERROR_RUNTIME => events.happened(Fault::Failure) && message.contains(PLANTED),
            COS_ERROR_INTERNAL => events.happened(Fault::Panic) && message.contains(PLANTED),
            COS_ERROR_CALLBACK => events.function_failed && message.contains("-7"),
            COS_ERROR_NUMERIC => events.function_spoilt || self.is_undecidable(session),
            _ => false,
        }
    }

    /// Checks that no cache holds the last committed token after a round that failed or was cancelled.
    pub fn rolled_back(&mut self, session: &mut Session) -> Check {
        session.failures += 1;
        let ledger = session.ledger.lock();
        let (longest, committed) = (ledger.longest(), ledger.committed.len());
        drop(ledger);
        // After a panic, nothing is promised.
        ensure!(
            session.poisoned || longest < committed,
            "a failed round left {longest} tokens of {committed} in a cache"
        );
        self.look(session)
    }

    /// Checks the tokens that a round has committed.
    pub fn commit(&mut self, session: &mut Session, tokens: &[i32], values: Option<&[f32]>, finish: i32) -> Check {
        ensure!(!tokens.is_empty(), "a step that was neither finished nor cancelled has no tokens");
        let (before_tested, before_accepted) = (session.stats.tested, session.stats.accepted);
        for (index, &token) in tokens.iter().enumerate() {
            ensure!((0..self.vocab() as i32).contains(&token), "token {token} is outside the vocabulary");
            let end = session.end(token);
            let told = if index + 1 < tokens.len() { COS_FINISH_NONE } else { finish };
            let names = (finish_name(end), finish_name(told));
            ensure!(end == told, "behind token {index} the step has {}, but was told {}", names.0, names.1);
            let value = values.map(|values| match self.bug {
                Some(Bug::LogProbability) => values[index] * 1.1,
                _ => values[index],
            });
            // Half of the tokens are enough, because the oracle takes longer than a round.
            if self.rng.bool() {
                self.judge(session, token as usize, value)?;
            }
            session.ledger.lock().committed.push(token);
        }
        session.finish = finish;
        session.cancel_requested &= finish == COS_FINISH_NONE; // one that came during the last round has been too late
        session.tokens += tokens.len() as u64;
        session.failures = 0;
        let committed = session.len();
        session.spoilt.retain(|&(_, position)| position >= committed);
        self.look(session)?;

        // A round accepts proposals. Then it rejects one, or draws a bonus token, or neither.
        let (tested, accepted) = (session.stats.tested - before_tested, session.stats.accepted - before_accepted);
        let (count, rejected) = (tokens.len() as u64, tested - accepted);
        ensure!(
            accepted <= count && count <= accepted + 1 && rejected <= count - accepted,
            "a step of {count} tokens accepted {accepted} of {tested} proposals"
        );
        if session.options.strategy == COS_STRATEGY_STANDARD {
            ensure!(session.stats.proposed == 0 && count == 1, "the standard strategy made proposals");
        }
        for (happened, what) in [
            (accepted > 0, "proposal accepted"),
            (rejected > 0, "proposal rejected"),
            (accepted > 0 && count > tested, "bonus token"),
        ] {
            if happened {
                self.report.cover(what);
            }
        }
        Ok(())
    }

    /// Checks what must hold after every call.
    pub fn look(&mut self, session: &mut Session) -> Check {
        let mut stats = no_stats();
        // SAFETY: the session is live.
        let code = code(unsafe { cos_session_stats(session.handle, &mut stats) });
        if session.poisoned {
            ensure!(code == COS_ERROR_POISONED, "a poisoned session told its statistics");
            return Ok(());
        }
        ensure!(code == 0, "statistics failed: {}", error_name(code));
        let ledger = session.ledger.lock();
        ledger.check()?;
        let found = [stats.steps, stats.tokens, stats.forwards, stats.positions];
        let expected = [session.steps, session.tokens, ledger.forwards, ledger.positions];
        ensure!(found == expected, "steps, tokens, forwards, positions are {found:?}, not {expected:?}");
        let of = |stats: &cos_stats| {
            let cos_stats { proposed, tested, accepted, near_ties, model_ns, total_ns, .. } = *stats;
            [proposed, tested, accepted, near_ties, model_ns, total_ns, stats.planned_ns]
        };
        let (now, before) = (of(&stats), of(&session.stats));
        ensure!(now.iter().zip(before).all(|(now, before)| *now >= before), "statistics fell: {before:?}, {now:?}");
        ensure!(stats.accepted <= stats.tested && stats.tested <= stats.proposed, "proposals do not add up: {now:?}");
        let decided = stats.tokens > session.stats.tokens;
        ensure!(decided || now[..4] == before[..4], "proposals of a round that failed count: {before:?}, {now:?}");
        drop(ledger);
        for ((total, now), before) in self.totals.iter_mut().zip(members(&stats)).zip(members(&session.stats)) {
            *total += now - before;
        }
        session.stats = stats;
        if self.once_in(64) {
            self.describe(session)?;
        }
        let mut totals = no_stats();
        if !self.handle.is_null() {
            // SAFETY: the engine is live.
            ensure!(unsafe { cos_engine_stats(self.handle, &mut totals) }.is_null(), "an engine without statistics");
            ensure!(members(&totals) == self.totals, "the engine did {:?}, not {:?}", members(&totals), self.totals);
        }
        Ok(())
    }

    /// Checks that a session describes what it was asked for.
    pub fn describe(&mut self, session: &Session) -> Check {
        let mut json = null();
        // SAFETY: the session is live, and its description is read before the next call.
        let text = unsafe {
            let code = code(cos_session_describe(session.handle, &mut json));
            ensure!(code == 0, "a description failed: {}", error_name(code));
            CStr::from_ptr(json).to_str().expect("UTF-8")
        };
        let description: Value = serde_json::from_str(text).map_err(|error| format!("{text}: {error}"))?;
        let auto = session.options.strategy == COS_STRATEGY_AUTO;
        let asked = ["standard", "speculative", "cos"].get(session.options.strategy.wrapping_sub(1) as usize);
        let strategy = description["strategy"].as_str().unwrap_or_default();
        let lengths: Vec<i64> =
            description["proposal_lengths"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        // Without proposals, every strategy decodes as standard does.
        let as_asked = auto || strategy == "standard" || Some(&strategy) == asked;
        ensure!(as_asked && description["planned"] == auto, "what was asked for is not what is told: {text}");
        if let Some(pinned) = &session.options.lengths {
            let kept = lengths.iter().zip(pinned).all(|(length, pinned)| [0, i64::from(*pinned)].contains(length));
            ensure!(kept && lengths.len() == pinned.len(), "pinned lengths are {pinned:?}, told is {text}");
        }
        let routed = description["targets"] == "routed";
        ensure!(!routed || session.routed, "the session may not be routed, told is {text}");
        if description["changes"].as_u64() > Some(0) {
            self.report.cover("plan changed");
        }
        Ok(())
    }

    /// Writes the true rows for the next token of a session into `rows`. Returns whether any and whether all of them
    /// are bad.
    pub fn truth(&mut self, session: &Session) -> (bool, bool) {
        let ledger = session.ledger.lock();
        let (mut any, mut all) = (false, true);
        for model in session.combination.needed() {
            self.stage.truth.row(model, &ledger.committed, &mut self.rows[model]);
            let bad = is_bad(&self.rows[model]);
            (any, all) = (any || bad, all && bad);
        }
        (any, all)
    }

    /// Whether a bad row or an impossible combination prevents the next token.
    pub fn is_undecidable(&mut self, session: &Session) -> bool {
        let position = session.len();
        let spoilt = |(model, at): &(usize, usize)| *at == position && session.combination.needs(*model);
        self.truth(session).0
            || session.spoilt.iter().any(spoilt)
            || !is_distribution(&oracle(&self.rows, &session.combination, ranking(session.options.sampling)))
    }

    /// Checks that the oracle allows a token as the next one of a session, with this log-probability.
    pub fn judge(&mut self, session: &Session, token: usize, value: Option<f32>) -> Check {
        if let Some(value) = value {
            ensure!(value.is_finite() && value < 1e-5, "the log-probability {value} is none");
        }
        let (any_bad, all_bad) = self.truth(session);
        if any_bad {
            // The simulation cannot see the route of a position, which may avoid the bad row.
            ensure!(session.routed && !all_bad, "token {token} was decided by the bad rows {:?}", self.rows);
            return Ok(());
        }
        let sampling = ranking(session.options.sampling);
        let allowed = |r: &[f64], tolerance: f64| {
            let best = r.iter().copied().fold(0.0, f64::max);
            let token_is =
                if session.options.is_greedy() { r[token] >= best * (1.0 - tolerance) } else { r[token] > 0.0 };
            let value_is = value.is_none_or(|value| (f64::from(value) - r[token].ln()).abs() < tolerance);
            is_distribution(r) && token_is && value_is
        };
        let r = oracle(&self.rows, &session.combination, sampling);
        self.report.judged += 1;
        if allowed(&r, 1e-4) {
            if !session.options.is_greedy() {
                self.lean(session, &r, token);
            }
            return Ok(());
        }
        // A score or a sum on the edge of a filter may be rounded to either side of it.
        let on_edge = (0..8u64).any(|pattern| {
            let mut rows = self.rows.clone();
            for (at, logit) in rows.iter_mut().flatten().enumerate() {
                *logit += if mix(pattern << 32 | at as u64) & 1 == 0 { 1e-5 } else { -1e-5 };
            }
            allowed(&oracle(&rows, &session.combination, sampling), 1e-3)
        });
        ensure!(on_edge, "token {token} with {value:?} is not what {r:?} allows, of the rows {:?}", self.rows);
        self.report.edges += 1;
        Ok(())
    }

    /// Adds a token with the distribution `r` to the lean towards its drafter.
    pub fn lean(&mut self, session: &Session, r: &[f64], token: usize) {
        let ledger = session.ledger.lock();
        let model = session.drafter;
        let q = if self.models[model].model().is_some() {
            self.stage.truth.row(model, &ledger.committed, &mut self.rows[model]);
            if is_bad(&self.rows[model]) {
                return;
            }
            let alone = Combination::target(self.models.len(), model).expect("a model");
            oracle(&self.rows, &alone, session.options.sampling)
        } else {
            let Some(certain) = look_up(&ledger.committed) else { return };
            (0..self.vocab()).map(|token| f64::from(u8::from(token == certain as usize))).collect()
        };
        self.report.lean.entry(session.way()).or_default().add(r, &q, token);
        self.report.lean.entry("all").or_default().add(r, &q, token);
    }
}

pub fn is_distribution(r: &[f64]) -> bool {
    (r.iter().sum::<f64>() - 1.0).abs() < 1e-5
}
