//! Policies: which model runs next, and how many tokens it proposes. All strategies are policies of one loop.

use crate::decode::combine::Combination;
use crate::error::{Error, Result};

/// Largest number of tokens that a model may propose in a row.
pub const MAX_PROPOSAL_LENGTH: i32 = 64;

/// The strategy that a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The library chooses, and changes its choice as it learns.
    Auto,
    /// Every needed model scores every position. No model proposes.
    Standard,
    /// One model drafts, and the needed ones verify.
    Speculative,
    /// Collaborative decoding via speculation: models take turns, and the bonus token of a verifying model is its
    /// proposal to the others (Algorithm 1 for two models, Algorithm 2 for any number).
    Cos,
}

/// What proposals are verified against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Targets {
    /// The combined distribution. A position needs every model whose weight is not 0.
    Combined,
    /// The distribution of one model, drawn for each position by the weights of a mixture. A draw of `k ~ λ` followed
    /// by a draw from `p_k` is a draw from `Σ λ_k p_k`. So a position needs only that one model.
    Routed,
}

/// The next step: run a model over all tokens that it has not seen, then draw proposals from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// The model to run.
    pub model: usize,
    /// How many tokens it proposes. Each after the first takes another pass.
    pub proposals: usize,
}

/// The part of a sequence's state that a policy may use.
#[derive(Debug)]
pub struct View<'a> {
    /// Proposals that are not decided yet.
    pub pending: usize,
    /// A model that must still score the front position, the first undecided one.
    pub missing: usize,
    /// Tokens that each model has seen, pending ones included. `usize::MAX` for a model that has no reason to run now.
    pub seen: &'a [usize],
    /// Whether a model declined to propose since the last commit.
    pub declined: bool,
}

/// How the models of a session take turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// See [`Strategy::Standard`].
    Standard,
    /// See [`Strategy::Speculative`].
    Speculative {
        /// The model that drafts.
        proposer: usize,
        /// γ, the number of tokens that it drafts in a row; at least 1.
        length: usize,
    },
    /// See [`Strategy::Cos`].
    Cos {
        /// γ of each model in engine order. A model of length 0 only verifies.
        lengths: Vec<usize>,
        /// The models that take part. Of models that have seen equally many tokens, the first one runs.
        order: Vec<usize>,
    },
}

impl Policy {
    /// The next step. To be called while the front position cannot be decided, so there is always one.
    pub fn next(&self, view: &View) -> Action {
        match self {
            Policy::Speculative { proposer, length }
                if view.pending == 0 && !view.declined && view.seen[*proposer] != usize::MAX =>
            {
                Action { model: *proposer, proposals: *length }
            }
            // With a draft pending, or none to be had, the needed models score.
            Policy::Standard | Policy::Speculative { .. } => Action { model: view.missing, proposals: 0 },
            Policy::Cos { lengths, order } => {
                let behind = order.iter().copied().min_by_key(|&model| view.seen[model]);
                let model = behind.unwrap_or(view.missing);
                Action { model, proposals: lengths[model] }
            }
        }
    }

    /// Whether a model never proposes under this policy.
    pub fn never_proposes(&self, model: usize) -> bool {
        match self {
            Policy::Standard => true,
            Policy::Speculative { proposer, .. } => *proposer != model,
            Policy::Cos { lengths, .. } => lengths[model] == 0,
        }
    }

    /// Whether the policy itself has a model run. Models that the target needs run in any case.
    pub fn uses(&self, model: usize) -> bool {
        match self {
            Policy::Standard => false,
            Policy::Speculative { proposer, .. } => *proposer == model,
            Policy::Cos { order, .. } => order.contains(&model),
        }
    }

    /// The model that proposes the most tokens in a row, and how many; `None` for `standard`.
    pub fn longest(&self) -> Option<(usize, usize)> {
        match self {
            Policy::Standard => None,
            Policy::Speculative { proposer, length } => Some((*proposer, *length)),
            Policy::Cos { lengths, .. } => lengths.iter().copied().enumerate().max_by_key(|&(_, length)| length),
        }
    }

    /// Set the proposal length of a model that proposes.
    pub fn set_length(&mut self, model: usize, to: usize) {
        match self {
            Policy::Standard => {}
            Policy::Speculative { length, .. } => *length = to,
            Policy::Cos { lengths, .. } => lengths[model] = to,
        }
    }

    /// The largest number of proposals that can be pending at once.
    pub fn max_pending(&self) -> usize {
        match self {
            Policy::Standard => 0,
            Policy::Speculative { length, .. } => *length,
            // Every model may take a turn before the front position is decided, and the first one another turn.
            Policy::Cos { lengths, .. } => lengths.iter().sum::<usize>() + lengths.iter().max().copied().unwrap_or(0),
        }
    }
}

impl Request<'_> {
    /// Whether targets can be routed: for sampled mixtures only.
    fn routable(&self) -> bool {
        matches!(self.combination, Combination::Mixture { .. }) && !self.greedy
    }

    /// Whether `auto` may choose these targets.
    pub fn allows(&self, targets: Targets) -> bool {
        match self.targets {
            Some(pinned) => pinned == targets,
            None => targets == Targets::Combined || self.routable() && !self.log_probabilities,
        }
    }
}

/// A policy together with its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which model runs next.
    pub policy: Policy,
    /// What proposals are verified against.
    pub targets: Targets,
    /// A model's turn ends early once the estimated probability that all pending proposals are accepted is below this,
    /// in percent. 0 never ends a turn early.
    pub stop_below: u8,
}

/// What a caller asks for, from which a plan is made.
#[derive(Debug)]
pub struct Request<'a> {
    /// The strategy.
    pub strategy: Strategy,
    /// The targets, or `None` to leave them to the strategy.
    pub targets: Option<Targets>,
    /// γ of each model in engine order, or `None` to leave them to the library.
    pub lengths: Option<&'a [i32]>,
    /// The combination, with the session's weights.
    pub combination: &'a Combination,
    /// Whether the sampler is greedy.
    pub greedy: bool,
    /// Whether log-probabilities under the combined distribution are wanted. They need combined targets.
    pub log_probabilities: bool,
    /// Relative cost of a pass of each model.
    pub costs: &'a [u64],
}

impl Plan {
    /// The plan that all others are compared with.
    pub const STANDARD: Plan = Plan::of(Policy::Standard, Targets::Combined);

    /// A plan whose turns never end early.
    pub const fn of(policy: Policy, targets: Targets) -> Self {
        Plan { policy, targets, stop_below: 0 }
    }

    /// Whether the pass of an action with so many proposals may overlap with a pass of `other` over the same tokens.
    ///
    /// `other` is a needed model that has not scored the front position. Its pass is certain to come next if nothing
    /// can be decided or proposed before it.
    pub fn may_overlap(&self, proposals: usize, other: usize) -> bool {
        proposals == 0 && self.targets == Targets::Combined && self.policy.never_proposes(other)
    }

    /// The plan of a request. [`Error::InvalidArgument`] if parts of the request contradict each other.
    ///
    /// - Routed targets need a sampled mixture: neither an argmax nor a sum of logits is a mixture of distributions.
    ///   The combined distribution is never formed then, so there are no log-probabilities under it.
    /// - `auto` begins with a plan that cannot lose before anything is known: routed targets where possible, otherwise
    ///   `cos` with one proposal of each needed model (Corollary 3.7). The [planner] takes over from there.
    ///
    /// [planner]: crate::plan::planner
    pub fn new(request: &Request) -> Result<Self> {
        let models = request.costs.len();
        if let Some(lengths) = request.lengths {
            if lengths.len() != models {
                return Err(Error::InvalidArgument(format!(
                    "proposal_lengths_count is {}, but the engine has {models} models; give one length for each",
                    lengths.len()
                )));
            }
            if let Some((model, length)) =
                lengths.iter().enumerate().find(|(_, l)| !(0..=MAX_PROPOSAL_LENGTH).contains(*l))
            {
                return Err(Error::InvalidArgument(format!(
                    "proposal_lengths[{model}] is {length}; it must be between 0 and {MAX_PROPOSAL_LENGTH}"
                )));
            }
        }
        let routable = request.routable();
        if request.targets == Some(Targets::Routed) && !routable {
            return Err(Error::InvalidArgument(
                "routed targets need a weighted combination, no combine function, and a temperature above 0; \
                 ask for combined targets"
                    .into(),
            ));
        }
        if request.targets == Some(Targets::Routed) && request.log_probabilities {
            return Err(Error::InvalidArgument(
                "log_probabilities are those of the combined distribution, which routed targets never make; \
                 ask for combined targets"
                    .into(),
            ));
        }
        let auto = request.strategy == Strategy::Auto;
        let routed = request.targets.map_or(auto && request.allows(Targets::Routed), |t| t == Targets::Routed);
        let strategy = match request.strategy {
            Strategy::Auto if routed => Strategy::Standard,
            Strategy::Auto => Strategy::Cos,
            pinned => pinned,
        };
        let policy = match strategy {
            Strategy::Auto | Strategy::Standard => Policy::Standard,
            Strategy::Speculative => Self::speculative(request),
            Strategy::Cos => Self::cos(request),
        };
        Ok(Plan::of(policy, if routed { Targets::Routed } else { Targets::Combined }))
    }

    fn speculative(request: &Request) -> Policy {
        // The best drafter is one that is not needed to verify, and among those the cheapest.
        let proposer = (0..request.costs.len())
            .filter(|&model| Self::length(request, model) > 0)
            .min_by_key(|&model| (request.combination.needs(model), request.costs[model], model));
        match proposer {
            Some(proposer) => Policy::Speculative { proposer, length: Self::length(request, proposer) },
            None => Policy::Standard,
        }
    }

    fn cos(request: &Request) -> Policy {
        let lengths: Vec<usize> = (0..request.costs.len()).map(|model| Self::length(request, model)).collect();
        let mut order: Vec<usize> =
            (0..lengths.len()).filter(|&model| lengths[model] > 0 || request.combination.needs(model)).collect();
        order.sort_by_key(|&model| (lengths[model] == 0, request.costs[model], model));
        if lengths.iter().all(|&length| length == 0) { Policy::Standard } else { Policy::Cos { lengths, order } }
    }

    /// γ of a model: as the caller asks, or a length that cannot lose much before acceptance is known.
    ///
    /// Models that verify each other with one proposal each are never slower than `standard` (Corollary 3.7). Longer
    /// drafts lose where acceptance is low. A model of weight 0 pays only if it is cheap, so cheap ones draft more.
    fn length(request: &Request, model: usize) -> usize {
        if request.combination.needed().eq([model]) {
            return 0; // its proposals would be verified by itself only
        }
        // The planner begins to use drafters once it knows how well they do.
        if request.strategy == Strategy::Auto && !request.combination.needs(model) {
            return 0;
        }
        if let Some(lengths) = request.lengths {
            return lengths[model] as usize;
        }
        if request.combination.needs(model) {
            return 1;
        }
        let dearest = request.combination.needed().map(|model| request.costs[model]).max().unwrap_or(1).max(1);
        match request.costs[model] as f64 / dearest as f64 {
            ratio if ratio > 0.5 => 1,
            ratio if ratio > 0.15 => 2,
            _ => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(
        strategy: Strategy,
        combination: &Combination,
        costs: &[u64],
        lengths: Option<&[i32]>,
        greedy: bool,
    ) -> Plan {
        let request =
            Request { strategy, targets: None, lengths, combination, greedy, log_probabilities: false, costs };
        Plan::new(&request).unwrap()
    }

    #[test]
    fn auto_routes_sampled_mixtures_only() {
        let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
        let auto = plan(Strategy::Auto, &mixture, &[5, 5], None, false);
        assert_eq!(auto, Plan::of(Policy::Standard, Targets::Routed));
        let greedy = plan(Strategy::Auto, &mixture, &[5, 5], None, true);
        assert_eq!(greedy.policy, Policy::Cos { lengths: vec![1, 1], order: vec![0, 1] });
        assert_eq!(greedy.targets, Targets::Combined);
        let contrastive = plan(Strategy::Auto, &Combination::contrastive(2, 0.1, 0.0).unwrap(), &[100, 3], None, false);
        assert_eq!(contrastive.policy, Policy::Cos { lengths: vec![1, 1], order: vec![1, 0] });
    }

    #[test]
    fn log_probabilities_need_combined_targets() {
        let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
        let plan = |strategy, targets| {
            Plan::new(&Request {
                strategy,
                targets,
                lengths: None,
                combination: &mixture,
                greedy: false,
                log_probabilities: true,
                costs: &[5, 5],
            })
        };
        let auto = plan(Strategy::Auto, None).unwrap();
        assert_eq!(auto.policy, Policy::Cos { lengths: vec![1, 1], order: vec![0, 1] });
        assert_eq!(auto.targets, Targets::Combined);
        assert!(plan(Strategy::Standard, Some(Targets::Combined)).is_ok());
        assert_eq!(plan(Strategy::Standard, Some(Targets::Routed)).unwrap_err().code(), 1);
    }

    #[test]
    fn drafters_of_weight_0_run_on_request_only() {
        let target = Combination::target(2, 0).unwrap();
        assert_eq!(plan(Strategy::Auto, &target, &[100, 10], None, false).policy, Policy::Standard);
        assert_eq!(
            plan(Strategy::Speculative, &target, &[100, 10], None, false).policy,
            Policy::Speculative { proposer: 1, length: 4 }
        );
        assert_eq!(
            plan(Strategy::Speculative, &target, &[9, 9], None, false).policy,
            Policy::Speculative { proposer: 1, length: 1 }
        );
        let alone = Combination::target(1, 0).unwrap();
        assert_eq!(plan(Strategy::Auto, &alone, &[100], None, false).policy, Policy::Standard);
    }

    #[test]
    fn lengths_choose_the_proposer() {
        let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
        let by = |lengths: &[i32]| plan(Strategy::Speculative, &mixture, &[5, 9], Some(lengths), false).policy;
        assert_eq!(by(&[0, 3]), Policy::Speculative { proposer: 1, length: 3 });
        assert_eq!(by(&[3, 3]), Policy::Speculative { proposer: 0, length: 3 });
        assert_eq!(by(&[0, 0]), Policy::Standard);
        assert_eq!(
            plan(Strategy::Cos, &mixture, &[5, 9], Some(&[0, 2]), false).policy,
            Policy::Cos { lengths: vec![0, 2], order: vec![1, 0] }
        );
    }

    #[test]
    fn cos_runs_the_model_that_is_furthest_behind() {
        let policy = Policy::Cos { lengths: vec![1, 2, 3], order: vec![2, 0, 1] };
        let next = |seen: &[usize]| policy.next(&View { pending: 1, missing: 0, seen, declined: false });
        assert_eq!(next(&[7, 7, 7]), Action { model: 2, proposals: 3 });
        assert_eq!(next(&[7, 7, 8]), Action { model: 0, proposals: 1 });
        assert_eq!(next(&[9, 7, 8]), Action { model: 1, proposals: 2 });
    }

    #[test]
    fn a_drafter_without_a_draft_is_not_asked_again() {
        let policy = Policy::Speculative { proposer: 1, length: 4 };
        let next = |declined| policy.next(&View { pending: 0, missing: 0, seen: &[6, 7], declined });
        assert_eq!(next(false), Action { model: 1, proposals: 4 });
        assert_eq!(next(true), Action { model: 0, proposals: 0 });
        let idle = View { pending: 0, missing: 0, seen: &[6, usize::MAX], declined: false };
        assert_eq!(policy.next(&idle), Action { model: 0, proposals: 0 }, "nor is a drafter with no reason to run");
    }

    #[test]
    fn bad_requests_are_errors() {
        let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
        let new = |lengths, targets, combination: &Combination, greedy| {
            let (strategy, costs) = (Strategy::Cos, &[1, 1]);
            Plan::new(&Request { strategy, targets, lengths, combination, greedy, log_probabilities: false, costs })
        };
        assert_eq!(new(Some(&[1][..]), None, &mixture, false).unwrap_err().code(), 1);
        assert_eq!(new(Some(&[1, -1]), None, &mixture, false).unwrap_err().code(), 1);
        assert_eq!(new(Some(&[1, 65]), None, &mixture, false).unwrap_err().code(), 1);
        assert_eq!(new(None, Some(Targets::Routed), &mixture, true).unwrap_err().code(), 1);
        let contrastive = Combination::contrastive(2, 0.1, 0.0).unwrap();
        assert_eq!(new(None, Some(Targets::Routed), &contrastive, false).unwrap_err().code(), 1);
        assert!(new(None, Some(Targets::Routed), &mixture, false).is_ok());
    }
}
