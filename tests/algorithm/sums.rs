//! Sums, edited rows and residuals of rows that answer questions, deferred as those on a GPU are.

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cos::error::Error;
use cos::rows::{
    Candidates, DeviceAnswers, DeviceEdits, DeviceRow, DeviceRows, DeviceSums, Distribution, Edits, Filter,
    PassUniforms, Row, RowToEdit, Term, maximum,
};

use crate::answers::{best, find, kept};

/// What was asked so far.
#[derive(Default)]
pub struct Asked {
    pub batches: AtomicUsize,
    pub questions: AtomicUsize,
    /// The most questions of a batch.
    pub most: AtomicUsize,
    /// Whether batches fail.
    pub fails: AtomicBool,
    /// Whether the next batch panics.
    pub panics: AtomicBool,
}

/// Parts of a sum or a residual, by which a question is known: addresses and scales.
type Parts = Vec<(u64, f64)>;

#[derive(Clone, PartialEq)]
enum Question {
    Sum(Parts, Option<(u64, f32)>, Filter, usize, Option<f64>),
    Residual(Parts, Option<usize>, Option<f64>),
}

/// A question, what it is about, and its outcome.
struct Open {
    question: Question,
    terms: Vec<Term>,
    judge: Option<(DeviceRow, f32)>,
    edits: Option<Edits>,
    outcome: Option<Result<(), Error>>,
}

pub struct HostSums {
    row: SumRow,
    residual: Vec<f64>,
    /// A sum, and a residual.
    open: [Option<Open>; 2],
    /// Whether rows with edits are asked for, and how that went.
    edits: Option<Option<Result<(), Error>>>,
    defers: bool,
    asked: Arc<Asked>,
}

/// A sum, or a row with edits, that answers questions.
struct SumRow {
    scores: Vec<f32>,
    filter: Filter,
    copied: Cell<u64>,
    /// Of a row with edits: where it is drawn from, if it is drawn from, and the token whose score was asked for.
    foreseen: Option<(Option<PassUniforms>, Option<usize>)>,
}

impl SumRow {
    fn new(scores: Vec<f32>, filter: Filter) -> Self {
        SumRow { scores, filter, copied: Cell::new(0), foreseen: None }
    }
}

/// Rows with edits, and those that were asked for.
pub struct HostEdits {
    rows: Vec<Option<(usize, SumRow)>>,
    asked: Vec<(usize, SumRow)>,
}

impl HostEdits {
    pub fn new(slots: usize) -> Self {
        HostEdits { rows: (0..slots).map(|_| None).collect(), asked: Vec::new() }
    }
}

impl DeviceEdits for HostEdits {
    fn slots(&self) -> usize {
        self.rows.len()
    }

    fn row(&self, position: usize) -> Option<Row<'_>> {
        let (of, row) = self.rows[position % self.rows.len()].as_ref()?;
        (*of == position).then_some(Row::Device(row, 0))
    }

    fn awaits(&self) -> bool {
        !self.asked.is_empty()
    }

    fn settle(&mut self, outcome: &Result<(), Error>) {
        for (position, row) in self.asked.drain(..).filter(|_| outcome.is_ok()) {
            let slot = position % self.rows.len();
            self.rows[slot] = Some((position, row));
        }
    }

    fn truncate(&mut self, len: usize) {
        self.asked.clear();
        self.rows.iter_mut().for_each(|row| *row = row.take().filter(|(position, _)| *position <= len));
    }

    fn forget(&mut self) {
        self.asked.clear();
        self.rows.fill_with(|| None);
    }

    fn copied(&self) -> u64 {
        0
    }

    fn bytes(&self) -> usize {
        0
    }
}

impl HostSums {
    pub fn new(vocab: usize, asked: &Arc<Asked>) -> Self {
        let row = SumRow::new(vec![0.0; vocab], Filter::plain(1.0));
        HostSums { row, residual: Vec::new(), open: [None, None], edits: None, defers: false, asked: asked.clone() }
    }

    /// Ask, unless that was answered.
    fn ask(&mut self, kind: usize, open: Open) -> Result<(), Error> {
        if let Some(known) = &self.open[kind]
            && known.question == open.question
            && let Some(outcome) = &known.outcome
        {
            return outcome.clone();
        }
        self.open[kind] = Some(open);
        if self.defers {
            return Err(Error::Internal("a question got out".into()));
        }
        self.settle(&Ok(()));
        Ok(())
    }

    fn make(&mut self, kind: usize) {
        let Some(Open { question, terms, judge, edits, .. }) = &self.open[kind] else { return };
        // SAFETY: rows stay until their sequences run again, and are as long as the vocabulary.
        let score = |row: &DeviceRow, token: usize| unsafe { *(row.address() as *const f32).add(token) };
        let vocab = self.row.scores.len();
        let parts = |token: usize| terms.iter().map(move |term| (term, score(&term.row, token)));
        match question {
            Question::Sum(.., filter, _, _) => {
                self.row.filter = *filter;
                for token in 0..vocab {
                    let implausible = judge.as_ref().is_some_and(|(row, floor)| score(row, token) < *floor);
                    let impossible = implausible || parts(token).any(|(_, score)| score == f32::NEG_INFINITY);
                    let sum = parts(token).map(|(term, score)| term.of(token, score)).sum::<f64>() as f32;
                    self.row.scores[token] = if impossible { f32::NEG_INFINITY } else { sum };
                }
                edits.iter().for_each(|edits| edits.apply(&mut self.row.scores, &mut Candidates::default()));
            }
            Question::Residual(_, certain, _) => {
                let targets = if certain.is_some() { terms.len() } else { terms.len() - 1 };
                let weight = |token: usize| {
                    let of = |(index, (term, score)): (usize, (&Term, f32))| {
                        if index < targets { term.of(token, score) } else { -term.of(token, score) }
                    };
                    if *certain == Some(token) { 0.0 } else { parts(token).enumerate().map(of).sum::<f64>().max(0.0) }
                };
                self.residual = (0..vocab).map(weight).collect();
            }
        }
    }
}

fn known(terms: &[Term]) -> Parts {
    terms.iter().map(|term| (term.row.address(), term.scale)).collect()
}

impl DeviceSums for HostSums {
    fn edit(&mut self, to_edit: RowToEdit<'_>, edited: &mut dyn DeviceEdits) -> bool {
        let RowToEdit { row, position, edits, filter, token, uniforms } = to_edit;
        let edited: &mut dyn Any = edited;
        let edited: &mut HostEdits = edited.downcast_mut().unwrap();
        // SAFETY: as in `make`.
        let scores = unsafe { std::slice::from_raw_parts(row.address() as *const f32, self.row.scores.len()) };
        let mut scores = scores.to_vec();
        edits.apply(&mut scores, &mut Candidates::default());
        let row = SumRow { foreseen: Some((uniforms, token)), ..SumRow::new(scores, filter) };
        let slot = |position: usize| position % edited.rows.len();
        let is_free = edited.asked.iter().all(|(other, _)| slot(*other) != slot(position));
        assert!(is_free, "two rows are put into one slot at the same time");
        edited.asked.push((position, row));
        self.edits = Some(None);
        true
    }

    fn make_edited(&mut self) -> Result<(), Error> {
        match self.edits.as_mut().expect("rows are asked for") {
            Some(outcome) => outcome.clone(),
            None if self.defers => Err(Error::Internal("a question got out".into())),
            outcome => outcome.insert(Ok(())).clone(),
        }
    }

    fn add(
        &mut self,
        parts: &mut dyn Iterator<Item = Term>,
        judge: Option<(DeviceRow, f32)>,
        edits: Option<&Edits>,
        filter: Filter,
        token: usize,
        uniform: Option<f64>,
    ) -> Result<bool, Error> {
        let terms: Vec<Term> = parts.collect();
        let about = judge.map(|(row, floor)| (row.address(), floor));
        let question = Question::Sum(known(&terms), about, filter, token, uniform);
        let edits = edits.cloned();
        self.ask(0, Open { question, terms, judge, edits, outcome: None }).map(|()| true)
    }

    fn sum(&self) -> Row<'_> {
        Row::Device(&self.row, 0)
    }

    fn residual(
        &mut self,
        parts: &mut dyn Iterator<Item = Term>,
        certain: Option<usize>,
        uniform: Option<f64>,
    ) -> Result<Option<f64>, Error> {
        let terms: Vec<Term> = parts.collect();
        let question = Question::Residual(known(&terms), certain, uniform);
        self.ask(1, Open { question, terms, judge: None, edits: None, outcome: None })?;
        Ok(Some(self.residual.iter().sum()))
    }

    fn draw_residual(&self, share: f64) -> Result<usize, Error> {
        let Some(Open { question: Question::Residual(.., uniform), .. }) = &self.open[1] else { panic!("no residual") };
        let total: f64 = self.residual.iter().sum();
        assert_eq!(uniform.map(|uniform| uniform * total), Some(share), "a draw that was not foreseen");
        Ok(find(&self.residual, share).expect("a share of the whole"))
    }

    fn bytes(&self) -> usize {
        0
    }

    fn defer(&mut self) {
        self.defers = true;
    }

    fn asks(&self) -> bool {
        self.edits == Some(None) || self.open.iter().flatten().any(|open| open.outcome.is_none())
    }

    fn settle(&mut self, outcome: &Result<(), Error>) {
        if let Some(made) = &mut self.edits {
            made.get_or_insert(outcome.clone());
        }
        for kind in 0..2 {
            if self.open[kind].as_ref().is_some_and(|open| open.outcome.is_none()) {
                if outcome.is_ok() {
                    self.make(kind);
                }
                self.open[kind].as_mut().unwrap().outcome = Some(outcome.clone());
            }
        }
    }

    fn forget(&mut self) {
        (self.open, self.edits) = ([None, None], None);
    }

    fn answers(&self) -> Box<dyn DeviceAnswers> {
        Box::new(HostAnswers { taken: 0, asked: self.asked.clone() })
    }
}

/// Counts questions; their answers are made when they are settled.
struct HostAnswers {
    taken: usize,
    asked: Arc<Asked>,
}

impl DeviceAnswers for HostAnswers {
    fn take(&mut self, sums: &dyn DeviceSums) {
        assert!(sums.asks() && (sums as &dyn Any).is::<HostSums>());
        self.taken += 1;
    }

    fn run(&mut self) -> Result<(), Error> {
        let taken = std::mem::take(&mut self.taken);
        assert!(taken > 0);
        self.asked.batches.fetch_add(1, Ordering::Relaxed);
        self.asked.questions.fetch_add(taken, Ordering::Relaxed);
        self.asked.most.fetch_max(taken, Ordering::Relaxed);
        assert!(!self.asked.panics.swap(false, Ordering::Relaxed), "planted");
        if self.asked.fails.load(Ordering::Relaxed) { Err(Error::Runtime("planted".into())) } else { Ok(()) }
    }
}

impl DeviceRows for SumRow {
    fn scores(&self, _: usize) -> Result<&[f32], Error> {
        self.copied.set(self.copied.get() + 1);
        Ok(&self.scores)
    }

    fn score(&self, _: usize, token: usize) -> Result<f32, Error> {
        Ok(self.scores[token])
    }

    fn knows(&self, _: usize, token: usize) -> bool {
        let is_drawn = |uniforms: Option<PassUniforms>| {
            let (kept, weights) = kept(&self.scores, self.filter);
            uniforms.into_iter().flatten().any(|uniform| find(&weights, uniform * kept.total()) == Some(token))
        };
        let knows = |(uniforms, told)| told == Some(token) || is_drawn(uniforms);
        maximum(&self.scores).is_err() || self.foreseen.is_none_or(knows)
    }

    fn best(&self, _: usize) -> Option<(usize, f32, f32)> {
        best(&self.scores)
    }

    fn distribution(&self, _: usize, filter: Filter) -> Option<Result<Distribution, Error>> {
        if let Err(error) = maximum(&self.scores) {
            return Some(Err(error));
        }
        Some(Ok(kept(&self.scores, self.filter).0)).filter(|_| self.filter == filter)
    }

    fn draw(&self, _: usize, share: f64) -> Result<Option<usize>, Error> {
        let (kept, weights) = kept(&self.scores, self.filter);
        if let Some((uniforms, _)) = self.foreseen {
            let foresees = uniforms.into_iter().flatten().any(|uniform| uniform * kept.total() == share);
            assert!(foresees, "a draw that was not foreseen");
        }
        Ok(find(&weights, share))
    }

    fn place(&self, _: usize) -> Option<DeviceRow> {
        let max = self.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Some(DeviceRow::new(0, self.scores.as_ptr() as u64, 0, max))
    }

    fn copied(&self) -> u64 {
        self.copied.get()
    }

    fn sums(&self) -> Option<Box<dyn DeviceSums>> {
        None
    }

    fn edits(&self, _: usize) -> Option<Box<dyn DeviceEdits>> {
        None
    }
}
