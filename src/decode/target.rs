//! The target of a position: what a proposal is verified against, and what replaces one that is rejected.

use crate::decode::chance::{Chance, Key, Purpose};
use crate::decode::combine::Combination;
use crate::decode::lane::Lane;
use crate::decode::schedule::Draft;
use crate::decode::settings::Settings;
use crate::decode::verify;
use crate::error::{Error, Result};
use crate::rows::{Best, Candidates, DeviceResidual, DeviceSums, Distribution, Edits, Row, Term, argmax, maximum};

/// Buffers that deciding a position takes. They hold nothing from one step to the next, so that any number of decoders
/// over the same models may take turns with one workspace. Between a question and the step that uses its answer, the
/// workspace is its decoder's alone.
pub struct Workspace {
    /// A row of probabilities: what is left of a target.
    pub(super) residual: Vec<f32>,
    /// A row of scores that several rows were combined to.
    pub(super) scores: Vec<f32>,
    /// For the sampler.
    pub candidates: Candidates,
    /// For edits of a row that the sampler is about to see.
    edited: Candidates,
    /// What combines rows on a GPU; made when rows on a GPU are first seen.
    sums: Option<Box<dyn DeviceSums>>,
    has_sums: bool,
    /// Whether questions to a GPU are deferred.
    defers: bool,
    /// Whether the last sum was made on the GPU. Otherwise it is in `scores`.
    is_on_device: bool,
}

impl Workspace {
    /// For rows of so many scores.
    pub fn new(vocab_size: usize) -> Self {
        Workspace {
            residual: vec![0.0; vocab_size],
            scores: vec![0.0; vocab_size],
            candidates: Candidates::new(vocab_size),
            edited: Candidates::default(),
            sums: None,
            has_sums: false,
            defers: false,
            is_on_device: false,
        }
    }

    /// Make the buffers on a GPU, if these lanes have their rows there.
    pub fn prepare(&mut self, lanes: &[Option<Lane>]) {
        if !self.has_sums {
            self.has_sums = true;
            self.sums = lanes.iter().flatten().find_map(|lane| lane.sequence.device_rows()?.sums());
            if let Some(sums) = self.sums.as_mut().filter(|_| self.defers) {
                sums.defer();
            }
        }
    }

    /// Defer questions about sums of rows on a GPU, so that they are answered together with others. To be called before
    /// the first step.
    pub fn defer(&mut self) {
        self.defers = true;
    }

    /// Whether there is a question that is not answered.
    pub fn asks(&self) -> bool {
        self.sums.as_ref().is_some_and(|sums| sums.asks())
    }

    /// The question of the last step, if it has ended with one.
    pub fn question(&mut self) -> Option<&mut dyn DeviceSums> {
        self.sums.as_deref_mut().filter(|sums| sums.asks())
    }

    /// What combines rows on a GPU.
    pub(super) fn sums(&mut self) -> Option<&mut (dyn DeviceSums + 'static)> {
        self.sums.as_deref_mut()
    }

    /// Forget questions and their answers.
    pub fn forget(&mut self) {
        self.sums.iter_mut().for_each(|sums| sums.forget());
    }

    /// Sums of rows that were copied from a GPU to the host so far.
    pub fn rows_copied(&self) -> u64 {
        match self.sums.as_ref().map(|sums| sums.sum()) {
            Some(Row::Device(rows, _)) => rows.copied(),
            _ => 0,
        }
    }

    /// Buffers for [`Lane::observation`].
    pub fn for_observation(&mut self) -> (&mut Candidates, &mut [f32]) {
        (&mut self.candidates, &mut self.residual)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let rows = size_of::<f32>() * (self.residual.len() + self.scores.len());
        rows + self.candidates.bytes() + self.sums.as_ref().map_or(0, |sums| sums.bytes())
    }

    /// The row that was combined last.
    pub(super) fn sum(&self) -> Row<'_> {
        match &self.sums {
            Some(sums) if self.is_on_device => sums.sum(),
            _ => Row::Host(&self.scores),
        }
    }
}

/// The target `t` of a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// This token, greedily.
    Token(Best),
    /// The distribution of this model.
    Row(usize),
    /// The mixture of the distributions of all models that have a weight.
    Mixture,
    /// This distribution of the row that the workspace has combined.
    Sum(Distribution),
}

/// The front position, where a target is made, a proposal is tested, or a token drawn.
pub struct Front<'a, C> {
    /// The models' rows; `None` for look-ups.
    pub lanes: &'a mut [Option<Lane>],
    /// The combination and the sampler.
    pub settings: &'a Settings,
    /// What is changed in rows, or in the row that they are combined to; see [`Combination::edits_rows`].
    pub edits: Option<&'a Edits>,
    /// The random outcomes, and the epoch that names them.
    pub chance: &'a C,
    /// See [`Key`].
    pub epoch: u32,
    /// The position.
    pub position: usize,
    /// The pending token there, if any.
    pub token: Option<usize>,
    /// Buffers.
    pub workspace: &'a mut Workspace,
}

impl<C: Chance> Front<'_, C> {
    fn lane(&self, model: usize) -> &Lane {
        self.lanes[model].as_ref().expect("a look-up has no rows")
    }

    fn row(&self, model: usize) -> Row<'_> {
        self.lane(model).row(self.position)
    }

    fn key(&self, purpose: Purpose) -> Key {
        Key { position: self.position, purpose, epoch: self.epoch }
    }

    /// Make the target; `route` is the model that it is routed to, if it is.
    pub fn target(&mut self, route: Option<usize>) -> Result<Target> {
        let made = self.make_target(route);
        made.map_err(|error| self.blame(error))
    }

    fn make_target(&mut self, route: Option<usize>) -> Result<Target> {
        if let Some(edits) = self.edits.filter(|_| self.settings.combination.edits_rows()) {
            let combination = &self.settings.combination;
            let (position, lanes, candidates) = (self.position, &mut *self.lanes, &mut self.workspace.candidates);
            let mut edit =
                |model: usize| lanes[model].as_mut().expect("a look-up has no rows").edit(position, edits, candidates);
            match route {
                Some(model) => edit(model)?,
                None => combination.needed().try_for_each(edit)?,
            }
        }
        if self.settings.sampler.is_greedy() {
            return self.greedy().map(Target::Token);
        }
        let combination = &self.settings.combination;
        if let Some(model) = route.or(combination.single()) {
            self.process(model)?;
            return Ok(Target::Row(model));
        }
        if matches!(combination, Combination::Mixture { .. }) {
            for model in combination.needed() {
                self.process(model)?;
            }
            return Ok(Target::Mixture);
        }
        let sampler = &self.settings.sampler;
        if self.add_on_device()? {
            let (sum, candidates) = (self.workspace.sums.as_deref(), &mut self.workspace.candidates);
            let row = sum.expect("the sum was made there").sum();
            return Ok(Target::Sum(row.distribution(sampler, candidates)?));
        }
        let (lanes, position, edits) = (&*self.lanes, self.position, self.edits);
        let logits = |model: usize| lanes[model].as_ref().expect("a look-up has no rows").logits(position);
        let Workspace { scores, candidates, edited, residual, .. } = &mut *self.workspace;
        let make = |out: &mut [f32], made: &mut dyn FnMut(&[f32])| match edits {
            None => combination.scores(logits, out, made),
            Some(edits) => {
                combination.edited_scores(logits, edits, out, (residual, edited))?;
                made(out);
                Ok(())
            }
        };
        Ok(Target::Sum(sampler.process_made(scores, candidates, make)?))
    }

    fn process(&mut self, model: usize) -> Result<()> {
        let lane = self.lanes[model].as_mut().expect("a look-up has no rows");
        lane.process(self.position, &self.settings.sampler, &mut self.workspace.candidates)
    }

    /// The greedy choice.
    fn greedy(&mut self) -> Result<Best> {
        let combination = &self.settings.combination;
        // Taken out, because the sum is made while rows are looked at.
        let mut scores = std::mem::take(&mut self.workspace.scores);
        let mut on_device = false;
        let position = self.position;
        let lanes = &*self.lanes;
        // A sum of logits is edited itself.
        let edits = self.edits.filter(|_| !self.settings.combination.edits_rows());
        let row = |model: usize| {
            let lane = lanes[model].as_ref().expect("a look-up has no rows");
            if edits.is_some() { lane.logits(position) } else { lane.row(position) }
        };
        let (settings, token) = (self.settings, self.token);
        let Workspace { sums, residual, candidates, .. } = &mut *self.workspace;
        let best = combination.greedy(row, || {
            let mut sums = sums.as_deref_mut();
            on_device = add_on_device(sums.as_deref_mut(), settings, row, edits, token, None)?;
            if on_device {
                return sums.as_ref().expect("it has made the sum").sum().best();
            }
            match edits {
                None => combination.scores(row, &mut scores, |_| ())?,
                Some(edits) => combination.edited_scores(row, edits, &mut scores, (residual, candidates))?,
            }
            argmax(&scores)
        });
        self.workspace.scores = scores;
        self.workspace.is_on_device = on_device;
        best
    }

    /// Combine the rows on the GPU, if all of them are there. Returns whether that was done.
    fn add_on_device(&mut self) -> Result<bool> {
        let (lanes, position) = (&*self.lanes, self.position);
        let row = |model: usize| lanes[model].as_ref().expect("a look-up has no rows").logits(position);
        // A token is drawn only where none is pending.
        let uniform = if self.token.is_none() { self.chance.share(self.key(Purpose::Target)) } else { None };
        let sums = self.workspace.sums.as_deref_mut();
        let done = add_on_device(sums, self.settings, row, self.edits, self.token, uniform)?;
        self.workspace.is_on_device = done;
        Ok(done)
    }

    /// The probability that the target gives a token.
    pub fn probability(&self, target: Target, token: usize) -> Result<f32> {
        let of = |model: usize| self.lane(model).probability(self.position, token);
        match target {
            Target::Token(best) => Ok(f32::from(u8::from(best.token == token))),
            Target::Row(model) => of(model),
            Target::Mixture => {
                let mut sum = 0.0;
                for (model, weight) in self.settings.combination.parts() {
                    sum += weight * of(model)?;
                }
                Ok(sum)
            }
            Target::Sum(distribution) => Ok(distribution.probability_of(token, self.workspace.sum().score(token)?)),
        }
    }

    /// `ln` of the probability that the combined distribution gives a token. Greedy decoding draws from nothing; its
    /// tokens have the probabilities of temperature 1 without filters.
    pub fn log_probability(&self, target: Target, token: usize) -> Result<f32> {
        if let Target::Token(_) = target {
            let row = |model: usize| self.row(model);
            return self.settings.combination.log_probability(token, row, self.workspace.sum());
        }
        Ok(f64::from(self.probability(target, token)?).ln() as f32)
    }

    /// Draw a token from the target.
    pub fn draw(&self, target: Target) -> Result<usize> {
        let key = self.key(Purpose::Target);
        match target {
            Target::Token(best) => Ok(best.token),
            Target::Row(model) => self.chance.pick(key, &self.lane(model).weighted(self.position)),
            Target::Mixture => {
                // From one of its parts, by their weights: that takes one row.
                let weights = self.settings.combination.weights();
                let model = self.chance.pick(self.key(Purpose::Component), weights)?;
                self.chance.pick(key, &self.lane(model).weighted(self.position))
            }
            Target::Sum(distribution) => self.chance.pick(key, &self.workspace.sum().weighted(&distribution)),
        }
    }

    /// Accept the pending token (`None`), or draw its replacement (Eq. 6).
    pub fn test(&mut self, draft: Draft, target: Target) -> Result<Option<usize>> {
        let Draft { proposer, certain, .. } = draft;
        let token = self.token.expect("a draft has a token");
        match target {
            Target::Token(best) => return Ok((best.token != token).then_some(best.token)),
            Target::Row(model) if model == proposer => return Ok(None), // the token was drawn from the target
            _ => {}
        }
        let t = self.probability(target, token)?;
        let q = if certain { 1.0 } else { self.lane(proposer).probability(self.position, token)? };
        if self.chance.accept(self.key(Purpose::Acceptance), verify::acceptance(t, q)) {
            return Ok(None);
        }
        let certain = certain.then_some(token);
        let key = self.key(Purpose::Residual);
        if let Some(total) = self.residual_on_device(target, proposer, certain, key)?
            && total > 0.0
        {
            let sums = self.workspace.sums.as_deref().expect("it has made the residual");
            return self.chance.pick(key, &DeviceResidual::new(sums, total)).map(Some);
        }
        self.make_residual(target, proposer, certain)?;
        self.chance.pick(key, &self.workspace.residual[..]).map(Some)
    }

    /// Make the residual on the GPU, from which the outcome of a key is drawn, if all rows that it takes are there.
    /// Returns its sum.
    fn residual_on_device(
        &mut self,
        target: Target,
        proposer: usize,
        certain: Option<usize>,
        key: Key,
    ) -> Result<Option<f64>> {
        let uniform = self.chance.share(key);
        let (lanes, position) = (&*self.lanes, self.position);
        let term =
            |model: usize, weight: f32| lanes[model].as_ref().expect("a look-up has no rows").term(position, weight);
        let Some(sums) = self.workspace.sums.as_deref_mut() else { return Ok(None) };
        let proposal = match certain {
            Some(_) => None,
            None => match term(proposer, 1.0) {
                Some(term) => Some(term),
                None => return Ok(None),
            },
        };
        match target {
            Target::Row(model) => match term(model, 1.0) {
                Some(target) => sums.residual(&mut std::iter::once(target).chain(proposal), certain, uniform),
                None => Ok(None),
            },
            Target::Mixture => {
                let parts = || self.settings.combination.parts().map(|(model, weight)| term(model, weight));
                if parts().any(|part| part.is_none()) {
                    return Ok(None);
                }
                sums.residual(&mut parts().flatten().chain(proposal), certain, uniform)
            }
            Target::Sum(distribution) if self.workspace.is_on_device => match sums.sum().term(&distribution, 1.0) {
                Some(target) => sums.residual(&mut std::iter::once(target).chain(proposal), certain, uniform),
                None => Ok(None),
            },
            Target::Token(_) | Target::Sum(_) => Ok(None),
        }
    }

    /// Make the row that a rejected proposal is replaced from, in the workspace.
    fn make_residual(&mut self, target: Target, proposer: usize, certain: Option<usize>) -> Result<()> {
        let mut residual = std::mem::take(&mut self.workspace.residual);
        let made = self.fill_residual(target, proposer, certain, &mut residual);
        self.workspace.residual = residual;
        made
    }

    fn fill_residual(&self, target: Target, proposer: usize, certain: Option<usize>, out: &mut [f32]) -> Result<()> {
        self.fill_target(target, out)?;
        let any = match certain {
            Some(token) => verify::residual_of_certain(out, token),
            None => {
                let proposal = self.lane(proposer).distribution(self.position);
                verify::residual(out, proposal, self.row(proposer).scores()?)
            }
        };
        if any { Ok(()) } else { self.fill_target(target, out) }
    }

    /// Write the probabilities of all tokens under the target.
    pub(super) fn fill_target(&self, target: Target, out: &mut [f32]) -> Result<()> {
        out.fill(0.0);
        match target {
            Target::Token(best) => out[best.token] = 1.0,
            Target::Row(model) => {
                self.lane(model).distribution(self.position).add(self.row(model).scores()?, 1.0, out);
            }
            Target::Mixture => {
                for (model, weight) in self.settings.combination.parts() {
                    self.lane(model).distribution(self.position).add(self.row(model).scores()?, weight, out);
                }
            }
            Target::Sum(distribution) => distribution.add(self.workspace.sum().scores()?, 1.0, out),
        }
        Ok(())
    }

    /// Say of a numeric error which model's row it comes from.
    #[cold]
    fn blame(&self, error: Error) -> Error {
        let Error::Numeric(what) = error else { return error };
        let position = self.position;
        for model in self.settings.combination.needed() {
            let lane = self.lane(model);
            if lane.sequence.len() >= position
                && let Err(Error::Numeric(what)) = lane.logits(position).scores().and_then(maximum)
            {
                return Error::Numeric(format!("{}, position {position}: {what}", lane.limits.name));
            }
        }
        let mend = match &self.settings.combination {
            _ if self.edits.is_some() => "; bias, bans or the constraint may leave no token that the models can give",
            Combination::Mixture { .. } => "",
            Combination::Logits { .. } => "; use smaller weights, if their sum is more than a float32 holds",
            Combination::Custom { .. } => "; the combine function must give finite scores, or minus infinity for some",
        };
        Error::Numeric(format!("the combination, position {position}: {what}{mend}"))
    }
}

/// Combine rows on a GPU: for combinations of logits their weighted sum, and greedily the probabilities of a mixture.
/// Returns false if that cannot be done there.
fn add_on_device<'a>(
    sums: Option<&mut (dyn DeviceSums + 'static)>,
    settings: &Settings,
    row: impl Fn(usize) -> Row<'a>,
    edits: Option<&Edits>,
    token: Option<usize>,
    uniform: Option<f64>,
) -> Result<bool> {
    let combination = &settings.combination;
    let Some(sums) = sums else { return Ok(false) };
    let judge = match combination.sums() {
        Some(judge) => judge,
        None if matches!(combination, Combination::Mixture { .. }) => None,
        None => return Ok(false),
    };
    let part = |(model, weight): (usize, f32)| -> Result<Option<Term>> {
        let row = row(model);
        let Some(place) = row.place() else { return Ok(None) };
        if combination.sums().is_some() {
            return Ok(Some(Term::of_scores(place, f64::from(weight))));
        }
        let distribution = row.softmax()?;
        Ok(Some(Term { row: place, scale: f64::from(weight) / distribution.total(), distribution }))
    };
    for each in combination.parts() {
        if part(each)?.is_none() {
            return Ok(false);
        }
    }
    let judge = judge.and_then(|(model, distance)| row(model).place().map(|place| (place, place.max + distance)));
    let mut parts = combination.parts().filter_map(|each| part(each).ok().flatten());
    let made = sums.add(&mut parts, judge, edits, settings.sampler.filter(), token.unwrap_or(0), uniform)?;
    // If no plausible token is possible, another sum is made, on the host.
    let has_none = || matches!(sums.sum().best(), Err(Error::Numeric(_)));
    Ok(made && !(judge.is_some() && edits.is_some() && has_none()))
}
