//! Nobody starves, and equal sessions get equal shares.

use cos::config::RoutesName;
use cos::decode::policy::Targets;
use cos::engine::session::{Options, Session};

use super::machine::{Fixed, Machine, Passes, Simulation};
use crate::common::World;

/// The most calls in a row in which a session of the first `count` commits nothing, and the call in which each session
/// has committed its first token.
fn waits(simulation: &Simulation, sessions: &mut [Session], count: usize, calls: usize) -> (usize, Vec<Option<usize>>) {
    let (mut waited, mut longest) = (vec![0; sessions.len()], 0);
    let mut firsts = vec![None; sessions.len()];
    for call in 1..=calls {
        let before: Vec<usize> = sessions.iter().map(|session| session.decoder().committed().len()).collect();
        simulation.step(sessions);
        for (index, session) in sessions.iter().enumerate() {
            let stands = session.decoder().committed().len() == before[index];
            waited[index] = if stands { waited[index] + 1 } else { 0 };
            longest = if index < count { longest.max(waited[index]) } else { longest };
            firsts[index] = firsts[index].or((!stands).then_some(call));
        }
    }
    (longest, firsts)
}

fn routed(machine: &Machine) -> Options {
    let plan = Fixed { targets: Some(Targets::Routed), ..Fixed::STANDARD };
    Options { routes: Some(RoutesName::Own), ..machine.options(plan, 0) }
}

/// Models take turns by how many they serve in a second. Those who need a slow model would wait for ever beside many
/// who need a fast one. So a session waits for 16 passes of others at most.
#[test]
fn nobody_waits_for_a_turn_for_long() {
    let machine = Machine::mixture(World::Related, 1.0, [Passes::new(30.0, 1.0, 64), Passes::new(3_000.0, 1.0, 64)]);
    let simulation = machine.start();
    let (both, fast) = (routed(&machine), Options { weights: Some(vec![1.0, 0.0]), ..routed(&machine) });
    let new = |number| simulation.session(number, 4, if number < 8 { &fast } else { &both });
    let mut sessions: Vec<Session> = (0..12).map(new).collect();
    let (longest, _) = waits(&simulation, &mut sessions, 12, 400);
    println!("longest wait: {longest} calls");
    assert!((2..=17).contains(&longest), "{longest}");
    // A session that needs both models is part of each pass, so others do not wait beside it.
    sessions[0] = simulation.session(12, 4, &machine.options(Fixed::STANDARD, 0));
    let (longest, _) = waits(&simulation, &mut sessions, 12, 100);
    assert!(longest <= 1, "{longest}");
}

/// After 200 tokens, a session has at least 0.95 of the mean where they share routes. Where they draft, it has 0.75:
/// how many proposals are accepted depends on the text.
#[test]
fn equal_sessions_get_equal_shares() {
    let sampled = Machine::mixture(World::Related, 1.0, [Passes::new(300.0, 1.0, 64); 2]);
    let greedy = Machine::mixture(World::Related, 0.0, [Passes::new(60.0, 0.2, 64), Passes::new(600.0, 1.0, 64)]);
    for (machine, count, least) in
        [(&sampled, 64, 0.95), (&sampled, 1_000, 0.95), (&greedy, 8, 0.75), (&greedy, 64, 0.75)]
    {
        let simulation = machine.start();
        let mut sessions: Vec<Session> = (0..count).map(|n| simulation.session(n, 4, &machine.auto(0))).collect();
        let mut done = 0;
        while done < 200 * count {
            done += simulation.step(&mut sessions);
        }
        let tokens = sessions.iter().map(|session| session.decoder().committed().len() - 4);
        let (fewest, most) = (tokens.clone().min().unwrap(), tokens.max().unwrap());
        let [fewest, most] = [fewest, most].map(|tokens| (tokens * count) as f64 / done as f64);
        println!("{count} sessions: {fewest:.3} to {most:.3} of the mean");
        assert!(fewest > least && most < 2.0 - least, "{count} sessions: {fewest} to {most}");
    }
}

/// Sessions of all kinds beside each other: some plan, the others follow fixed plans.
fn mixed(machine: &Machine, simulation: &Simulation, count: usize) -> Vec<Session> {
    let fixed: Vec<Fixed> = machine.fixed().collect();
    let new = |number: usize| {
        let plan = fixed.get(number % (fixed.len() + 2)).copied();
        let options = plan.map_or_else(|| machine.auto(0), |plan| machine.options(plan, 0));
        simulation.session(number, 4 + 5 * (number % 7), &options)
    };
    (0..count).map(new).collect()
}

/// A session of any strategy commits a token in ten calls, whoever is beside it. Long prompts share the room of a pass:
/// each begins after the calls that all of them take, one after the other.
#[test]
fn nobody_starves_beside_others() {
    let machine = Machine::mixture(World::Related, 1.0, [Passes::new(300.0, 1.0, 64); 2]);
    for count in [14, 140] {
        let simulation = machine.start();
        let mut sessions = mixed(&machine, &simulation, count);
        let (alone, _) = waits(&simulation, &mut sessions, count, 400);
        let prompts = (0..12).map(|number| simulation.session(1_000 + number, 1_500, &machine.auto(0)));
        sessions.extend(prompts);
        let (beside, firsts) = waits(&simulation, &mut sessions, count, 80);
        let last = firsts.iter().map(|first| first.unwrap_or(usize::MAX)).max().unwrap();
        println!("{count} sessions: {alone} calls at most, {beside} beside prompts, which begin after {last}");
        assert!(alone <= 10 && beside <= 10, "{count} sessions: {alone} and {beside} calls");
        assert!(last <= 12 * 1_500_usize.div_ceil(512) + 10, "{count} sessions: {firsts:?}");
    }
}
