//! The expected gain of a strategy: Theorems 3.1 and 3.6 of the paper, and an exact count for CoS's decoder with the
//! cost of a pass by its width.
//!
//! Assume that a proposal of model k is accepted with probability α_k, independently of all others. After a rejection,
//! every model has seen all tokens but the last, so each rejection leads to the same state. Between rejections nothing
//! is random: there is one path, on which all proposals are accepted. A pass or a decision on it is reached with the
//! product of the α of the decisions before. Each decision commits a token, a rejection too. So seconds per token are
//! the sum over passes of that probability times the cost, divided by the sum of the probabilities over decisions.

use std::collections::VecDeque;

/// A strategy with combined targets. Models of weight 0 are not `needed`.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    pub needed: Vec<bool>,
    pub policy: Policy,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// One model proposes. The others verify in the order of the models.
    Speculative { proposer: usize, length: usize },
    /// The model that has seen the fewest tokens runs next. If there are several, the first in `order` does.
    Cos { lengths: Vec<usize>, order: Vec<usize> },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    Pass {
        model: usize,
        width: usize,
    },
    /// A token is committed: a proposal of this model is tested, or a token is drawn from the target.
    Decision(Option<usize>),
}

impl Setup {
    /// The path after a rejection if no other rejection follows.
    pub fn path(&self) -> impl Iterator<Item = Event> {
        Path {
            setup: self.clone(),
            seen: vec![0; self.needed.len()],
            tokens: 1,
            committed: 1,
            drafts: VecDeque::new(),
            turn: None,
            events: VecDeque::new(),
        }
    }

    /// The expectation per token, for the acceptance of each model's proposals, and the cost of a pass by model and
    /// width.
    pub fn expected(&self, acceptance: &[f64], cost: impl Fn(usize, usize) -> f64) -> Expected {
        let (mut reached, mut total) = (1.0, Expected::default());
        let mut tokens = 0.0;
        // If all proposals are accepted, the path is periodic, and this many events show its mean cost.
        for event in self.path().take(20_000) {
            match event {
                Event::Pass { model, width } => {
                    total.seconds += reached * cost(model, width);
                    total.passes += reached;
                    total.positions += reached * width as f64;
                }
                Event::Decision(proposer) => {
                    tokens += reached;
                    reached *= proposer.map_or(1.0, |model| acceptance[model]);
                }
            }
            if reached < 1e-12 {
                break;
            }
        }
        Expected { seconds: total.seconds / tokens, passes: total.passes / tokens, positions: total.positions / tokens }
    }
}

/// Expectations per token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Expected {
    pub seconds: f64,
    pub passes: f64,
    pub positions: f64,
}

struct Path {
    setup: Setup,
    /// For each model, the tokens after the last rejection that it has seen.
    seen: Vec<usize>,
    tokens: usize,
    committed: usize,
    drafts: VecDeque<usize>,
    /// A proposer in its turn, and the number of tokens that it still proposes.
    turn: Option<(usize, usize)>,
    events: VecDeque<Event>,
}

impl Iterator for Path {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.events.is_empty() {
            self.step();
        }
        self.events.pop_front()
    }
}

impl Path {
    /// One pass, its decisions, and the next proposal of its model.
    fn step(&mut self) {
        let (model, proposals) = self.turn.take().unwrap_or_else(|| self.choose());
        self.events.push_back(Event::Pass { model, width: self.tokens - self.seen[model] });
        self.seen[model] = self.tokens;
        while self.undecided().is_none() {
            let proposer = self.drafts.pop_front();
            self.tokens += usize::from(proposer.is_none());
            self.committed += 1;
            self.events.push_back(Event::Decision(proposer));
        }
        if proposals > 0 && self.seen[model] == self.tokens {
            self.tokens += 1;
            self.drafts.push_back(model);
            self.turn = Some((model, proposals - 1)).filter(|(_, proposals)| *proposals > 0);
        }
    }

    /// The first needed model that has not scored the front position.
    fn undecided(&self) -> Option<usize> {
        (0..self.seen.len()).find(|&model| self.setup.needed[model] && self.seen[model] < self.committed)
    }

    fn choose(&self) -> (usize, usize) {
        match &self.setup.policy {
            Policy::Speculative { proposer, length } if self.drafts.is_empty() => (*proposer, *length),
            Policy::Speculative { .. } => {
                (self.undecided().expect("a position that all have scored is decided at once"), 0)
            }
            Policy::Cos { lengths, order } => {
                let model = order.iter().copied().min_by_key(|&model| self.seen[model]).expect("models");
                (model, lengths[model])
            }
        }
    }
}

/// Theorem 3.1: the speed of `speculative` over `standard`, with two models. `c` is the proposer's cost over the
/// verifier's.
pub fn theorem_3_1(acceptance: f64, c: f64, length: usize) -> f64 {
    series(acceptance, length) * (1.0 + c) / (1.0 + c * length as f64)
}

/// Theorem 3.6: the speed of `cos` over `standard`, with two models.
pub fn theorem_3_6(acceptance: f64, c: f64, proposer: usize, verifier: usize) -> f64 {
    series(acceptance, proposer) * (1.0 + c) / (1.0 + c * proposer as f64 - acceptance.powi(verifier as i32) * c)
}

/// (1 − α^n) / (1 − α), also at α = 1.
fn series(acceptance: f64, terms: usize) -> f64 {
    (0..terms).map(|term| acceptance.powi(term as i32)).sum()
}
