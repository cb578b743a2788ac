//! The conformance suite with few draws. `make conformance` runs it at length and writes a report.
//!
//! A program of its own, because it takes long, and because all of its tests share a pool of one thread.

#[path = "../common/mod.rs"]
mod common;
mod controls;
mod replay;
#[allow(dead_code, reason = "the report uses all of it")]
#[path = "suite.rs"]
mod suite;

use common::one_thread;
use suite::results::{Run, Section};
use suite::{Silent, faults, generator, greedy, packed, sampled, sequences};

fn check(section: Section) {
    println!("{}: {}", section.title, section.headline);
    for table in &section.tables {
        println!("{}", table.head.join(" | "));
        table.rows.iter().for_each(|row| println!("{}", row.join(" | ")));
    }
    let run = Run { sections: vec![section], ..Run::default() };
    assert_eq!(run.failures(), [""; 0]);
}

#[test]
fn random_numbers_are_uniform_and_independent() {
    check(generator::run(50_000, &Silent));
}

#[test]
fn joint_distributions_are_the_oracles() {
    check(sampled::run(sampled::Effort::QUICK, &Silent));
}

#[test]
fn whole_sessions_follow_the_distribution() {
    check(sequences::run(2_000, 0, &Silent));
}

#[test]
fn greedy_strategies_agree() {
    one_thread();
    check(greedy::run(greedy::Effort::QUICK, &Silent));
}

#[test]
fn common_passes_change_nothing() {
    one_thread();
    check(packed::run(300, 250, &Silent));
}

#[test]
fn planted_faults_have_places() {
    faults::planted_sources().unwrap();
}

#[test]
#[ignore = "builds a copy of the library, which takes minutes: .ci/run and make conformance do it"]
fn planted_faults_are_caught() {
    check(faults::run(faults::Effort::Quick, &Silent));
}
