//! Runs the passes that a decoder needs, one after the other or at the same time.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::decode::chance::Chance;
use crate::decode::decoder::{Decoder, Finish, Need, Proposer, Settings, Step, Workspace};
use crate::decode::policy::Plan;
use crate::engine::participant::Participant;
use crate::error::{Error, Result};
use crate::model::{Cancel, Interrupt, Memory, Model};

/// Most passes of one step that run at the same time; more run one after the other.
const MOST_AT_ONCE: usize = u64::BITS as usize;

/// A decoder with the models that it decodes by, driven by one thread.
pub struct Driver<C> {
    decoder: Decoder<C>,
    participants: Vec<Participant>,
    workspace: Workspace,
    overlaps: bool,
}

impl<C: Chance> Driver<C> {
    /// An empty sequence. Its passes end early once `cancel` is requested. Passes that do not depend on each other run
    /// at the same time if models can, until [`Driver::set_overlaps`].
    pub fn new(
        participants: &[Participant],
        cancel: &Arc<Cancel>,
        settings: Settings,
        plan: Plan,
        chance: C,
    ) -> Result<Self> {
        let proposers = participants.iter().map(|each| each.start(cancel)).collect::<Result<Vec<Proposer>>>()?;
        let decoder = Decoder::new(proposers, settings, plan, chance);
        let workspace = Workspace::new(decoder.vocab_size());
        Ok(Driver { decoder, participants: participants.to_vec(), workspace, overlaps: true })
    }

    /// Let passes that do not depend on each other run at the same time, or not.
    pub fn set_overlaps(&mut self, overlaps: bool) {
        self.overlaps = overlaps;
    }

    /// Decode until at least one token is committed. Returns the new tokens, none if the sequence had ended.
    ///
    /// On an error the sequence is as it was before the round.
    pub fn round(&mut self) -> Result<(&[i32], Option<Finish>), Interrupt> {
        self.run()?;
        Ok(self.decoder.round())
    }

    /// Let a model that the plan does not run catch up; see [`Decoder::probe`].
    pub fn probe(&mut self, model: usize) -> Result<(), Interrupt> {
        if self.decoder.probe(model) {
            self.run()?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), Interrupt> {
        while self.decoder.step(&mut self.workspace)? == Step::Run {
            if let Err(interrupt) = self.run_needs() {
                self.decoder.failed(&mut self.workspace);
                return Err(interrupt);
            }
        }
        Ok(())
    }

    /// Run what the decoder needs: launch all passes that can be left running, and wait for those last.
    fn run_needs(&mut self) -> Result<(), Interrupt> {
        let count = self.decoder.needs().len();
        let mut launched = 0u64;
        if self.overlaps && (2..=MOST_AT_ONCE).contains(&count) {
            for index in 0..count {
                let need = self.decoder.needs()[index];
                let is_running = model(&self.participants, need)?.launch(&mut self.decoder.pass(need));
                launched |= u64::from(is_running) << index;
            }
        }
        for is_running in [false, true] {
            for index in 0..count {
                if (index < MOST_AT_ONCE && launched >> index & 1 == 1) != is_running {
                    continue;
                }
                let need = self.decoder.needs()[index];
                let report = model(&self.participants, need)?.forward(&mut [self.decoder.pass(need)])?;
                self.decoder.ran(need, report, launched != 0);
            }
        }
        Ok(())
    }

    /// Rows of logits on a GPU that were copied to the host, sums of rows included.
    pub fn all_rows_copied(&self) -> u64 {
        self.decoder.rows_copied().sum::<u64>() + self.workspace.rows_copied()
    }

    /// The memory of the sequence, and of the buffers that decoding it takes.
    pub fn memory(&self) -> Memory {
        [self.decoder.memory(), Memory::of(self.workspace.bytes())].into_iter().sum()
    }
}

fn model(participants: &[Participant], need: Need) -> Result<&dyn Model> {
    participants[need.model].model().ok_or_else(|| Error::Internal("a look-up was asked for a pass".into()))
}

impl<C> Deref for Driver<C> {
    type Target = Decoder<C>;

    fn deref(&self) -> &Decoder<C> {
        &self.decoder
    }
}

impl<C> DerefMut for Driver<C> {
    fn deref_mut(&mut self) -> &mut Decoder<C> {
        &mut self.decoder
    }
}
