//! The conformance suite with little effort. `make conformance` runs it at length and writes a report.

#[allow(dead_code, reason = "the report uses all of it")]
#[path = "conformance/suite.rs"]
mod suite;

use suite::Silent;
use suite::results::{Run, Section};

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
    check(suite::generator::run(50_000, &Silent));
}

#[test]
fn joint_distributions_are_the_oracles() {
    check(suite::sampled::run(suite::sampled::Effort::QUICK, &Silent));
}

#[test]
fn whole_sessions_follow_the_distribution() {
    check(suite::sequences::run(2_000, 0, &Silent));
}

#[test]
fn greedy_strategies_agree() {
    check(suite::greedy::run(suite::greedy::Effort::QUICK, &Silent));
}

#[test]
#[ignore = "builds a copy of the library, which takes minutes: .ci/run and make conformance do it"]
fn planted_faults_are_caught() {
    check(suite::faults::run(suite::faults::Effort::Quick, &Silent));
}
