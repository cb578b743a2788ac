//! Host work on rows of logits: the time of each part, and its share of the memory bandwidth.
//!
//! `cargo bench --bench kernels [-- FILTER]` prints divan's statistics, then a table of shares: the bytes that a part
//! moves in a second, over those of a plain sum of a row. For the table, all parts take turns, so that noise of the
//! machine affects all alike.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cos::decode::chance::{Chance, CounterRng, Key, Purpose};
use cos::decode::combine::Combination;
use cos::decode::policy::{Plan, Request, Strategy};
use cos::decode::verify;
use cos::learn::estimates::Estimates;
use cos::learn::observer::Observer;
use cos::plan::{choices::Choices, planner::Planner};

use cos::rows::{Candidates, Distribution, Row, Sampler, argmax, kernels};
use divan::Bencher;
use divan::counter::BytesCount;

const VOCABULARIES: [usize; 3] = [8_000, 32_000, 152_000];

/// Rows of two models for one position, and the buffers of a decoder.
struct Buffers {
    logits: [Vec<f32>; 2],
    distributions: [Distribution; 2],
    /// The probabilities of the first model.
    probabilities: Vec<f32>,
    out: Vec<f32>,
    candidates: Candidates,
}

impl Buffers {
    /// Rows like those of language models: a few likely tokens, and a wide bell of others.
    fn new(vocab_size: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut row = || -> Vec<f32> {
            let mut bell = || (0..6).map(|_| rng.f32() - 0.5).sum::<f32>();
            let mut row: Vec<f32> = (0..vocab_size).map(|_| 3.0 * bell() - 12.0).collect();
            (0..30).for_each(|rank| row[(rank * 7919) % vocab_size] = 4.0 * bell() - 0.2 * rank as f32);
            row
        };
        let logits = [row(), row()];
        let distributions = [0, 1].map(|model| Distribution::softmax(&logits[model]).expect("the row is finite"));
        let mut probabilities = vec![0.0; vocab_size];
        distributions[0].fill(&logits[0], &mut probabilities);
        let (out, candidates) = (vec![0.0; vocab_size], Candidates::new(vocab_size));
        Buffers { logits, distributions, probabilities, out, candidates }
    }

    fn process(&mut self, temperature: f32, top_k: i32, top_p: f32, min_p: f32) {
        let sampler = Sampler::new(temperature, top_k, top_p, min_p).expect("the sampler is valid");
        let _ = black_box(sampler.process(black_box(&self.logits[0]), &mut self.candidates));
    }

    fn combine(&mut self, combination: Combination) {
        let _ = black_box(combination.scores(|model| Row::Host(black_box(&self.logits[model])), &mut self.out, |_| ()));
    }
}

/// A part of the host's work.
struct Kernel {
    name: &'static str,
    /// The number of times that it reads or writes a whole row.
    rows: usize,
    run: fn(&mut Buffers),
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const KEY: Key = Key { position: 0, purpose: Purpose::Target, epoch: 0 };

const fn kernel(name: &'static str, rows: usize, run: fn(&mut Buffers)) -> Kernel {
    Kernel { name, rows, run }
}

#[rustfmt::skip]
const KERNELS: &[Kernel] = &[
    kernel("plain sum", 1, |rows| { black_box(kernels::sum(black_box(&rows.logits[0]))); }),
    kernel("maximum, checked", 1, |rows| { black_box(kernels::maximum(black_box(&rows.logits[0]))); }),
    kernel("greedy: best and margin", 1, |rows| { let _ = black_box(argmax(black_box(&rows.logits[0]))); }),
    kernel("sum of exponentials", 1, |rows| { black_box(kernels::sum_exp(black_box(&rows.logits[0]), 0.0, 1.0)); }),
    kernel("process: temperature", 2, |rows| rows.process(0.8, 0, 0.0, 0.0)),
    kernel("process: top-k 40", 1, |rows| rows.process(0.8, 40, 0.0, 0.0)),
    kernel("process: top-p 0.9", 2, |rows| rows.process(0.8, 0, 0.9, 0.0)),
    kernel("process: top-k 40, top-p 0.9", 1, |rows| rows.process(0.8, 40, 0.9, 0.0)),
    kernel("process: min-p 0.05", 1, |rows| rows.process(0.8, 0, 0.0, 0.05)),
    kernel("form a row", 3, |rows| rows.distributions[0].fill(black_box(&rows.logits[0]), &mut rows.out)),
    kernel("form a mixture of two", 7, |rows| {
        rows.out.fill(0.0);
        (0..2).for_each(|model| rows.distributions[model].add(black_box(&rows.logits[model]), 0.5, &mut rows.out));
    }),
    kernel("residual", 5, |rows| {
        black_box(verify::residual(black_box(&mut rows.out), &rows.distributions[1], &rows.logits[1]));
    }),
    kernel("draw from a row of logits", 1, |rows| {
        let row = Row::Host(&rows.logits[0]).weighted(&rows.distributions[0]);
        let _ = black_box(CounterRng::new(1).pick(KEY, black_box(&row)));
    }),
    kernel("draw from a residual", 2, |rows| {
        let _ = black_box(CounterRng::new(1).pick(KEY, black_box(&rows.probabilities[..])));
    }),
    kernel("scores: sum of two", 3, |rows| rows.combine(Combination::contrastive(2, 0.5, 0.0).expect("two models"))),
    kernel("scores: sum of two, masked", 4, |rows| {
        rows.combine(Combination::contrastive(2, 0.5, 0.1).expect("two models"));
    }),
    kernel("scores: greedy mixture of two", 9, |rows| {
        rows.combine(Combination::mixture(&[0.5, 0.5]).expect("two models"));
    }),
];

#[divan::bench(args = KERNELS, consts = VOCABULARIES)]
fn row<const VOCABULARY: usize>(bencher: Bencher, kernel: &Kernel) {
    let mut rows = Buffers::new(VOCABULARY);
    bencher.counter(BytesCount::of_many::<f32>(kernel.rows * VOCABULARY)).bench_local(|| (kernel.run)(&mut rows));
}

/// The least time of many, for each part.
fn times(vocab_size: usize) -> Vec<Duration> {
    let mut rows = Buffers::new(vocab_size);
    let mut times = vec![Duration::MAX; KERNELS.len()];
    for _ in 0..300 {
        for (kernel, least) in KERNELS.iter().zip(&mut times) {
            (kernel.run)(&mut rows); // each part starts with its own data in the processor's caches
            let started = Instant::now();
            (kernel.run)(&mut rows);
            *least = started.elapsed().min(*least);
        }
    }
    times
}

/// The planner's choice of a plan for a mixture of two or three models, with or without a drafter at a tenth of the
/// cost.
#[divan::bench(args = [(2, false), (2, true), (3, false), (3, true)])]
fn look(bencher: Bencher, (needed, drafter): (usize, bool)) {
    let models = needed + usize::from(drafter);
    let weights: Vec<f32> = (0..models).map(|model| if model < needed { 1.0 / needed as f32 } else { 0.0 }).collect();
    let combination = Combination::mixture(&weights).expect("the weights are valid");
    let cost = |model: usize| if model < needed { 1e-3 } else { 1e-4 };
    let passes = |model| (1..=16).map(|width| (width, cost(model) * (1.0 + 0.02 * width as f64))).collect();
    let mut observer = Observer::new(Estimates::new(&(0..models).map(passes).collect::<Vec<_>>()), Some(weights), 0);
    let mut random = fastrand::Rng::with_seed(1);
    for position in 0..500 {
        observer.record_commit(position, None);
        for model in 0..models {
            // Easy and hard stretches of text alternate.
            let likely = if position / 8 % 2 == 0 { 0.9 } else { 0.3 };
            let probability = if random.f32() < likely { 0.5 } else { 0.1 };
            observer.record_score(model, position, (probability, random.f32()));
        }
        observer.update();
    }
    let costs = vec![1; models];
    let request = Request {
        strategy: Strategy::Auto,
        targets: None,
        lengths: None,
        combination: &combination,
        greedy: false,
        log_probabilities: false,
        costs: &costs,
    };
    let choices = Choices::new(&request, &vec![true; models]);
    let planner = Planner::new(choices, Plan::STANDARD, None);
    bencher.with_inputs(|| (planner.clone(), observer.estimates().clone())).bench_values(
        |(mut planner, mut estimates)| {
            let plan = planner.review(&mut estimates);
            (planner, plan)
        },
    );
}

fn main() {
    divan::main();
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    println!("\nLeast time, GB/s, and share of a plain sum's bandwidth");
    println!("| part | rows moved |{}", VOCABULARIES.map(|size| format!(" {size} tokens |")).concat());
    println!("| --- | ---: |{}", " ---: |".repeat(VOCABULARIES.len()));
    let times = VOCABULARIES.map(times);
    for (index, kernel) in KERNELS.iter().enumerate() {
        print!("| {} | {} |", kernel.name, kernel.rows);
        for (size, times) in VOCABULARIES.iter().zip(&times) {
            let speed = |index: usize| (4 * size * KERNELS[index].rows) as f64 / times[index].as_nanos() as f64;
            let micros = times[index].as_nanos() as f64 / 1e3;
            print!(" {micros:.1} µs, {:.1}, {:.0}% |", speed(index), 100.0 * speed(index) / speed(0));
        }
        println!();
    }
}
