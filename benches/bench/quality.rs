//! What a combination does to the text, beside each of its models alone: how likely it makes text that people wrote, and how
//! much its greedy text repeats itself. This does not depend on time.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;

use cos::config::Combine;
use cos::decode::combine::Combination;
use cos::engine::Engine;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::model::Model;
use cos::rows::Row;

use super::measure::{self, Result};

/// So many tokens in a row count as repeated if they stood in the text before.
const REPEATED: usize = 4;

/// Of some prompts.
#[derive(Debug)]
pub struct Quality {
    /// Mean log-likelihood of a token, of each prompt.
    pub likelihoods: Vec<f64>,
    /// The share of what greedy decoding adds that stood in it before, in stretches of [`REPEATED`] tokens.
    pub repeated: f64,
}

/// What an engine does to the text, beside each of its models alone.
pub fn table(engine: &Engine, prompts: &[Vec<i32>], tokens: usize) -> Result<String> {
    let mut table = format!(
        "| | log-likelihood of a token of the prompts | repeated in greedy text of {tokens} tokens |\n\
         | --- | ---: | ---: |\n"
    );
    let mut row = |name: &str, combine| -> Result<Vec<f64>> {
        let Quality { likelihoods, repeated } = quality(engine, combine, prompts, tokens)?;
        let tokens: usize = prompts.iter().map(|prompt| prompt.len() - 1).sum();
        let sum = likelihoods.iter().zip(prompts).map(|(mean, prompt)| mean * (prompt.len() - 1) as f64).sum::<f64>();
        let mean = if sum.is_finite() { format!("{:.2}", sum / tokens as f64) } else { "some are masked".into() };
        writeln!(table, "| {name} | {mean} | {:.1} % |", 100.0 * repeated)?;
        Ok(likelihoods)
    };
    let mut best = vec![f64::NEG_INFINITY; prompts.len()];
    for (index, model) in engine.participants().iter().enumerate().filter(|(_, each)| each.model().is_some()) {
        let alone = row(&format!("{} alone", model.name()), Combine::Target { model: index })?;
        best.iter_mut().zip(alone).for_each(|(best, alone)| *best = best.max(alone));
    }
    let together = row("**together**", engine.combine().clone())?;
    let better = together.iter().zip(best).filter(|(together, best)| *together > best).count();
    writeln!(table, "\nTogether, {better} of {} prompts are likelier than under every model alone.", prompts.len())?;
    Ok(table)
}

/// What a combination of an engine's models does.
pub fn quality(engine: &Engine, combine: Combine, prompts: &[Vec<i32>], tokens: usize) -> Result<Quality> {
    let models = engine.participants().to_vec();
    let engine = Arc::new(Engine::new(models, combine, Vec::new(), None)?);
    let (mut repeated, mut stretches) = (0, 0);
    let mut likelihoods = Vec::new();
    for prompt in prompts {
        let likelihood = log_likelihood(engine.participants(), &engine.combination(None)?, prompt, 1)?;
        likelihoods.push(likelihood / (prompt.len() - 1) as f64);
        let options = Options { max_tokens: tokens, stop_tokens: Some(Vec::new()), ..Options::default() };
        let mut session = Session::new(&engine, &options)?;
        session.prompt(prompt)?;
        while session.step()?.1 == State::Open {}
        let text = &session.decoder().committed()[prompt.len()..];
        repeated += repetitions(text);
        stretches += text.windows(REPEATED).len();
    }
    Ok(Quality { likelihoods, repeated: repeated as f64 / stretches as f64 })
}

/// How many stretches of a text stood in it before.
pub fn repetitions(text: &[i32]) -> usize {
    let mut seen = HashSet::new();
    text.windows(REPEATED).filter(|stretch| !seen.insert(*stretch)).count()
}

/// The log-likelihood of the tokens of a text from an index on, under a combination at temperature 1.
pub fn log_likelihood(
    participants: &[Participant],
    combination: &Combination,
    text: &[i32],
    first: usize,
) -> Result<f64> {
    // Look-ups come behind the models, and have no weight.
    let models: Vec<&dyn Model> = participants.iter().map_while(Participant::model).collect();
    let mut sequences = Vec::new();
    for (index, model) in models.iter().enumerate() {
        let mut sequence = model.start(&Arc::default())?;
        if combination.needs(index) {
            measure::extend(*model, sequence.as_mut(), &text[..first - 1])?;
        }
        sequences.push(sequence);
    }
    // So that all rows of a chunk are there.
    let chunk = combination.needed().map(|model| models[model].max_pass()).fold(64, usize::min);
    let mut scratch = vec![0.0; models[0].vocab_size()];
    let mut total = 0.0;
    for (tokens, next) in text[first - 1..text.len() - 1].chunks(chunk).zip(text[first..].chunks(chunk)) {
        for model in combination.needed() {
            measure::extend(models[model], sequences[model].as_mut(), tokens)?;
        }
        for (offset, &token) in next.iter().enumerate() {
            let row = |model: usize| sequences[model].row(sequences[model].len() - tokens.len() + 1 + offset);
            if let Combination::Logits { .. } = combination {
                combination.scores(row, &mut scratch, |_| ())?;
            }
            total += f64::from(combination.log_probability(token as usize, row, Row::Host(&scratch))?);
        }
    }
    Ok(total)
}
