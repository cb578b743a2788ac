//! What the benchmark of serving computes: arrivals, lengths, percentiles, collapse, and tiny loads.

#[path = "../../benches/serve/drive.rs"]
mod drive;
#[path = "../../benches/serve/load.rs"]
mod load;
#[path = "../../benches/serve/tally.rs"]
mod tally;

use std::sync::Arc;

use cos::config::Combine;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::Options;
use load::{Arrivals, Load, Mix, Next};
use tally::{Served, collapsed, figures, held, percentile, waiting};

use super::{constant_models, near};

fn mix(long: f64) -> Mix {
    Mix { prompts: vec![vec![1, 2], vec![0, 1, 2]], long, long_lengths: 7..20, tokens: 6, seed: 3 }
}

#[test]
fn arrivals_are_a_poisson_process() {
    const COUNT: usize = 20_000;
    let times: Vec<f64> = Arrivals::new(4.0, 7).take(COUNT).collect();
    assert_eq!(times, Arrivals::new(4.0, 7).take(COUNT).collect::<Vec<_>>());
    near(times[COUNT - 1] / COUNT as f64, 0.25, 0.03);
    // The variance of a gap is the square of its mean, and a third of all gaps are longer than the mean.
    let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|&gap| gap >= 0.0));
    near(gaps.iter().map(|gap| (gap - 0.25).powi(2)).sum::<f64>() / gaps.len() as f64, 0.0625, 0.1);
    near(gaps.iter().filter(|&&gap| gap > 0.25).count() as f64 / gaps.len() as f64, (-1.0f64).exp(), 0.03);
}

#[test]
fn lengths_are_those_of_the_mix() {
    let requests = |mix: &Mix| (0..4000).map(|index| mix.request(index)).collect::<Vec<_>>();
    let drawn = requests(&mix(0.25));
    assert_eq!(drawn, requests(&mix(0.25)));
    assert!(drawn.iter().all(|(_, tokens)| (3..=9).contains(tokens)));
    near(drawn.iter().map(|drawn| drawn.1 as f64).sum::<f64>() / drawn.len() as f64, 6.0, 0.02);
    let long: Vec<usize> = drawn.iter().map(|drawn| drawn.0.len()).filter(|&length| length > 3).collect();
    near(long.len() as f64 / drawn.len() as f64, 0.25, 0.1);
    assert!(long.contains(&7) && long.contains(&19) && long.iter().all(|length| (7..20).contains(length)));
}

#[test]
fn a_closed_loop_ends_when_all_requests_of_its_window_have() {
    let mut load = Load::new(mix(0.0), 1.0..2.0, None);
    let mut ask = |now: f64| match load.next(now) {
        Next::Ask(request) => request.arrived,
        Next::Wait(_) => panic!("a closed loop never waits"),
    };
    let arrived = [0.0, 1.5, 2.5].map(&mut ask);
    assert_eq!(arrived, [0.0, 1.5, 2.5]);
    assert!(!load.is_over(3.0));
    load.ended(0.0);
    load.ended(2.5);
    assert!(!load.is_over(3.0));
    load.ended(1.5);
    assert!(load.is_over(3.0) && !load.is_over(1.9));
}

#[test]
fn an_open_loop_serves_each_arrival_of_its_window_even_late() {
    let mut load = Load::new(mix(0.0), 1.0..2.0, Some(50.0));
    assert!(matches!(load.next(0.0), Next::Wait(at) if at > 0.0));
    let mut served = Vec::new();
    while !load.is_over(9.0) {
        let Next::Ask(request) = load.next(9.0) else { panic!("all of them have arrived") };
        load.ended(request.arrived);
        served.push(request.arrived);
    }
    // Nobody could be served before, and the last one is the last one of the window.
    let expected: Vec<f64> = Arrivals::new(50.0, 3).take_while(|&at| at < 2.0).collect();
    assert_eq!(served, expected);
}

fn served(arrived: f64, started: f64, bursts: &[(f64, usize)], bytes: usize) -> Served {
    Served { arrived, started, bursts: bursts.to_vec(), bytes }
}

#[test]
fn figures_are_what_clients_saw() {
    let all = [
        served(0.5, 0.5, &[(0.9, 2), (1.1, 1), (1.3, 3)], 10),
        served(1.0, 1.2, &[(1.5, 1), (1.6, 3), (2.5, 1)], 100),
        served(1.5, 2.0, &[(2.1, 2)], 1000),
        served(2.1, 2.6, &[(2.7, 5)], 100),
    ];
    let figures = figures(&[all.to_vec()], &(1.0..2.0));
    assert_eq!((&figures.tokens_per_second[..], &figures.requests_per_second[..]), (&[8.0][..], &[1.0][..]));
    assert_eq!(figures.requests, 2);
    near(figures.first[0], 550.0, 1e-9);
    near(figures.first[1], 599.0, 1e-9);
    near(figures.between[0], 500.0, 1e-9); // 100 and 900: tokens of a burst are one arrival
    assert_eq!(figures.each.map(f64::round), [250.0; 2]); // four tokens in a second
    assert_eq!((figures.bytes, held(&all[..2])), (1100, 110));
    near(waiting(&all, &(1.0..2.0)), 0.7, 1e-9);
}

#[test]
fn percentiles_are_those_of_numpy() {
    assert_eq!([0.0, 50.0, 99.0, 100.0].map(|percent| percentile(&[1.0, 2.0, 4.0], percent)), [1.0, 2.0, 3.96, 4.0]);
    assert_eq!(percentile(&[5.0], 99.0), 5.0);
    assert!(percentile(&[], 50.0).is_nan());
}

/// Requests that arrive at a rate to one server with a queue, each of which takes so long.
fn queue(rate: f64, seconds: f64) -> Vec<Served> {
    let mut free = 0.0f64;
    let serve = |arrived: f64| {
        let started = free.max(arrived);
        free = started + seconds;
        served(arrived, started, &[(free, 1)], 0)
    };
    Arrivals::new(rate, 5).take_while(|&at| at < 100.0).map(serve).collect()
}

#[test]
fn a_queue_that_grows_all_the_time_is_collapse() {
    let window = 20.0..100.0;
    for (rate, expected) in [(5.0, false), (9.0, false), (12.0, true), (30.0, true)] {
        assert_eq!(collapsed(&queue(rate, 0.1), &window), expected, "{rate}");
    }
    // One slow request makes a queue that grows, and then shrinks.
    let mut once = queue(5.0, 0.1);
    once.extend((0..50).map(|index| served(70.0, 70.0 + 0.2 * f64::from(index), &[(90.0, 1)], 0)));
    assert!(!collapsed(&once, &window));
}

#[test]
fn a_tiny_load_is_served() {
    let models = constant_models(&[[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]);
    let engine = Engine::new(models, Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap();
    let options = Options { strategy: Strategy::Cos, stop_tokens: Some(Vec::new()), ..Options::default() };
    let engine = Arc::new(engine);
    for (rate, most) in [(None, 3), (Some(200.0), 2)] {
        for drive in [drive::by_one, drive::by_threads] {
            let window = 0.02..0.1;
            let all = drive(&engine, &options, most, Load::new(mix(0.0), window.clone(), rate)).unwrap();
            let measured: Vec<&Served> = all.iter().filter(|request| window.contains(&request.arrived)).collect();
            assert!(rate.is_none() || !measured.is_empty());
            for request in measured {
                let tokens: usize = request.bursts.iter().map(|burst| burst.1).sum();
                assert!((3..=9).contains(&tokens) && request.arrived <= request.started && request.bytes > 0);
                assert!(request.bursts.is_sorted_by(|a, b| a.0 <= b.0) && request.started <= request.bursts[0].0);
            }
        }
    }
}
