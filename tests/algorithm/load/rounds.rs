//! What a round counts as having taken.

use cos::config::Combine;
use cos::engine::many::step_many;

use super::machine::{Machine, Passes};
use crate::common::World;

const SESSIONS: usize = 8;

/// One thread serves all sessions, and takes a moment for the tokens of each. Nobody goes on before all are served, so
/// the rounds of each session take all the time that passes.
#[test]
fn rounds_take_all_the_time_of_a_call() {
    // With one model there is one plan.
    let (passes, combine) = (vec![Passes::new(300.0, 5.0, 0)], Combine::Target { model: 0 });
    let mixture = Machine::mixture(World::Related, 1.0, [passes[0]; 2]);
    let machine = Machine { passes, combine, ..mixture };
    let (simulation, options) = (machine.start(), machine.auto(0));
    let mut sessions: Vec<_> = (0..SESSIONS).map(|number| simulation.session(number, 4, &options)).collect();
    let mut run = |calls: usize| {
        for _ in 0..calls {
            step_many(&mut sessions, |_, state| {
                state.unwrap();
                simulation.idle_until(simulation.now() + 20.0);
            });
        }
        let rounds: u64 = sessions.iter().map(|session| session.stats().plan_times.planned_ns).sum();
        (rounds as f64 / 1e3, simulation.now())
    };
    let (before, began) = run(20);
    let (after, ended) = run(200);
    let share = (after - before) / (SESSIONS as f64 * (ended - began));
    assert!((0.97..1.01).contains(&share), "{share} of the time");
}

/// A session that has ended may stay among the others. What they take is nothing that it waits for.
#[test]
fn sessions_that_have_ended_count_nothing() {
    let machine = Machine::mixture(World::Related, 1.0, [Passes::new(300.0, 5.0, 0); 2]);
    let simulation = machine.start();
    let new = |number| simulation.session(number, 4, &machine.auto(if number < 4 { 12 } else { 0 }));
    let mut sessions: Vec<_> = (0..SESSIONS).map(new).collect();
    let mut run = |calls: usize| {
        (0..calls).for_each(|_| _ = simulation.step(&mut sessions));
        let counts = sessions.iter().map(|session| session.stats());
        counts.map(|stats| (stats.plan_times.planned_ns, stats.total_ns)).collect::<Vec<_>>()
    };
    let (before, after) = (run(100), run(100));
    assert_eq!(before[..4], after[..4]);
    assert!(before[4..].iter().zip(&after[4..]).all(|(before, after)| before.0 < after.0 && before.1 < after.1));
}
