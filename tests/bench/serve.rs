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
use load::{Load, Mix, Next, Poisson};
use tally::{Measurement, Served, collapsed, figures, held, percentile, waiting};

use super::{constant_models, near};

fn mix(long: f64) -> Mix {
    Mix { prompts: vec![vec![1, 2], vec![0, 1, 2]], long, long_lengths: 7..20, tokens: 6, seed: 3 }
}

#[test]
fn arrivals_are_a_poisson_process() {
    const COUNT: usize = 20_000;
    let times: Vec<f64> = Poisson::new(4.0, 7).take(COUNT).collect();
    assert_eq!(times, Poisson::new(4.0, 7).take(COUNT).collect::<Vec<_>>());
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

/// Ask at these times, and serve each request at once.
fn serve_at(load: &mut Load, times: &[f64]) -> Vec<usize> {
    let serve = |&now: &f64| match load.next(now) {
        Next::Ask(request) => {
            assert_eq!(request.arrived, now);
            load.ended();
            request.tokens
        }
        Next::Wait(_) => panic!("a closed loop never waits"),
    };
    times.iter().map(serve).collect()
}

#[test]
fn a_closed_loop_serves_as_many_texts_as_clients_twice() {
    let mut load = Load::closed(mix(0.0), 2, 1.0);
    let whole: Vec<usize> = (0..4).map(|index| mix(0.0).request(index).1).collect();
    let tokens = serve_at(&mut load, &[0.1]);
    assert!(tokens[0] <= whole[0] && !load.is_over(0.4));
    serve_at(&mut load, &[0.4]);
    assert!(!load.is_over(0.5)); // begins
    assert_eq!(serve_at(&mut load, &[0.6]), whole[2..3]);
    assert!(!load.is_over(1.6)); // only one has been served again
    serve_at(&mut load, &[1.6]);
    assert!(load.is_over(1.7) && load.is_over(9.0));
    assert_eq!((load.window(), load.left()), (0.5..1.7, vec![]));
    // Here the seconds are what is waited for.
    let mut load = Load::closed(mix(0.0), 1, 1.0);
    serve_at(&mut load, &[0.1, 0.2]);
    assert!(!load.is_over(0.3));
    serve_at(&mut load, &[0.4, 0.5]);
    assert!(!load.is_over(1.2) && load.is_over(1.3));
}

#[test]
fn an_open_loop_serves_arrivals_in_turn_and_says_what_is_left() {
    let mut load = Load::open(mix(0.0), 50.0, 1.0);
    assert!(matches!(load.next(0.0), Next::Wait(at) if at > 0.0));
    assert!(!load.is_over(0.25));
    let mut times = Vec::new();
    for _ in 0..20 {
        let Next::Ask(request) = load.next(9.0) else { panic!("all of them have arrived") };
        times.push(request.arrived);
    }
    assert!(load.is_over(1.25));
    times.extend(load.left());
    assert_eq!(times, Poisson::new(50.0, 3).take_while(|&at| at < 1.25).collect::<Vec<_>>());
}

fn served(arrived: f64, started: f64, bursts: &[(f64, usize)], bytes: usize) -> Served {
    Served { arrived, started, bursts: bursts.to_vec(), whole: true, bytes }
}

#[test]
fn figures_are_what_clients_saw() {
    let all = [
        served(0.5, 0.5, &[(0.9, 2), (1.1, 1), (1.3, 3)], 10),
        served(1.0, 1.2, &[(1.5, 1), (1.6, 3), (2.5, 1)], 100),
        served(1.5, 2.0, &[(2.1, 2)], 1000),
        served(2.1, 2.6, &[(2.7, 5)], 100),
    ];
    let figures = figures(&[Measurement { served: all.to_vec(), window: 1.0..2.0 }]);
    assert_eq!((&figures.tokens_per_second[..], &figures.requests_per_second[..]), (&[8.0][..], &[1.0][..]));
    // The first token of one request came within the window, and the last one of another.
    assert_eq!((figures.requests, figures.first), (1, [500.0; 2]));
    // 200, 200 and 100: tokens of a burst are one arrival.
    near(figures.between[0], 200.0, 1e-9);
    near(figures.each[0], 80.0, 1e-9);
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
    Poisson::new(rate, 5).take_while(|&at| at < 100.0).map(serve).collect()
}

#[test]
fn a_queue_that_grows_all_the_time_is_collapse() {
    let measured = |served| Measurement { served, window: 20.0..100.0 };
    for (rate, expected) in [(5.0, false), (9.0, false), (12.0, true), (30.0, true)] {
        assert_eq!(collapsed(&measured(queue(rate, 0.1))), expected, "{rate}");
    }
    // Queues that grow and go away again, even if the last one is still there.
    let mut bursts = queue(5.0, 0.1);
    for at in [45.0, 85.0] {
        bursts.extend((0..100).map(|index| served(at, at + 0.15 * f64::from(index), &[(100.0, 1)], 0)));
    }
    assert!(!collapsed(&measured(bursts)));
}

#[test]
fn a_tiny_load_is_served() {
    let models = constant_models(&[[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]);
    let engine = Engine::new(models, Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap();
    let options = Options { strategy: Strategy::Cos, stop_tokens: Some(Vec::new()), ..Options::default() };
    let engine = Arc::new(engine);
    for (rate, most) in [(None, 3), (Some(200.0), 2)] {
        for drive in [drive::by_one, drive::by_threads] {
            let load = match rate {
                None => Load::closed(mix(0.0), most, 0.05),
                Some(rate) => Load::open(mix(0.0), rate, 0.05),
            };
            let Measurement { served, window } = drive(&engine, &options, most, load).unwrap();
            assert!(window.end - window.start >= 0.05);
            for request in served.iter().filter(|request| request.whole) {
                let tokens: usize = request.bursts.iter().map(|burst| burst.1).sum();
                assert!((1..=9).contains(&tokens) && request.arrived <= request.started && request.bytes > 0);
                assert!(request.bursts.is_sorted_by(|a, b| a.0 <= b.0) && request.started <= request.bursts[0].0);
            }
            let ended = served.iter().filter(|request| request.whole).count();
            assert!(rate.is_some() || ended >= 2 * most);
        }
    }
}
