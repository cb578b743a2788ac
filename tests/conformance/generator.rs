//! The random numbers themselves are uniform, and independent wherever two of them are used together.

use cos::decode::chance::{Chance, CounterRng, Key, Purpose};

use super::results::{Comparison, Section};
use super::{Progress, parallel};

const PURPOSES: [Purpose; 5] =
    [Purpose::Route, Purpose::Proposal, Purpose::Acceptance, Purpose::Residual, Purpose::Target];

/// Pairs of numbers are counted in a grid with so many cells on each side.
const SIDE: usize = 8;

type Pair = Box<dyn Fn(u64) -> (f64, f64) + Send + Sync>;

/// Pairs of numbers that a session uses together. `n` counts seeds or positions.
fn pairs() -> Vec<(String, Pair)> {
    let uniform = |seed: u64, position: u64, purpose: Purpose, epoch: u32| {
        CounterRng::new(seed).uniform(Key { position: position as usize, purpose, epoch })
    };
    let mut pairs: Vec<(String, Pair)> = Vec::new();
    for (index, &a) in PURPOSES.iter().enumerate() {
        for &b in &PURPOSES[index + 1..] {
            let pair = move |n: u64| (uniform(n, 5, a, 0), uniform(n, 5, b, 0));
            pairs.push((format!("{a:?} and {b:?} of one position"), Box::new(pair)));
        }
        pairs.push((
            format!("{a:?} of neighbouring positions"),
            Box::new(move |n| (uniform(7, 2 * n, a, 0), uniform(7, 2 * n + 1, a, 0))),
        ));
        pairs.push((
            format!("{a:?} before and after a rejection"),
            Box::new(move |n| (uniform(n, 5, a, 0), uniform(n, 5, a, 1))),
        ));
        pairs.push((
            format!("{a:?} of neighbouring seeds"),
            Box::new(move |n| (uniform(2 * n, 5, a, 0), uniform(2 * n + 1, 5, a, 0))),
        ));
        let fork = move |n: u64, forks: u64| {
            CounterRng::new(n).fork(n, forks).uniform(Key { position: 5, purpose: a, epoch: 0 })
        };
        pairs.push((format!("{a:?} of a session and its fork"), Box::new(move |n| (uniform(n, 5, a, 0), fork(n, 0)))));
        pairs.push((format!("{a:?} of two forks"), Box::new(move |n| (fork(n, 0), fork(n, 1)))));
    }
    pairs
}

fn square((name, pair): &(String, Pair), draws: u64) -> Comparison {
    let mut counts = [0u64; SIDE * SIDE];
    for n in 0..draws {
        let (a, b) = pair(n);
        counts[(a * SIDE as f64) as usize * SIDE + (b * SIDE as f64) as usize] += 1;
    }
    let cell = |(index, &count): (usize, &u64)| {
        (format!("[{}, {}]", index / SIDE, index % SIDE), 1.0 / (SIDE * SIDE) as f64, count)
    };
    Comparison::new(name.clone(), counts.iter().enumerate().map(cell))
}

/// Decisions made from the numbers: acceptances with a probability, and picks by weights that need not sum to 1.
fn outcomes(draws: u64) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for probability in [0.05, 0.5, 0.95] {
        let key = |n: u64| Key { position: n as usize, purpose: Purpose::Acceptance, epoch: 3 };
        let accepted = (0..draws).filter(|&n| CounterRng::new(11).accept(key(n), probability)).count() as u64;
        let cells = [("accepted", probability, accepted), ("rejected", 1.0 - probability, draws - accepted)];
        let cells = cells.map(|(label, p, count)| (label.to_string(), p, count));
        comparisons.push(Comparison::new(format!("accepted with probability {probability}"), cells));
    }
    // Weights like those of a residual: with gaps, a sum far from 1, and longer than a block of the running sum.
    let weights: Vec<f32> =
        (0..150).map(|token| if token % 3 == 1 { 0.0 } else { (token % 7) as f32 * 1e-3 }).collect();
    let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    for purpose in [Purpose::Residual, Purpose::Target] {
        let mut counts = vec![0u64; weights.len()];
        for n in 0..draws {
            counts[CounterRng::new(n).pick(Key { position: 9, purpose, epoch: 0 }, &weights[..]).unwrap()] += 1;
        }
        let cells = weights.iter().zip(counts).enumerate();
        let cells = cells.map(|(token, (&weight, count))| (token.to_string(), f64::from(weight) / total, count));
        comparisons.push(Comparison::new(format!("{purpose:?} picked by weights of sum {total:.3}"), cells));
    }
    comparisons
}

/// Repeats the comparison at an index of the section. Its numbers depend on nothing but the index.
pub fn repeat(index: usize, draws: u64) -> Comparison {
    match pairs().get(index) {
        Some(pair) => square(pair, draws),
        None => outcomes(draws).swap_remove(index - pairs().len()),
    }
}

pub fn run(draws: u64, progress: &dyn Progress) -> Section {
    let pairs = pairs();
    progress.start("random numbers", pairs.len() as u64 + 1);
    let mut comparisons = parallel(&pairs, |pair| {
        let comparison = square(pair, draws);
        progress.advance();
        comparison
    });
    comparisons.extend(outcomes(draws));
    progress.advance();
    Section {
        title: "Random numbers".into(),
        about: "Every proof takes the numbers of a session for uniform and independent. They are ChaCha8 blocks of \
                (seed, position, purpose, epoch), counted here in pairs: two purposes of one position, neighbouring \
                positions, neighbouring seeds, before and after a rejection, forks of one seed; and outcomes made of \
                them."
            .into(),
        headline: format!("{} kinds of pairs and outcomes, {draws} draws each", comparisons.len()),
        comparisons,
        ..Section::default()
    }
}
