//! Settles how an export is run: the fastest way that gives every position the logits that it has by itself.

use serde_json::json;

use super::check::{Deviation, Excuses, Trial};
use super::model::OnnxModel;
use crate::error::{Error, Result};
use crate::export::recognise::merged_beside;
use crate::export::shapes;
use crate::export::{CacheKind, Rollback, Scoring};

impl OnnxModel {
    /// Try out the ways of scoring and of taking tokens back, the fastest first, or only the one that was asked for.
    pub(super) fn settle_scoring(&mut self, asked: Option<Scoring>) -> Result<()> {
        let (known, rollback) = (self.export.scoring, self.export.rollback);
        let rollbacks: &[Rollback] =
            if rollback == Rollback::Mask { &[Rollback::Mask, Rollback::Compact] } else { &[rollback] };
        self.export_mut().scoring = Scoring::OneByOne;
        let trial = Trial::new(self).map_err(|interrupt| self.failed_trial(interrupt))?;
        if trial.is_void() {
            return Err(self.cannot("its logits are no numbers (NaN or infinite); export it in float32 or bfloat16"));
        }
        if known != Scoring::OneByOne {
            self.check_cache(&trial)?;
        }
        let mut found = String::new();
        let all = [Scoring::Parallel, Scoring::FirstPass, Scoring::OneByOne];
        for scoring in all.into_iter().filter(|&scoring| asked.map_or(scoring >= known, |asked| scoring == asked)) {
            match self.best_rollback(&trial, scoring, rollbacks) {
                Ok((rollback, deviation)) => {
                    let export = self.export_mut();
                    (export.scoring, export.rollback) = (scoring, rollback);
                    self.deviation = deviation.logits;
                    self.warn_of(scoring, (scoring != known && asked.is_none()).then_some(&found));
                    return Ok(());
                }
                Err(what) if shapes::are_blamed(&what) => return Err(self.cannot(what)),
                Err(what) => found = what,
            }
        }
        Err(self.cannot(format_args!(
            "tokens cannot be taken back and others scored ({found}), so nothing could be verified with this model; export \
             it in another way"
        )))
    }

    /// The way of taking tokens back that changes logits least. One that rounding explains is taken without trying others.
    fn best_rollback(
        &mut self,
        trial: &Trial,
        scoring: Scoring,
        rollbacks: &[Rollback],
    ) -> Result<(Rollback, Deviation), String> {
        let (mut best, mut found): (Option<(Rollback, Deviation)>, _) = (None, String::new());
        for &rollback in rollbacks {
            let export = self.export_mut();
            (export.scoring, export.rollback) = (scoring, rollback);
            let excuses = Excuses {
                coarse: export.is_coarse,
                bfloat16: export.is_bfloat16(),
                rounded_activations: export.rounds_activations && scoring == Scoring::Parallel,
            };
            let verdict = trial.verdict(self, excuses);
            self.trials.push(match &verdict {
                Ok(Deviation { logits, spreads }) => {
                    json!({ "scoring": scoring.name(), "rollback": rollback.name(), "deviation": logits, "spreads": spreads })
                }
                Err(what) => json!({ "scoring": scoring.name(), "rollback": rollback.name(), "refused": what }),
            });
            match verdict {
                Ok(deviation) if deviation.is_rounding(excuses) => return Ok((rollback, deviation)),
                Ok(deviation) if best.is_none_or(|(_, least)| deviation.spreads < least.spreads / 2.0) => {
                    best = Some((rollback, deviation));
                }
                Ok(_) => {}
                Err(what) => found = what,
            }
        }
        best.ok_or(found)
    }

    /// Refuse an export whose cache or attention is wrong: where a text in one pass is not the same token by token.
    fn check_cache(&mut self, trial: &Trial) -> Result<()> {
        self.export_mut().scoring = Scoring::FirstPass;
        let mut broken = trial.tells_a_broken_cache(self);
        if broken.is_some() && self.captures() {
            self.spares.clear();
            let why = "its attention counts from the end of the mask, which a graph keeps as long as the cache";
            self.captures.refuse(why.into());
            broken = trial.tells_a_broken_cache(self);
        }
        let Some(broken) = broken else { return Ok(()) };
        if self.export.cache_kind == CacheKind::None {
            return Err(self.cannot(format_args!(
                "not a language model that predicts the next token: logits of a position differ by up to {broken} with \
                 the tokens behind it, as those of models for masked words do (BERT, RoBERTa); take a model for text \
                 generation (ForCausalLM)"
            )));
        }
        let mend = match merged_beside(&self.export.file) {
            Some(file) => format!("take {file}, which is beside it"),
            None => "export the model in another way".into(),
        };
        Err(self.cannot(format_args!(
            "a text in one pass and the same token by token give logits that differ by up to {broken}, so its cache or \
             its attention is broken; {mend}"
        )))
    }

    fn warn_of(&mut self, scoring: Scoring, fallen_back: Option<&String>) {
        let deviation = Deviation { logits: self.deviation, ..Deviation::default() };
        let export = self.export_mut();
        if export.rounds_activations && scoring == Scoring::Parallel {
            export.warnings.push(format!(
                "its 4-bit products round activations (accuracy_level 4), some kernels otherwise for one position than for \
                 several, so that logits depend on the strategy: by {deviation} over the few tokens of a trial, by some \
                 tenths elsewhere; export with accuracy_level 1, or set \"scoring\": \"one_by_one\""
            ));
        }
        if let Some(found) = fallen_back {
            export.warnings.push(format!(
                "scoring several positions in one pass on top of a cache does not work ({found}), so they are scored one by \
                 one, and speculation saves nothing; export the model in another way"
            ));
        }
    }

    fn cannot(&self, what: impl std::fmt::Display) -> Error {
        Error::Unsupported(format!("{}: {what}", self.export.file.display()))
    }
}
