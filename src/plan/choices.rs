//! The plans that `auto` may choose from.

use super::forecast::Task;
use crate::decode::policy::{Plan, Policy, Request, Targets};

/// What a session leaves to the planner.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// What is decoded.
    pub task: Task,
    /// The targets that a plan may have.
    pub targets: Vec<Targets>,
    /// γ of each model, if the caller pinned them.
    pub lengths: Option<Vec<usize>>,
    /// Whether each model may propose.
    pub may_propose: Vec<bool>,
}

impl Choices {
    /// What a request leaves open. `scores` says of each model whether it scores; a look-up does not.
    pub fn new(request: &Request, scores: &[bool]) -> Self {
        let combination = request.combination;
        let lengths: Option<Vec<usize>> =
            request.lengths.map(|lengths| lengths.iter().map(|&length| length as usize).collect());
        let may_propose = |model: usize| {
            let only_itself = combination.needed().eq([model]);
            !only_itself && lengths.as_ref().is_none_or(|lengths| lengths[model] > 0)
        };
        Choices {
            task: Task {
                weights: combination.weights().to_vec(),
                single: combination.single(),
                scores: scores.to_vec(),
            },
            targets: [Targets::Combined, Targets::Routed]
                .into_iter()
                .filter(|&targets| request.allows(targets))
                .collect(),
            may_propose: (0..scores.len()).map(may_propose).collect(),
            lengths,
        }
    }

    /// Whether the planner may choose this plan.
    pub fn allows(&self, plan: &Plan) -> bool {
        let may = |model: usize, length: usize| {
            length == 0 || self.may_propose[model] && self.lengths.as_ref().is_none_or(|pinned| pinned[model] == length)
        };
        self.targets.contains(&plan.targets)
            && (plan.stop_below == 0 || self.lengths.is_none())
            && match &plan.policy {
                Policy::Standard => true,
                Policy::Speculative { proposer, length } => may(*proposer, *length),
                Policy::Cos { lengths, order } => {
                    let takes_part = |model: usize| lengths[model] > 0 || self.task.weights[model] != 0.0;
                    (0..lengths.len())
                        .all(|model| may(model, lengths[model]) && order.contains(&model) == takes_part(model))
                }
            }
    }
}
