//! Combination functions: from the rows of several models to one target.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::rows::{Best, Candidates, Distribution, Edits, Row, kernels, maximum};

/// Largest distance of the sum of a mixture's weights from 1. Weights within it are rescaled, others are refused.
pub const WEIGHT_TOLERANCE: f64 = 1e-3;

/// Scores of a block of a weighted sum. A block fits into the first-level cache while all models are added to it. A
/// block without any plausible token is skipped.
const SUM_BLOCK: usize = 512;

/// How the models' rows become one target `r`.
///
/// There are two families: mixtures of distributions, and weighted sums of logits. The second one covers contrastive
/// decoding, products of experts, proxy tuning and a single target model. A caller's function can replace either.
#[derive(Debug, Clone, PartialEq)]
pub enum Combination {
    /// `r = Σ λ_k · process(l_k)` (Eq. 4). Greedy takes the argmax of `Σ λ_k · softmax(l_k)`.
    Mixture {
        /// `λ_k`: not negative, sum 1.
        weights: Vec<f32>,
    },
    /// `r = process(Σ w_k · l_k)` (Eq. 5 with weights 1 and −μ).
    Logits {
        /// `w_k`: any finite numbers, at least one not 0.
        weights: Vec<f32>,
        /// Tokens with `p < α · max p` get probability 0, where `p` is the plain softmax of one model (Li et al. 2023).
        plausibility: Option<Plausibility>,
    },
    /// `r = process(f(l_0, l_1, …))` with a caller's function.
    Custom {
        /// A weight other than 0 says that the function needs the model's row. The function sees no other rows, and
        /// no weights.
        weights: Vec<f32>,
        /// `f`.
        function: Function,
    },
}

/// What a [`Function`] calls: it turns one row of logits of each model into one row of scores.
///
/// The iterator has one item for each model, `None` for a model that is not needed. The function must write every
/// score. Logits and scores hold no NaN and no plus infinity; minus infinity makes a token impossible. The scores must
/// depend on the rows alone: the function may be called several times for a position, and for drafts that are dropped.
pub type CombineRows = dyn Fn(&mut dyn Iterator<Item = Option<&[f32]>>, &mut [f32]) -> Result<()> + Send + Sync;

/// A caller's function from rows of logits to one row of scores.
#[derive(Clone)]
pub struct Function(Arc<CombineRows>);

impl Function {
    /// Wrap a function; see [`CombineRows`] for its contract.
    pub fn new(
        function: impl Fn(&mut dyn Iterator<Item = Option<&[f32]>>, &mut [f32]) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Function(Arc::new(function))
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function")
    }
}

/// The plausibility mask of contrastive decoding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plausibility {
    /// The model whose probabilities decide: the expert.
    pub model: usize,
    /// α, above 0 and at most 1.
    pub alpha: f32,
}

impl Combination {
    /// A mixture. [`Error::InvalidArgument`] unless the weights are a probability distribution.
    pub fn mixture(weights: &[f32]) -> Result<Self> {
        let (sum, mut weights) = (check_mixture(weights)?, weights.to_vec());
        scale(&mut weights, sum);
        Ok(Combination::Mixture { weights })
    }

    /// A weighted sum of logits. [`Error::InvalidArgument`] unless all weights are finite and one is not 0.
    pub fn logits(weights: &[f32]) -> Result<Self> {
        check_logits(weights)?;
        Ok(Combination::Logits { weights: weights.to_vec(), plausibility: None })
    }

    /// Contrastive decoding (Li et al. 2023): logits of model 0, the expert, minus `mu` times those of model 1, the
    /// amateur. `alpha` is the plausibility threshold, 0 for none. Further models only draft.
    pub fn contrastive(models: usize, mu: f32, alpha: f32) -> Result<Self> {
        if models < 2 {
            return Err(Error::InvalidArgument(format!(
                "contrastive decoding takes an expert and an amateur, but there is {models} model"
            )));
        }
        if !(mu.is_finite() && mu >= 0.0) {
            return Err(Error::InvalidArgument(format!("mu is {mu}; it must be 0 or positive")));
        }
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::InvalidArgument(format!("plausibility is {alpha}; it must be between 0 (off) and 1")));
        }
        let mut weights = vec![0.0; models];
        (weights[0], weights[1]) = (1.0, -mu);
        let plausibility = (alpha > 0.0).then_some(Plausibility { model: 0, alpha });
        Ok(Combination::Logits { weights, plausibility })
    }

    /// The distribution of one model, as in plain speculative decoding. All other models only draft.
    pub fn target(models: usize, model: usize) -> Result<Self> {
        if model >= models {
            return Err(Error::InvalidArgument(format!(
                "target model {model} does not exist; there are {models} models"
            )));
        }
        let mut weights = vec![0.0; models];
        weights[model] = 1.0;
        Ok(Combination::Logits { weights, plausibility: None })
    }

    /// The same models, combined by a caller's function.
    pub fn with_function(self, function: Function) -> Self {
        Combination::Custom { weights: self.weights().to_vec(), function }
    }

    /// The weights, one for each model.
    pub fn weights(&self) -> &[f32] {
        match self {
            Combination::Mixture { weights }
            | Combination::Logits { weights, .. }
            | Combination::Custom { weights, .. } => weights,
        }
    }

    /// Change the weights. [`Error::InvalidArgument`] unless they are such as this combination takes; then they are of
    /// no use any more, and must be set again.
    pub fn set_weights(&mut self, set: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
        let is_mixture = matches!(self, Combination::Mixture { .. });
        let (Combination::Mixture { weights }
        | Combination::Logits { weights, .. }
        | Combination::Custom { weights, .. }) = self;
        set(weights)?;
        if is_mixture { check_mixture(weights).map(|sum| scale(weights, sum)) } else { check_logits(weights) }
    }

    /// Whether the combined target depends on a model. A model of weight 0 may only draft.
    pub fn needs(&self, model: usize) -> bool {
        self.weights()[model] != 0.0
    }

    /// The models that the combined target depends on.
    pub fn needed(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        (0..self.weights().len()).filter(|&model| self.needs(model))
    }

    /// The models that the combined target depends on, each with its weight.
    pub fn parts(&self) -> impl Iterator<Item = (usize, f32)> + Clone + '_ {
        self.needed().map(|model| (model, self.weights()[model]))
    }

    /// The model whose own distribution is the target, if there is one.
    pub fn single(&self) -> Option<usize> {
        if let Combination::Logits { plausibility: Some(_), .. } | Combination::Custom { .. } = self {
            return None;
        }
        let mut needed = self.needed();
        needed.next().filter(|&model| needed.next().is_none() && self.weights()[model] == 1.0)
    }

    /// Whether rows are edited, and not what they are combined to. Those of proposers are edited in any case.
    pub fn edits_rows(&self) -> bool {
        matches!(self, Combination::Mixture { .. }) || self.single().is_some()
    }

    /// Write the scores by which greedy decoding ranks the tokens. `row` gives the logits of a model.
    ///
    /// - For a mixture these are probabilities, `Σ λ_k · softmax(l_k)`.
    /// - For a sum of logits they are `Σ w_k · l_k`, with minus infinity for implausible tokens. A token to which a
    ///   needed model gives minus infinity is impossible, whatever the sign of that model's weight.
    /// - Otherwise they are the scores of the caller's function.
    ///
    /// `made` is called with each part of `out` that may hold a possible token, right after it was written.
    /// [`Error::Numeric`] if a row of a needed model, or the sum, has no maximum: a bad row must not hide behind the
    /// plausibility mask, or behind a weight that turns plus infinity into impossibility.
    pub fn scores<'a>(
        &self,
        row: impl Fn(usize) -> Row<'a>,
        out: &mut [f32],
        mut made: impl FnMut(&[f32]),
    ) -> Result<()> {
        match self {
            Combination::Mixture { .. } => {
                out.fill(0.0);
                for (model, weight) in self.parts() {
                    let logits = row(model).scores()?;
                    Distribution::softmax(logits)?.add(logits, weight, out);
                }
                made(out);
            }
            Combination::Logits { plausibility: None, .. } => self.sum_logits(None, row, out, made)?,
            Combination::Logits { plausibility: Some(judge), .. } => {
                self.sum_logits(Some((row(judge.model).scores()?, judge)), row, out, made)?;
            }
            Combination::Custom { weights, function } => {
                for model in self.needed() {
                    maximum(row(model).scores()?)?;
                }
                out.fill(f32::NAN); // so that a score left out is an error
                let scores = |model| row(model).scores().unwrap_or_default(); // no error here, after those above
                let mut rows = (0..weights.len()).map(|model| self.needs(model).then(|| scores(model)));
                function.0(&mut rows, out)?;
                made(out);
            }
        }
        Ok(())
    }

    /// [`Combination::scores`] with these edits. `scratch` is as long as a row.
    ///
    /// A token must be plausible and possible. If no token is both, plausibility is judged among the possible tokens:
    /// else a model that would say something else would end every text with a grammar.
    pub fn edited_scores<'a>(
        &self,
        row: impl Fn(usize) -> Row<'a> + Copy,
        edits: &Edits,
        out: &mut [f32],
        (scratch, candidates): (&mut [f32], &mut Candidates),
    ) -> Result<()> {
        self.scores(row, out, |_| ())?;
        edits.apply(out, candidates);
        if let Combination::Logits { plausibility: Some(judge), .. } = self
            && !kernels::any_reaches(out, f32::MIN)
        {
            scratch.copy_from_slice(row(judge.model).scores()?);
            edits.forbid(scratch);
            self.sum_logits(Some((scratch, judge)), row, out, |_| ())?;
            edits.apply(out, candidates);
        }
        Ok(())
    }

    /// [`Combination::scores`] of a weighted sum of logits, with the row by which plausibility is judged.
    fn sum_logits<'a>(
        &self,
        judge: Option<(&[f32], &Plausibility)>,
        row: impl Fn(usize) -> Row<'a>,
        out: &mut [f32],
        mut made: impl FnMut(&[f32]),
    ) -> Result<()> {
        let judged = match judge {
            None => None,
            Some((judge, Plausibility { model, alpha })) => {
                let mut rest = self.needed().filter(|other| other != model);
                rest.try_for_each(|model| maximum(row(model).scores()?).map(drop))?;
                Some((judge, maximum(judge)? + alpha.ln()))
            }
        };
        // Most sums are of two rows, so these are looked up once and not for each block.
        let scores = |(model, weight): (usize, f32)| Ok((row(model).scores()?, weight));
        let mut parts = self.parts();
        let first = scores(parts.next().expect("a weight that is not 0"))?;
        let second = parts.next().map_or(Ok((first.0, 0.0)), scores)?;
        // Block by block, so that a block stays in the cache while all models are added to it.
        let (mut good, mut any) = (true, false);
        for start in (0..out.len()).step_by(SUM_BLOCK) {
            let end = out.len().min(start + SUM_BLOCK);
            let out = &mut out[start..end];
            let judged = judged.map(|(judge, floor)| (&judge[start..end], floor));
            if judged.is_some_and(|(judge, floor)| !kernels::any_reaches(judge, floor)) {
                out.fill(f32::NEG_INFINITY); // no token is plausible
                continue;
            }
            let part = |(logits, weight): (&'a [f32], f32)| (&logits[start..end], weight);
            good &= kernels::sum_of_two(part(first), part(second), out);
            for rest in parts.clone() {
                let (logits, weight) = part(scores(rest)?);
                good &= kernels::add_scaled(logits, weight, out);
            }
            if let Some((judge, floor)) = judged {
                kernels::mask(judge, floor, out);
            }
            any |= kernels::any_reaches(out, f32::MIN);
            made(out);
        }
        // The sum of a row of nothing but minus infinity has no possible token either.
        if !(good && any) {
            return Err(Error::Numeric("a row of logits, or the sum of all rows, has no maximum".into()));
        }
        Ok(())
    }

    /// `Some` if the target is made from a sum of several models' logits. It holds the plausibility mask, if there is
    /// one, as the model that judges and `ln α`: how far below that model's best score a plausible token may be.
    pub fn sums(&self) -> Option<Option<(usize, f32)>> {
        match self {
            Combination::Logits { plausibility, .. } if self.single().is_none() => {
                Some(plausibility.as_ref().map(|judge| (judge.model, judge.alpha.ln())))
            }
            _ => None,
        }
    }

    /// The greedy choice: from the best token of each model if that settles it, and otherwise from `sum`, the best
    /// token of what [`Combination::scores`] makes. Its margin is one of scores. For a mixture it is one of logarithms
    /// of probabilities, and at least so large.
    pub fn greedy<'a>(&self, row: impl Fn(usize) -> Row<'a>, sum: impl FnOnce() -> Result<Best>) -> Result<Best> {
        if let Some(model) = self.single() {
            return row(model).best();
        }
        if !matches!(self, Combination::Mixture { .. }) {
            return sum();
        }
        if let Some(best) = self.agreed(row)? {
            return Ok(best);
        }
        let best = sum()?;
        Ok(Best { margin: -(-best.margin / best.score).ln_1p(), ..best })
    }

    /// The choice of all models of a mixture, if they make the same one and none has a near tie. Then no exponential is
    /// needed: the token that every part prefers by a margin is preferred by their sum, by at least the least margin.
    fn agreed<'a>(&self, row: impl Fn(usize) -> Row<'a>) -> Result<Option<Best>> {
        let mut common: Option<Best> = None;
        for (model, _) in self.parts() {
            let best = row(model).best()?;
            if best.is_near_tie() || common.is_some_and(|common| common.token != best.token) {
                return Ok(None);
            }
            let margin = common.map_or(best.margin, |common| common.margin.min(best.margin));
            common = Some(Best { margin, ..best });
        }
        Ok(common)
    }

    /// `ln r` of a token at temperature 1 and without filters. `sum` is the row that [`Combination::scores`] makes,
    /// which only combinations other than mixtures and single models need.
    pub fn log_probability<'a>(&self, token: usize, row: impl Fn(usize) -> Row<'a>, sum: Row<'_>) -> Result<f32> {
        let scores = match (self.single(), self) {
            (Some(model), _) => row(model),
            (None, Combination::Mixture { .. }) => {
                let mut sum = 0.0;
                for (model, weight) in self.parts() {
                    sum += weight * row(model).softmax()?.probability_of(token, row(model).score(token)?);
                }
                return Ok(f64::from(sum).ln() as f32);
            }
            (None, _) => sum,
        };
        Ok(scores.softmax()?.log_probability_of(token, scores.score(token)?))
    }
}

/// The sum of the weights of a mixture, which is near 1.
fn check_mixture(weights: &[f32]) -> Result<f64> {
    for (model, &weight) in weights.iter().enumerate() {
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(Error::InvalidArgument(format!(
                "weights[{model}] is {weight}; the weights of a mixture must be 0 or positive"
            )));
        }
    }
    let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    if (sum - 1.0).abs() > WEIGHT_TOLERANCE {
        return Err(Error::InvalidArgument(format!(
            "the weights of a mixture must sum to 1, but these sum to {}",
            sum as f32
        )));
    }
    Ok(sum)
}

fn scale(weights: &mut [f32], sum: f64) {
    weights.iter_mut().for_each(|weight| *weight = (f64::from(*weight) / sum) as f32);
}

fn check_logits(weights: &[f32]) -> Result<()> {
    if let Some((model, weight)) = weights.iter().enumerate().find(|(_, weight)| !weight.is_finite()) {
        return Err(Error::InvalidArgument(format!("weights[{model}] is {weight}; it must be finite")));
    }
    if weights.iter().all(|&weight| weight == 0.0) {
        return Err(Error::InvalidArgument("all weights are 0; at least one model must count".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{NEAR_TIE, argmax};

    const INF: f32 = f32::INFINITY;

    fn scores(combination: &Combination, rows: &[&[f32]]) -> Vec<f32> {
        let mut out = vec![9.0; rows[0].len()];
        combination.scores(|model| Row::Host(rows[model]), &mut out, |_| ()).unwrap();
        out
    }

    fn greedy(combination: &Combination, rows: &[impl AsRef<[f32]>], scratch: &mut [f32]) -> Result<Best> {
        let row = |model: usize| Row::Host(rows[model].as_ref());
        let scratch = &mut scratch[..rows[0].as_ref().len()];
        combination.greedy(row, || {
            combination.scores(row, scratch, |_| ())?;
            argmax(scratch)
        })
    }

    #[test]
    fn contrastive_subtracts_the_amateur() {
        let contrastive = Combination::contrastive(2, 0.5, 0.0).unwrap();
        assert_eq!(scores(&contrastive, &[&[1.0, 2.0], &[4.0, -2.0]]), [-1.0, 3.0]);
    }

    #[test]
    fn blocks_without_plausible_tokens_are_skipped_but_checked() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut row = || (0..5 * SUM_BLOCK + 7).map(|_| 8.0 * random.f32()).collect::<Vec<f32>>();
        let (mut expert, mut amateur) = (row(), row());
        for token in [3, 2 * SUM_BLOCK, 2 * SUM_BLOCK + 9] {
            expert[token] = 20.0 - token as f32 * 1e-3;
        }
        let contrastive = Combination::contrastive(2, 0.5, 0.1).unwrap();
        let found = scores(&contrastive, &[&expert, &amateur]);
        for token in 0..expert.len() {
            let plausible = expert[token] >= expert[3] + 0.1f32.ln();
            let expected = if plausible { expert[token] - 0.5 * amateur[token] } else { -INF };
            assert_eq!(found[token], expected, "{token}");
        }
        assert_eq!(found.iter().filter(|score| score.is_finite()).count(), 3);
        amateur[4 * SUM_BLOCK] = f32::NAN;
        assert!(
            contrastive
                .scores(|model| Row::Host([&expert[..], &amateur][model]), &mut vec![0.0; found.len()], |_| ())
                .is_err()
        );
    }

    #[test]
    fn plausibility_is_judged_by_the_expert_alone() {
        // The expert gives probabilities in proportion to 1, 0.2, 0.05. The amateur would keep all tokens.
        let rows: [&[f32]; 2] = [&[0.0, 0.2f32.ln(), 0.05f32.ln()], &[-9.0, 0.0, -9.0]];
        let masked = scores(&Combination::contrastive(2, 1.0, 0.1).unwrap(), &rows);
        assert!(masked[0].is_finite() && masked[1].is_finite() && masked[2] == -INF, "{masked:?}");
        let masked = scores(&Combination::contrastive(2, 1.0, 0.3).unwrap(), &rows);
        assert!(masked[0].is_finite() && masked[1] == -INF && masked[2] == -INF, "{masked:?}");
    }

    #[test]
    fn bad_rows_are_errors_whatever_their_weight() {
        let masked = Combination::contrastive(2, 0.5, 0.5).unwrap();
        let uncalled = Function::new(|_, _| panic!("a function is not called with bad rows"));
        for combination in [masked.clone(), masked.with_function(uncalled), Combination::mixture(&[0.5, 0.5]).unwrap()]
        {
            for bad in [[0.0, f32::NAN], [0.0, INF], [-INF, -INF]] {
                let rows: [&[f32]; 2] = [&[9.0, 0.0], &bad];
                let error = combination.scores(|model| Row::Host(rows[model]), &mut [0.0; 2], |_| ()).unwrap_err();
                assert_eq!(error.code(), 6, "{combination:?} of {bad:?}");
            }
        }
    }

    #[test]
    fn a_function_sees_needed_rows_only_and_must_write_every_score() {
        let weights = Combination::logits(&[0.5, 0.0, -2.0]).unwrap();
        let product = Function::new(|rows, out| {
            let rows: Vec<Option<&[f32]>> = rows.collect();
            assert!(rows.len() == 3 && rows[1].is_none());
            for (token, out) in out.iter_mut().enumerate() {
                *out = rows[0].unwrap()[token] * rows[2].unwrap()[token];
            }
            Ok(())
        });
        let rows: [&[f32]; 3] = [&[2.0, 3.0], &[f32::NAN, 0.0], &[4.0, -5.0]];
        let custom = weights.clone().with_function(product);
        assert_eq!(scores(&custom, &rows), [8.0, -15.0]);
        assert_eq!(greedy(&custom, &rows, &mut [0.0; 4]).unwrap().token, 0);
        assert_eq!(custom.single(), None);

        let lazy = weights.clone().with_function(Function::new(|_, out| {
            out[0] = 1.0;
            Ok(())
        }));
        assert_eq!(greedy(&lazy, &rows, &mut [0.0; 4]).unwrap_err().code(), 6, "a score was left out");
        let failing = weights.with_function(Function::new(|_, _| Err(Error::Callback("planted".into()))));
        assert_eq!(greedy(&failing, &rows, &mut [0.0; 4]).unwrap_err().code(), 12);
    }

    #[test]
    fn greedy_log_probabilities_are_unfiltered() {
        let rows: [&[f32]; 2] = [&[1.0, 0.0, -INF], &[0.0, 2.0, 1.0]];
        let check = |combination: Combination, expected: [f64; 3]| {
            let mut scratch = [9.0; 3];
            greedy(&combination, &rows, &mut scratch).unwrap();
            for (token, expected) in expected.into_iter().enumerate() {
                let found =
                    combination.log_probability(token, |model| Row::Host(rows[model]), Row::Host(&scratch)).unwrap();
                assert!((f64::from(found).exp() - expected).abs() < 1e-6, "{combination:?}, {token}: {found}");
            }
        };
        let e = |x: f64| x.exp();
        let (a, b) = (e(1.0) + 1.0, 1.0 + e(2.0) + e(1.0));
        let (first, second) = ([e(1.0) / a, 1.0 / a, 0.0], [1.0 / b, e(2.0) / b, e(1.0) / b]);
        check(Combination::target(2, 1).unwrap(), second);
        check(Combination::mixture(&[1.0, 0.0]).unwrap(), first);
        check(Combination::mixture(&[0.5, 0.5]).unwrap(), [0, 1, 2].map(|i| (first[i] + second[i]) / 2.0));
        let c = e(1.0) + e(-2.0);
        check(Combination::logits(&[1.0, -1.0]).unwrap(), [e(1.0) / c, e(-2.0) / c, 0.0]);
    }

    #[test]
    fn a_bad_row_has_no_log_probabilities() {
        let rows: [&[f32]; 2] = [&[1.0, 0.0], &[f32::NAN; 2]];
        let row = |model: usize| Row::Host(rows[model]);
        for combination in [Combination::mixture(&[0.5, 0.5]).unwrap(), Combination::target(2, 1).unwrap()] {
            assert!(combination.log_probability(0, row, row(0)).is_err(), "{combination:?}");
        }
        assert!(Combination::logits(&[1.0, 1.0]).unwrap().log_probability(0, row, row(1)).is_err());
    }

    #[test]
    fn a_token_impossible_for_one_needed_model_is_impossible() {
        let rows: [&[f32]; 2] = [&[-INF, 0.0, 1.0], &[0.0, -INF, 1.0]];
        assert_eq!(scores(&Combination::logits(&[1.0, -1.0]).unwrap(), &rows), [-INF, -INF, 0.0]);
        // A model of weight 0 does not count.
        assert_eq!(scores(&Combination::logits(&[1.0, 0.0]).unwrap(), &rows), [-INF, 0.0, 1.0]);
    }

    #[test]
    fn greedy_mixture_is_of_probabilities() {
        // Model 0 gives token 0 the probability 0.6, and model 1 gives token 1 0.99. The mixture prefers token 1. A sum
        // of logits prefers token 0, because model 0 has a huge negative logit for token 1.
        let rows: [Vec<f32>; 2] =
            [vec![0.6f32.ln(), -40.0, 0.4f32.ln()], vec![0.005f32.ln(), 0.99f32.ln(), 0.005f32.ln()]];
        let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
        assert_eq!(greedy(&mixture, &rows, &mut [0.0; 4]).unwrap().token, 1);
        let product = Combination::logits(&[0.5, 0.5]).unwrap();
        assert_eq!(greedy(&product, &rows, &mut [0.0; 4]).unwrap().token, 0);
    }

    #[test]
    fn greedy_of_one_negative_weight_is_the_minimum() {
        let combination = Combination::logits(&[0.0, -1.0]).unwrap();
        let rows: [&[f32]; 2] = [&[5.0, 0.0], &[5.0, 0.0]];
        assert_eq!(greedy(&combination, &rows, &mut [0.0; 4]).unwrap().token, 1);
    }

    #[test]
    fn mixture_weights_are_checked_and_rescaled() {
        assert_eq!(Combination::mixture(&[0.5, -0.5]).unwrap_err().code(), 1);
        assert_eq!(Combination::mixture(&[0.5, 0.6]).unwrap_err().code(), 1);
        assert_eq!(Combination::mixture(&[f32::NAN, 0.5]).unwrap_err().code(), 1);
        let Combination::Mixture { weights } = Combination::mixture(&[0.3333, 0.3333, 0.3333]).unwrap() else {
            unreachable!()
        };
        assert!(weights.iter().all(|weight| (weight - 1.0 / 3.0).abs() < 1e-7));
    }

    #[test]
    fn other_settings_are_checked() {
        assert_eq!(Combination::logits(&[0.0, 0.0]).unwrap_err().code(), 1);
        assert_eq!(Combination::logits(&[INF, 0.0]).unwrap_err().code(), 1);
        assert_eq!(Combination::contrastive(1, 0.1, 0.0).unwrap_err().code(), 1);
        assert_eq!(Combination::contrastive(2, -0.1, 0.0).unwrap_err().code(), 1);
        assert_eq!(Combination::contrastive(2, 0.1, 1.5).unwrap_err().code(), 1);
        assert_eq!(Combination::target(2, 2).unwrap_err().code(), 1);
    }

    proptest::proptest! {
        /// Where all models agree, no sum is made. The choice is still that of the sum, and its margin is no larger.
        #[test]
        fn greedy_mixtures_choose_the_first_best_sum(
            rows in proptest::collection::vec(proptest::collection::vec(-8i32..8, 4), 1..4),
        ) {
            let rows: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().map(|&s| s as f32 * 0.5).collect()).collect();
            let weights = vec![1.0 / rows.len() as f32; rows.len()];
            let mixture = Combination::mixture(&weights).unwrap();
            let best = greedy(&mixture, &rows, &mut [0.0; 4]).unwrap();
            let share = |row: &[f32], token: usize| {
                let total: f64 = row.iter().map(|&s| f64::from(s).exp()).sum();
                f64::from(row[token]).exp() / total / rows.len() as f64
            };
            let sums: Vec<f64> = (0..4).map(|token| rows.iter().map(|row| share(row, token)).sum()).collect();
            let others = (0..4).filter(|&token| token != best.token);
            let second = others.map(|token| sums[token]).fold(0.0, f64::max);
            let margin = (sums[best.token] / second).ln();
            proptest::prop_assert!(margin > -1e-6 && f64::from(best.margin) < margin + 1e-5, "{sums:?}: {best:?}");
            proptest::prop_assert_eq!(best.is_near_tie(), margin < f64::from(NEAR_TIE));
        }
    }
}
