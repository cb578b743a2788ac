//! Sessions that arrive at random, whatever the machine gets done: they join and leave the calls of one thread.

use cos::engine::session::{Options, Session};

use super::machine::{Fixed, Machine, Passes, Simulation, uniform};
use crate::common::World;

/// Poisson arrivals.
struct Traffic {
    seed: u64,
    sessions: usize,
    /// Sessions in a second.
    rate: f64,
    /// Least and most tokens of prompts and of what follows them.
    prompts: [usize; 2],
    outputs: [usize; 2],
}

/// A session of the traffic.
struct Arrival {
    at: f64,
    prompt: usize,
    output: usize,
}

/// What became of the traffic.
#[derive(Debug)]
struct Report {
    /// Tokens in a second, from the first arrival to the last end.
    throughput: f64,
    /// Most sessions at the same time.
    most: usize,
    /// Microseconds for each token of a session, from its arrival to its end: the mean, and the most of all sessions.
    token: f64,
    slowest: f64,
}

impl Traffic {
    fn arrivals(&self) -> Vec<Arrival> {
        let mut at = 0.0;
        let arrival = |index: usize| {
            let draw = |which: usize| uniform(self.seed, 3 * index + which);
            let between = |[least, most]: [usize; 2], which| least + (draw(which) * (most + 1 - least) as f64) as usize;
            at += -1e6 / self.rate * (1.0 - draw(0)).ln();
            Arrival { at, prompt: between(self.prompts, 1), output: between(self.outputs, 2) }
        };
        (0..self.sessions).map(arrival).collect()
    }

    fn run(&self, simulation: &Simulation, options: &Options) -> Report {
        let arrivals = self.arrivals();
        let begun = simulation.now();
        let (mut sessions, mut numbers) = (Vec::<Session>::new(), Vec::<usize>::new());
        let (mut next, mut most, mut tokens, mut times, mut slowest) = (0, 0, 0, 0.0, 0.0f64);
        while next < arrivals.len() || !sessions.is_empty() {
            if sessions.is_empty() {
                simulation.idle_until(begun + arrivals[next].at);
            }
            while let Some(arrival) = arrivals.get(next).filter(|arrival| begun + arrival.at <= simulation.now()) {
                let options = Options { max_tokens: arrival.output, ..options.clone() };
                sessions.push(simulation.session(next, arrival.prompt, &options));
                numbers.push(next);
                next += 1;
            }
            most = most.max(sessions.len());
            tokens += simulation.step(&mut sessions);
            let now = simulation.now() - begun;
            for index in (0..sessions.len()).rev() {
                if !sessions[index].decoder().is_open() {
                    sessions.swap_remove(index);
                    let Arrival { at, output, .. } = arrivals[numbers.swap_remove(index)];
                    let time = (now - at) / output as f64;
                    (times, slowest) = (times + time, slowest.max(time));
                }
            }
        }
        let throughput = 1e6 * tokens as f64 / (simulation.now() - begun);
        Report { throughput, most, token: times / arrivals.len() as f64, slowest }
    }

    /// What `standard` and `auto` make of it, on a machine that knows nothing.
    fn compare(&self) -> [Report; 2] {
        let machine = Machine::mixture(World::Related, 1.0, [Passes::new(300.0, 1.0, 64); 2]);
        let reports = [machine.options(Fixed::STANDARD, 0), machine.auto(0)].map(|of| self.run(&machine.start(), &of));
        println!("{} sessions a second: {reports:?}", self.rate);
        reports
    }
}

/// The machine could decode 230,000 tokens in a second by `standard`, if thousands of sessions were always there.
#[test]
fn fewer_are_there_at_once() {
    for (rate, faster) in [(500.0, 1.5), (2_000.0, 1.5), (5_000.0, 2.0), (7_500.0, 2.0)] {
        let traffic = Traffic { seed: 5, sessions: 3_000, rate, prompts: [4, 24], outputs: [8, 56] };
        let [standard, auto] = traffic.compare();
        assert!(auto.throughput >= standard.throughput && auto.most < standard.most, "{rate}");
        assert!(faster * auto.token < standard.token, "{rate}: {} against {}", auto.token, standard.token);
        // Nobody takes three times as long as others for a token, wait and prompt included.
        assert!(auto.slowest < 3.0 * auto.token, "{rate}: {} and {}", auto.token, auto.slowest);
    }
}

#[test]
fn ten_thousand_arrive_at_once() {
    let traffic = Traffic { seed: 6, sessions: 10_000, rate: 1e6, prompts: [4, 12], outputs: [4, 28] };
    let [standard, auto] = traffic.compare();
    assert!(standard.most > 9_900 && auto.most > 9_900);
    assert!(auto.throughput > 1.05 * standard.throughput);
}
