//! Who takes part in decoding: models, and look-ups that only propose.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::decode::decoder::{ModelLimits, Proposer};
use crate::error::Result;
use crate::model::{Cancel, Model, Sequence};

/// A model, or a look-up in the sequence itself.
#[derive(Clone)]
pub enum Participant {
    /// A model, which scores and may propose.
    Model(Arc<dyn Model>),
    /// A prompt look-up of this name. It proposes and never scores, costs nothing, and takes any vocabulary.
    LookUp(String),
}

impl Participant {
    /// What messages call it.
    pub fn name(&self) -> &str {
        match self {
            Participant::Model(model) => model.name(),
            Participant::LookUp(name) => name,
        }
    }

    /// The model, unless it is a look-up.
    pub fn model(&self) -> Option<&dyn Model> {
        match self {
            Participant::Model(model) => Some(model.as_ref()),
            Participant::LookUp(_) => None,
        }
    }

    /// Relative cost of a pass.
    pub fn cost(&self) -> u64 {
        self.model().map_or(0, Model::cost)
    }

    /// What passes took when the model was loaded; see [`Model::pass_times`].
    pub fn pass_times(&self) -> &[(usize, Duration)] {
        self.model().map_or(&[], Model::pass_times)
    }

    /// What is known of it, for people who look into an engine.
    pub fn describe(&self) -> Value {
        match self {
            Participant::Model(model) => model.describe(),
            Participant::LookUp(name) => json!({ "name": name, "kind": "ngram" }),
        }
    }

    /// Its part in an empty sequence, whose passes end early once `cancel` is requested.
    pub fn start(&self, cancel: &Arc<Cancel>) -> Result<Proposer> {
        self.propose(|model| model.start(cancel))
    }

    /// The same in a sequence that goes on from where another one stands, of which this is the model's.
    pub fn fork(&self, sequence: Option<&dyn Sequence>, cancel: &Arc<Cancel>) -> Result<Proposer> {
        self.propose(|model| match sequence {
            Some(sequence) => model.fork(sequence, cancel),
            None => model.start(cancel),
        })
    }

    fn propose(&self, start: impl FnOnce(&dyn Model) -> Result<Box<dyn Sequence>>) -> Result<Proposer> {
        match self {
            Participant::Model(model) => {
                let limits = ModelLimits {
                    name: model.name().into(),
                    vocab_size: model.vocab_size(),
                    context_length: model.context_length(),
                    max_pass: model.max_pass(),
                };
                Ok(Proposer::model(limits, start(model.as_ref())?))
            }
            Participant::LookUp(_) => Ok(Proposer::LookUp),
        }
    }
}

impl From<Arc<dyn Model>> for Participant {
    fn from(model: Arc<dyn Model>) -> Self {
        Participant::Model(model)
    }
}

impl<M: Model + 'static> From<Arc<M>> for Participant {
    fn from(model: Arc<M>) -> Self {
        Participant::Model(model)
    }
}
