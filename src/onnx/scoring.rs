//! Chooses how a model scores several positions: the fastest way that gives every position the logits it has alone.

use serde_json::json;

use super::check::{Deviation, Excuses, Trial};
use super::model::OnnxModel;
use crate::error::{Error, Result};
use crate::export::recognise::merged_decoder;
use crate::export::shapes;
use crate::export::{CacheKind, Rollback, Scoring};

/// Try the ways of scoring and of rolling back, the fastest first, and set the first that passes.
///
/// If `asked` names a way of scoring, only that one is tried.
pub fn choose(model: &mut OnnxModel, asked: Option<Scoring>) -> Result<()> {
    let (declared, rollback) = (model.export.scoring, model.export.rollback);
    let rollbacks: &[Rollback] =
        if rollback == Rollback::Mask { &[Rollback::Mask, Rollback::Compact] } else { &[rollback] };
    model.export_mut().scoring = Scoring::OneByOne;
    let trial = Trial::new(model).map_err(|interrupt| model.failed_trial(interrupt))?;
    if trial.is_void() {
        return Err(refuse(model, "its logits are no numbers (NaN or infinite); export it in float32 or bfloat16"));
    }
    if declared != Scoring::OneByOne {
        check_cache(model, &trial)?;
    }
    let mut reason = String::new();
    let all = [Scoring::Parallel, Scoring::FirstPass, Scoring::OneByOne];
    for scoring in all.into_iter().filter(|&scoring| asked.map_or(scoring >= declared, |asked| scoring == asked)) {
        match best_rollback(model, &trial, scoring, rollbacks) {
            Ok((rollback, deviation)) => {
                let export = model.export_mut();
                (export.scoring, export.rollback) = (scoring, rollback);
                model.deviation = deviation.logits;
                warn(model, scoring, (scoring != declared && asked.is_none()).then_some(&reason));
                return Ok(());
            }
            Err(what) if shapes::are_blamed(&what) => return Err(refuse(model, what)),
            Err(what) => reason = what,
        }
    }
    Err(refuse(
        model,
        format_args!(
            "its tokens cannot be taken back and others scored ({reason}), so drafts cannot be verified with it; \
             export it in another way"
        ),
    ))
}

/// The way of rolling back that changes logits least. The first whose deviation is rounding is taken at once.
///
/// The error is the reason why none works.
fn best_rollback(
    model: &mut OnnxModel,
    trial: &Trial,
    scoring: Scoring,
    rollbacks: &[Rollback],
) -> Result<(Rollback, Deviation), String> {
    let (mut best, mut reason): (Option<(Rollback, Deviation)>, _) = (None, String::new());
    for &rollback in rollbacks {
        let export = model.export_mut();
        (export.scoring, export.rollback) = (scoring, rollback);
        let excuses = Excuses {
            coarse: export.is_coarse,
            bfloat16: export.is_bfloat16(),
            few_levels: (export.rounds_activations && scoring == Scoring::Parallel) || export.has_rounded_cache(),
        };
        let verdict = trial.verdict(model, excuses);
        let (scoring, name) = (scoring.name(), rollback.name());
        model.trials.push(match &verdict {
            Ok(Deviation { logits, spreads }) => {
                json!({ "scoring": scoring, "rollback": name, "deviation": logits, "spreads": spreads })
            }
            Err(what) => json!({ "scoring": scoring, "rollback": name, "refused": what }),
        });
        match verdict {
            Ok(deviation) if deviation.is_rounding(excuses) => return Ok((rollback, deviation)),
            Ok(deviation) if best.is_none_or(|(_, least)| deviation.spreads < least.spreads / 2.0) => {
                best = Some((rollback, deviation));
            }
            Ok(_) => {}
            Err(what) => reason = what,
        }
    }
    best.ok_or(reason)
}

/// Refuse an export that scores a text in one pass otherwise than token by token: its cache or attention is broken.
fn check_cache(model: &mut OnnxModel, trial: &Trial) -> Result<()> {
    model.export_mut().scoring = Scoring::FirstPass;
    let mut difference = trial.tells_a_broken_cache(model);
    if difference.is_some() && model.captures() {
        model.spares.clear();
        let why = "its attention counts positions from the end of the mask, which has a fixed length in a graph";
        model.captures.refuse(why.into());
        difference = trial.tells_a_broken_cache(model);
    }
    let Some(difference) = difference else { return Ok(()) };
    if model.export.cache_kind == CacheKind::None {
        return Err(refuse(
            model,
            format_args!(
                "not a language model that predicts the next token: logits of a position change by up to {difference} \
                 with the tokens behind it, as those of models for masked words do (BERT, RoBERTa); take a model for \
                 text generation (ForCausalLM)"
            ),
        ));
    }
    let mend = match merged_decoder(&model.export.file) {
        Some(file) => format!("take {file}, which is beside it"),
        None => "export the model in another way".into(),
    };
    Err(refuse(
        model,
        format_args!(
            "a text in one pass and the same text token by token give logits that differ by up to {difference}, so its \
             cache or its attention is broken; {mend}"
        ),
    ))
}

/// Add warnings about what was chosen. `fallback` is the reason why a faster way was not.
fn warn(model: &mut OnnxModel, scoring: Scoring, fallback: Option<&String>) {
    let deviation = Deviation { logits: model.deviation, ..Deviation::default() };
    let export = model.export_mut();
    if export.rounds_activations && scoring == Scoring::Parallel {
        export.warnings.push(format!(
            "its 4-bit matrix products round activations (accuracy_level 4), and some kernels round one position \
             otherwise than several, so logits depend on the strategy: by {deviation} over the few tokens of a trial, \
             by some tenths elsewhere; export with accuracy_level 1, or set \"scoring\": \"one_by_one\""
        ));
    }
    if let Some(reason) = fallback {
        export.warnings.push(format!(
            "scoring several positions in one pass on top of a cache does not work ({reason}), so positions are scored \
             one by one and speculation saves nothing; export the model in another way"
        ));
    }
}

fn refuse(model: &OnnxModel, what: impl std::fmt::Display) -> Error {
    Error::Unsupported(format!("{}: {what}", model.export.file.display()))
}
