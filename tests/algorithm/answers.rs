//! Scripted sequences that answer questions about their rows, as those on a GPU do. The decoder need not read such
//! rows. The sequences count the rows that it reads nevertheless.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::{PROMPT, SAMPLINGS, Sampling, World, combinations, decoder, ways};
use crate::sums::{Asked, HostEdits, HostSums};
use cos::config::Combine;
use cos::decode::chance::CounterRng;
use cos::decode::combine::{Combination, Function};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::learn::estimates::Estimates;
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};
use cos::rows::{DeviceEdits, DeviceRow, DeviceRows, DeviceSums, Distribution, Filter, PassUniforms, Row};

/// A model whose sequences answer questions.
struct Answering {
    inner: Participant,
    ways: Ways,
}

/// How sequences answer.
#[derive(Clone, Default)]
pub struct Ways {
    /// Once it is set, every question is an error.
    fails: Arc<AtomicBool>,
    /// Whether some questions about a filter are not answered: at every third position.
    forgets: bool,
    /// Draws that the last pass could have made, and others.
    draws: Arc<[AtomicU64; 2]>,
    /// Numbers that passes were told for proposals, and for tokens of the target.
    told: Arc<[AtomicU64; 2]>,
    /// Scores that were asked for, though no pass and no draw has told them.
    scores: Arc<AtomicU64>,
    /// For sequences that make sums and residuals, and whose passes are combined.
    asked: Option<Arc<Asked>>,
}

impl Ways {
    /// Sequences that make sums and residuals.
    pub fn asking(asked: &Arc<Asked>) -> Self {
        Ways { asked: Some(asked.clone()), ..Ways::default() }
    }
}

struct Answers {
    inner: Box<dyn Sequence>,
    filter: Filter,
    uniforms: Option<PassUniforms>,
    /// Tokens whose scores are known, with their positions.
    known: RefCell<Vec<(usize, usize)>>,
    copied: Cell<u64>,
    vocab: usize,
    ways: Ways,
}

/// What a filter keeps of a row, and the weights of all tokens.
pub fn kept(row: &[f32], filter: Filter) -> (Distribution, Vec<f64>) {
    let Filter { rate, top_k, top_p, distance } = filter;
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let max = row[order[0]];
    let mut weights: Vec<f64> = row.iter().map(|score| (f64::from(score - max) * f64::from(rate)).exp()).collect();
    let mut out = order.split_off(if top_k == 0 { order.len() } else { top_k.min(order.len()) });
    if top_p < 1.0 {
        let mut left = f64::from(top_p) * order.iter().map(|&token| weights[token]).sum::<f64>();
        let reaches = |&token: &usize| {
            left -= weights[token];
            left <= 0.0
        };
        let length = order.iter().position(reaches).map_or(order.len(), |last| last + 1);
        out.extend(order.split_off(length));
    }
    let (least, last) = (max + distance, *order.last().expect("a token is kept"));
    let (floor, cut) = if row[last] < least || out.is_empty() { (least, usize::MAX) } else { (row[last], last + 1) };
    out.into_iter().chain(order.into_iter().filter(|&token| row[token] < least)).for_each(|token| weights[token] = 0.0);
    let known = Distribution::known(filter, max, weights.iter().sum(), floor, cut);
    (known.unwrap(), weights)
}

/// The best token of a row, its score, and the largest of all others.
pub fn best(row: &[f32]) -> Option<(usize, f32, f32)> {
    let best = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]))?;
    let others = row.iter().enumerate().filter(|(token, _)| *token != best);
    Some((best, row[best], others.map(|(_, &score)| score).fold(f32::NEG_INFINITY, f32::max)))
}

/// Where the sum of weights from the front passes a share.
pub fn find(weights: &[f64], share: f64) -> Option<usize> {
    let mut left = share;
    weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    })
}

impl Answers {
    fn working(&self) -> Result<(), Error> {
        if self.ways.fails.load(Ordering::Relaxed) { Err(Error::Runtime("planted".into())) } else { Ok(()) }
    }

    fn host_row(&self, position: usize) -> &[f32] {
        self.inner.row(position).scores().unwrap()
    }

    /// What the filter keeps of a row, and the weights of the kept tokens.
    fn kept(&self, position: usize) -> Option<(Distribution, Vec<f64>)> {
        if self.ways.forgets && !self.filter.is_plain() && position.is_multiple_of(3) {
            return None;
        }
        Some(kept(self.host_row(position), self.filter))
    }
}

impl Sequence for Answers {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn truncate(&mut self, len: usize) {
        self.inner.truncate(len);
    }

    fn row(&self, position: usize) -> Row<'_> {
        Row::Device(self, position)
    }

    fn device_rows(&self) -> Option<&dyn DeviceRows> {
        Some(self)
    }
}

impl DeviceRows for Answers {
    fn scores(&self, position: usize) -> Result<&[f32], Error> {
        self.copied.set(self.copied.get() + 1);
        self.working()?;
        self.inner.row(position).scores()
    }

    fn score(&self, position: usize, token: usize) -> Result<f32, Error> {
        self.working()?;
        self.ways.scores.fetch_add(u64::from(!self.knows(position, token)), Ordering::Relaxed);
        self.inner.row(position).score(token)
    }

    fn best(&self, position: usize) -> Option<(usize, f32, f32)> {
        best(self.host_row(position))
    }

    fn distribution(&self, position: usize, filter: Filter) -> Option<Result<Distribution, Error>> {
        let (distribution, _) = self.kept(position).filter(|_| self.filter == filter)?;
        Some(Ok(distribution))
    }

    fn draw(&self, position: usize, share: f64) -> Result<Option<usize>, Error> {
        self.working()?;
        let Some((kept, weights)) = self.kept(position) else { return Ok(None) };
        let is_share = |uniform: &f64| uniform * kept.total() == share;
        let is_foreseen = position == self.inner.len() && self.uniforms.is_some_and(|all| all.iter().any(is_share));
        self.ways.draws[usize::from(!is_foreseen)].fetch_add(1, Ordering::Relaxed);
        let drawn = find(&weights, share);
        self.known.borrow_mut().extend(drawn.map(|token| (position, token)));
        Ok(drawn)
    }

    fn knows(&self, position: usize, token: usize) -> bool {
        self.known.borrow().contains(&(position, token))
    }

    fn learns(&self, position: usize) -> bool {
        position > 0 && position <= self.inner.len()
    }

    fn place(&self, position: usize) -> Option<DeviceRow> {
        self.ways.asked.as_ref()?;
        let row = self.host_row(position);
        Some(DeviceRow::new(0, row.as_ptr() as u64, 0, best(row)?.1))
    }

    fn copied(&self) -> u64 {
        self.copied.get()
    }

    fn sums(&self) -> Option<Box<dyn DeviceSums>> {
        Some(Box::new(HostSums::new(self.vocab, self.ways.asked.as_ref()?)))
    }

    fn edits(&self, slots: usize) -> Option<Box<dyn DeviceEdits>> {
        Some(Box::new(HostEdits::new(slots)))
    }
}

impl Model for Answering {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn vocab_size(&self) -> usize {
        self.inner.model().unwrap().vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner.model().unwrap().context_length()
    }

    fn max_pass(&self) -> usize {
        self.inner.model().unwrap().max_pass()
    }

    fn cost(&self) -> u64 {
        self.inner.cost()
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>, Error> {
        let (inner, vocab) = (self.inner.model().unwrap().start(cancel)?, self.vocab_size());
        let (filter, copied, ways) = (Filter::plain(0.0), Cell::new(0), self.ways.clone());
        let known = RefCell::default();
        Ok(Box::new(Answers { inner, filter, uniforms: None, known, copied, vocab, ways }))
    }

    fn batches(&self) -> bool {
        self.ways.asked.is_some()
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        let mut report = None;
        for pass in batch {
            let sequence: &mut dyn Any = pass.sequence;
            let sequence: &mut Answers = sequence.downcast_mut().expect("a sequence of another model");
            let Pass { tokens, keep, filter, uniforms, .. } = *pass;
            (sequence.filter, sequence.uniforms) = (filter, uniforms);
            for (told, uniform) in sequence.ways.told.iter().zip(uniforms.into_iter().flatten()) {
                told.fetch_add(u64::from(uniform >= 0.0), Ordering::Relaxed);
            }
            // Those of its positions tell the scores of their tokens; that of its first token is known from before.
            let start = sequence.inner.len();
            let known = sequence.known.get_mut();
            known.retain(|(position, _)| *position < start);
            known.extend(tokens.iter().enumerate().map(|(index, &token)| (start + index, token as usize)));
            let inner = Pass { sequence: sequence.inner.as_mut(), tokens, keep, filter, uniforms };
            report = Some(self.inner.model().unwrap().forward(&mut [inner])?);
        }
        Ok(report.unwrap())
    }
}

pub fn answering(models: &[Participant], ways: &Ways) -> Vec<Participant> {
    let answer = |inner: &Participant| {
        let (inner, ways) = (inner.clone(), ways.clone());
        Participant::from(Arc::new(Answering { inner, ways }))
    };
    models.iter().map(answer).collect()
}

/// Every token that is drawn from one row is drawn at a share that the decoder told the pass of that row, whatever was
/// rejected before and however weights change. A pass is told of no proposal where nobody proposes.
#[test]
fn passes_are_told_of_every_draw() {
    let answers = Ways::default();
    let models = answering(&World::Related.models(2, 5), &answers);
    for combination in combinations(2) {
        for sampling in SAMPLINGS {
            for way in ways(2, &combination, sampling) {
                let mut decoder = decoder(&models, &combination, sampling, &way, &[], 30, CounterRng::new(3));
                decoder.prompt(&PROMPT).unwrap();
                let before = answers.told[0].load(Ordering::Relaxed);
                while decoder.round().unwrap().1.is_none() {}
                let of_proposals = answers.told[0].load(Ordering::Relaxed) - before;
                assert!(way.strategy != Strategy::Standard || of_proposals == 0, "{way:?}");
            }
        }
    }
    let [foreseen, others] = answers.draws.each_ref().map(|count| count.load(Ordering::Relaxed));
    assert!(foreseen > 1000 && others == 0, "{others} draws were not foreseen, {foreseen} were");
}

/// What an observer learns of rows on a device costs no question, and is what it learns of rows on the host.
#[test]
fn observers_ask_for_no_score() {
    let models = World::Related.models(2, 5);
    let answers = Ways::default();
    let told = answering(&models, &answers);
    let combination = Combination::mixture(&[0.3, 0.7]).unwrap();
    for sampling in [Sampling::PLAIN, Sampling { top_k: 3, ..Sampling::PLAIN }] {
        for way in ways(2, &combination, sampling) {
            let [rows, answered, unseen] =
                [(&models, true), (&told, true), (&told, false)].map(|(models, observes)| {
                    let before = answers.scores.load(Ordering::Relaxed);
                    let mut decoder = decoder(models, &combination, sampling, &way, &[], 400, CounterRng::new(8));
                    if observes {
                        decoder.observe(Estimates::new(&vec![vec![(1, 1.0)]; 2]));
                    }
                    decoder.prompt(&PROMPT).unwrap();
                    while decoder.round().unwrap().1.is_none() {}
                    let learned = decoder.estimates().map_or_else(Vec::new, |known| known.acceptance.clone());
                    (decoder.committed().to_vec(), learned, answers.scores.load(Ordering::Relaxed) - before)
                });
            assert_eq!(rows.0, answered.0, "{way:?}");
            // Log-probabilities may ask.
            assert_eq!(answered.2, unseen.2, "{way:?}");
            for (a, b) in rows.1.iter().zip(&answered.1) {
                let (a, b) = (a.rate(false), b.rate(false));
                assert!((a - b).abs() < 0.02, "{way:?}: {a}, {b}");
            }
        }
    }
}

/// With the same random numbers, every strategy decodes the same text from answers as from rows.
#[test]
fn answers_give_the_text_of_rows() {
    let models = World::Related.models(2, 5);
    let told = [false, true].map(|forgets| answering(&models, &Ways { forgets, ..Ways::default() }));
    let (mut texts, mut others) = (0, 0);
    for combination in combinations(2) {
        for sampling in SAMPLINGS {
            for way in ways(2, &combination, sampling) {
                for seed in 0..5 {
                    let [rows, answers, some] = [&models, &told[0], &told[1]].map(|models| {
                        let chance = CounterRng::new(seed);
                        let mut decoder = decoder(models, &combination, sampling, &way, &[], 12, chance);
                        decoder.prompt(&PROMPT).unwrap();
                        while decoder.round().unwrap().1.is_none() {}
                        decoder.committed().to_vec()
                    });
                    texts += 1;
                    others += i32::from(rows != answers || rows != some);
                }
            }
        }
    }
    assert!(texts > 500 && others == 0, "{others} of {texts} texts differ");
}

/// Log-probabilities are the same, made from answers or from rows.
#[test]
fn answers_give_the_log_probabilities_of_rows() {
    let models = World::Related.models(2, 5);
    let told = answering(&models, &Ways::default());
    let engines = [models, told].map(|models| {
        let combine = Combine::Weighted { weights: vec![0.3, 0.7] };
        Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap())
    });
    for sampling in SAMPLINGS {
        for weights in [vec![0.3, 0.7], vec![0.0, 1.0]] {
            let [rows, answers] = engines.each_ref().map(|engine| {
                let options = Options {
                    sampler: sampling.sampler(),
                    strategy: Strategy::Standard,
                    weights: Some(weights.clone()),
                    log_probabilities: true,
                    max_tokens: 20,
                    ..Options::default()
                };
                let mut session = Session::new(engine, &options).unwrap();
                session.prompt(&PROMPT).unwrap();
                let mut logs = Vec::new();
                while session.step().unwrap().1 == State::Open {
                    logs.extend_from_slice(&session.log_probabilities().of_tokens);
                }
                logs
            });
            assert!(rows.len() >= 19 && rows.len() == answers.len());
            let off = rows.iter().zip(&answers).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "{sampling:?}, {weights:?}: off by {off}");
        }
    }
}

/// If a device fails, the round is an error, and no token that follows from its answers is committed.
#[test]
fn a_device_that_fails_is_an_error() {
    let fails = Arc::new(AtomicBool::new(false));
    let models = answering(&World::Related.models(2, 5), &Ways { fails: fails.clone(), ..Ways::default() });
    let sampling = SAMPLINGS[0];
    for combination in combinations(2) {
        for way in ways(2, &combination, sampling) {
            fails.store(false, Ordering::Relaxed);
            let mut decoder = decoder(&models, &combination, sampling, &way, &[], 40, CounterRng::new(1));
            decoder.prompt(&PROMPT).unwrap();
            for _ in 0..3 {
                decoder.round().unwrap();
            }
            fails.store(true, Ordering::Relaxed);
            // A token that is known from before the failure may still be committed.
            let mut before = decoder.committed().to_vec();
            let error = loop {
                match decoder.round().map(drop) {
                    Ok(()) => before = decoder.committed().to_vec(),
                    Err(error) => break error,
                }
            };
            assert_eq!(error, Interrupt::Failed(Error::Runtime("planted".into())));
            assert_eq!(decoder.committed(), before);
            assert!(before.len() < PROMPT.len() + 40, "{way:?} took no notice");
        }
    }
}

/// Options of a session that decodes 20 tokens with one proposal of each model.
fn way(sampling: Sampling, strategy: Strategy, targets: Targets) -> Options {
    Options {
        sampler: sampling.sampler(),
        strategy,
        targets: Some(targets),
        proposal_lengths: Some(vec![1, 1]),
        max_tokens: 20,
        ..Options::default()
    }
}

/// Rows are read only if answers are not enough. The statistics of the session, of each model and of the engine count
/// them.
#[test]
fn rows_that_are_read_are_counted() {
    let models = answering(&World::Related.models(2, 5), &Ways::default());
    let engine = Engine::new(models, Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap();
    let engine = Arc::new(engine);
    let (plain, greedy, standard) = (Sampling::PLAIN, Sampling::GREEDY, Strategy::Standard);
    let top_k = Sampling { top_k: 2, ..plain };
    let first = Function::new(|rows, out| {
        out.copy_from_slice(rows.next().flatten().expect("the first model is needed"));
        Ok(())
    });
    let mut total = 0;
    for (reads, options) in [
        (false, way(plain, standard, Targets::Combined)),
        (false, way(plain, standard, Targets::Routed)),
        (false, Options { log_probabilities: true, ..way(plain, standard, Targets::Combined) }),
        (false, Options { weights: Some(vec![1.0, 0.0]), ..way(greedy, Strategy::Cos, Targets::Combined) }),
        (false, way(top_k, standard, Targets::Combined)),
        (false, way(top_k, standard, Targets::Routed)),
        // A rejected proposal needs a residual, which these sequences do not answer.
        (true, way(plain, Strategy::Cos, Targets::Combined)),
        (true, way(top_k, Strategy::Cos, Targets::Combined)),
        (
            false,
            Options {
                log_probabilities: true,
                weights: Some(vec![0.0, 1.0]),
                ..way(greedy, standard, Targets::Combined)
            },
        ),
        // So does the greedy choice from a sum of rows.
        (true, Options { log_probabilities: true, ..way(greedy, standard, Targets::Combined) }),
        (true, Options { combine: Some(first), ..way(plain, standard, Targets::Combined) }),
    ] {
        let mut session = Session::new(&engine, &options).unwrap();
        session.prompt(&PROMPT).unwrap();
        while session.step().unwrap().1 == State::Open {}
        let copied = session.stats().rows_copied;
        assert_eq!(copied > 0, reads, "{options:?}: {copied} rows");
        let described = session.describe();
        let of_models =
            described["models"].as_array().unwrap().iter().map(|model| model["rows_copied"].as_u64().unwrap());
        assert_eq!(of_models.sum::<u64>(), copied);
        total += copied;
        assert_eq!(engine.totals().lock().rows_copied, total);
    }
}

/// Rows that a failed round has read are counted too.
#[test]
fn rows_that_a_failed_round_has_read_are_counted() {
    let models = answering(&World::Related.models(2, 5), &Ways::default());
    let engine = Engine::new(models, Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap();
    let engine = Arc::new(engine);
    let fails = Arc::new(AtomicBool::new(false));
    let planted = fails.clone();
    let failing = Function::new(move |rows, out| {
        out.copy_from_slice(rows.next().flatten().expect("the first model is needed"));
        if planted.load(Ordering::Relaxed) { Err(Error::Callback("planted".into())) } else { Ok(()) }
    });
    let options = Options { combine: Some(failing), ..way(Sampling::PLAIN, Strategy::Standard, Targets::Combined) };
    let mut session = Session::new(&engine, &options).unwrap();
    session.prompt(&PROMPT).unwrap();
    session.step().unwrap();
    let before = session.stats().rows_copied;
    fails.store(true, Ordering::Relaxed);
    session.step().unwrap_err();
    assert!(session.stats().rows_copied > before);
    assert_eq!(engine.totals().lock().rows_copied, session.stats().rows_copied);
}
