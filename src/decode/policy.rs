//! Which model runs next, and how many tokens it proposes: all strategies, as policies of one loop.

use crate::decode::combine::Combination;
use crate::error::{Error, Result};

/// Most tokens that a model may propose in a row.
pub const MAX_PROPOSAL_LENGTH: i32 = 64;

/// What the caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Chosen by the library.
    Auto,
    /// Every needed model scores every position, nobody proposes.
    Standard,
    /// One model drafts, all others score.
    Speculative,
    /// Collaborative decoding via speculation: models take turns, and a scorer's bonus token is its proposal
    /// (Algorithm 1 for two models, Algorithm 2 for any number).
    Cos,
}

/// What proposals are verified against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Targets {
    /// The combined distribution; a position needs every model whose weight is not 0.
    Combined,
    /// One model for each position, drawn from the weights of a mixture: a draw from `Σ λ_k p_k` is a draw
    /// of `k ~ λ` followed by a draw from `p_k`, so a position needs that one model only.
    Routed,
}

/// The next thing to do: run a model over everything it has not seen, then draw proposals from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// The model to run.
    pub model: usize,
    /// How many tokens it proposes, one pass for each after the first.
    pub proposals: usize,
}

/// The state of a sequence, as far as a policy may look at it.
#[derive(Debug)]
pub struct View<'a> {
    /// Proposals not yet decided.
    pub pending: usize,
    /// The first model that must score the front position before it can be decided.
    pub missing: usize,
    /// Tokens that each model has seen, pending ones included; `usize::MAX` for one that has no business now.
    pub seen: &'a [usize],
    /// Whether a model had nothing to propose since the last commit.
    pub declined: bool,
}

/// How a session decodes, settled when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// See [`Strategy::Standard`].
    Standard,
    /// See [`Strategy::Speculative`].
    Speculative {
        /// The model that drafts.
        proposer: usize,
        /// γ, at least 1.
        length: usize,
    },
    /// See [`Strategy::Cos`].
    Cos {
        /// γ of each model in engine order; 0 scores without proposing.
        lengths: Vec<usize>,
        /// The models that take part, the one that starts first.
        order: Vec<usize>,
    },
}

impl Policy {
    /// Decide what to do next. There is always something: a front position that is not yet decidable.
    pub fn next(&self, view: &View) -> Action {
        match self {
            Policy::Speculative { proposer, length }
                if view.pending == 0 && !view.declined && view.seen[*proposer] != usize::MAX =>
            {
                Action { model: *proposer, proposals: *length }
            }
            // Without a draft, `speculative` acts like `standard`.
            Policy::Standard | Policy::Speculative { .. } => Action { model: view.missing, proposals: 0 },
            Policy::Cos { lengths, order } => {
                let behind = order.iter().copied().min_by_key(|&model| view.seen[model]);
                let model = behind.unwrap_or(view.missing);
                Action { model, proposals: lengths[model] }
            }
        }
    }

    /// Whether a model only ever runs to score what others have proposed, or nobody has.
    fn only_verifies(&self, model: usize) -> bool {
        match self {
            Policy::Standard => true,
            Policy::Speculative { proposer, .. } => *proposer != model,
            Policy::Cos { lengths, .. } => lengths[model] == 0,
        }
    }

    /// Whether a model may ever run.
    pub fn uses(&self, model: usize) -> bool {
        match self {
            Policy::Standard => false,
            Policy::Speculative { proposer, .. } => *proposer == model,
            Policy::Cos { order, .. } => order.contains(&model),
        }
    }

    /// The model that proposes the most tokens in a row, and how many; `None` if nobody proposes.
    pub fn longest(&self) -> Option<(usize, usize)> {
        match self {
            Policy::Standard => None,
            Policy::Speculative { proposer, length } => Some((*proposer, *length)),
            Policy::Cos { lengths, .. } => lengths.iter().copied().enumerate().max_by_key(|&(_, length)| length),
        }
    }

    /// Let a model that proposes do so with another length.
    pub fn set_length(&mut self, model: usize, to: usize) {
        match self {
            Policy::Standard => {}
            Policy::Speculative { length, .. } => *length = to,
            Policy::Cos { lengths, .. } => lengths[model] = to,
        }
    }

    /// Most proposals that can be pending at once.
    pub fn max_pending(&self) -> usize {
        match self {
            Policy::Standard => 0,
            Policy::Speculative { length, .. } => *length,
            // every model may have proposed once before the front is decided, and the first one once more
            Policy::Cos { lengths, .. } => lengths.iter().sum::<usize>() + lengths.iter().max().copied().unwrap_or(0),
        }
    }
}

impl Request<'_> {
    /// Whether the combination is one whose positions can be routed.
    fn routable(&self) -> bool {
        matches!(self.combination, Combination::Mixture { .. }) && !self.greedy
    }

    /// Whether a session that leaves its strategy to the library may have these targets.
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
    /// Who runs next.
    pub policy: Policy,
    /// What proposals are verified against.
    pub targets: Targets,
    /// A model's turn ends early where all pending proposals are accepted with less than this probability, in percent, by
    /// what is known of it; 0 lets it finish.
    pub stop_below: u8,
}

/// What a plan is made from.
#[derive(Debug)]
pub struct Request<'a> {
    /// The strategy asked for.
    pub strategy: Strategy,
    /// The targets asked for; `None` leaves them to the strategy.
    pub targets: Option<Targets>,
    /// γ of each model in engine order; `None` leaves them to the library.
    pub lengths: Option<&'a [i32]>,
    /// The combination, with the session's weights.
    pub combination: &'a Combination,
    /// Whether the sampler is greedy.
    pub greedy: bool,
    /// Whether log-probabilities under the combined distribution are asked for, which needs combined targets.
    pub log_probabilities: bool,
    /// Relative cost of a pass of each model.
    pub costs: &'a [u64],
}

impl Plan {
    /// What all others are measured against.
    pub const STANDARD: Plan = Plan::of(Policy::Standard, Targets::Combined);

    /// A plan whose turns are never ended early.
    pub const fn of(policy: Policy, targets: Targets) -> Self {
        Plan { policy, targets, stop_below: 0 }
    }

    /// Whether, beside a pass behind which so many proposals are made, another model that is needed and has not scored the front
    /// position can run over the same tokens: its pass comes before anything is decided or proposed.
    pub fn may_overlap(&self, proposals: usize, other: usize) -> bool {
        proposals == 0 && self.targets == Targets::Combined && self.policy.only_verifies(other)
    }

    /// Settle how a session decodes.
    ///
    /// Routed targets need a mixture that is sampled: an argmax is no mixture, and neither is a sum of logits. They never
    /// make the combined distribution, so there are no log-probabilities under it.
    /// `Auto` begins with what cannot lose before anything is known: routes where it can, and otherwise `Cos` with one
    /// proposal of each model that is needed (Corollary 3.7). What it goes on with is the [planner]'s business.
    ///
    /// [planner]: super::planner
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
        // The best drafter is one that is never needed to verify, then the cheapest.
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

    /// γ of a model: as asked for, or one that cannot lose much before acceptance is known.
    ///
    /// With one proposal each, models that verify each other are never slower than `standard` (Corollary 3.7); longer
    /// drafts lose where acceptance is low. A drafter that nobody needs pays by being cheap, or not at all.
    fn length(request: &Request, model: usize) -> usize {
        if request.combination.needed().eq([model]) {
            return 0; // it would only verify itself
        }
        // The planner takes up drafters once it knows them.
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
    fn log_probabilities_take_combined_targets() {
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
    fn drafters_of_weight_0_are_asked_for_or_planned() {
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
        assert_eq!(policy.next(&idle), Action { model: 0, proposals: 0 }, "nor is one that has no business");
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
