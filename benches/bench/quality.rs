//! Compares the text of a combination with that of each model alone: the likelihood of text that people wrote, and the
//! repetitions in greedy text. Neither depends on time.

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

/// The length in tokens of the stretches that count as repetitions.
const REPEATED: usize = 4;

/// The quality over some prompts.
#[derive(Debug)]
pub struct Quality {
    /// For each prompt, the mean log-likelihood of a token.
    pub likelihoods: Vec<f64>,
    /// The share of stretches of greedy text that occur earlier in it.
    pub repeated: f64,
}

/// A table of the quality of an engine, and of each of its models alone.
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

/// The quality of a combination of an engine's models.
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

/// The number of stretches of a text that occur earlier in it.
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
    // All rows of a chunk must come from one pass.
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
