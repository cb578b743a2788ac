//! The vectors of `tests/vectors` hold, with few draws; `make conformance` takes many. `COS_VECTORS` names further
//! folders, separated by colons, and `COS_VECTOR_DRAWS` the number of draws from each of their cases.

use std::path::{Path, PathBuf};

use crate::common::one_thread;
use crate::suite::results::{Run, Section};
use crate::suite::vectors;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn report(section: &Section) {
    println!("{}: {} ({:.1} s)", section.title, section.headline, section.seconds);
    for table in &section.tables {
        println!("{}", table.head.join(" | "));
        table.rows.iter().for_each(|row| println!("{}", row.join(" | ")));
    }
}

fn check(folders: &[PathBuf], draws: usize) {
    one_thread();
    let mut run = Run::default();
    for folder in folders {
        let section = vectors::replay(folder, draws, &mut |_| {});
        report(&section);
        run.sections.push(section);
    }
    assert_eq!(run.failures(), [""; 0]);
}

#[test]
fn the_tiny_vectors_hold() {
    check(&[folder("tiny")], 20);
}

#[test]
fn the_demo_vectors_hold() {
    check(&[folder("demo")], 4);
}

#[test]
fn other_vectors_hold() {
    let folders = std::env::var("COS_VECTORS").unwrap_or_default();
    let folders: Vec<PathBuf> = folders.split(':').filter(|folder| !folder.is_empty()).map(PathBuf::from).collect();
    let draws = std::env::var("COS_VECTOR_DRAWS").map_or(8, |draws| draws.parse().unwrap());
    check(&folders, draws);
}

/// Replays a file with changed lines. Of its cases, the first greedy one, the first sampled one and the last one are
/// kept; the last one lists all possible tokens.
fn replay_changed(change: impl Fn(&mut Vec<Vec<String>>), draws: usize) -> Section {
    let text = std::fs::read_to_string(folder("tiny/weighted-3.txt")).unwrap();
    let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
    let mut lines: Vec<_> = text.lines().map(words).collect();
    let places = |word| (0..lines.len()).filter(|&index| lines[index][0] == word).collect::<Vec<_>>();
    let (greedy, sampled) = (places("greedy"), places("sampled"));
    lines.drain(sampled[1]..sampled[sampled.len() - 1]);
    lines.drain(greedy[1]..sampled[0]);
    change(&mut lines);
    one_thread();
    let text: String = lines.iter().map(|line| line.join(" ") + "\n").collect();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("changed.txt"), text).unwrap();
    vectors::replay(folder.path(), draws, &mut |_| {})
}

/// The first line of a kind.
fn line<'a>(lines: &'a mut [Vec<String>], word: &str) -> &'a mut Vec<String> {
    lines.iter_mut().find(|line| line[0] == word).unwrap()
}

fn add(text: &mut String, value: f64) {
    *text = (text.parse::<f64>().unwrap() + value).to_string();
}

#[test]
fn what_is_wrong_is_noticed() {
    let notices = |change: &dyn Fn(&mut Vec<Vec<String>>), says: &str| {
        let failures = replay_changed(change, 12).failures;
        assert!(failures.iter().any(|failure| failure.contains(says)), "{says}: {failures:?}");
    };
    let sound = replay_changed(|_| {}, 12);
    assert_eq!(sound.failures, [""; 0]);
    assert_eq!(sound.comparisons.len(), 12, "two cases, three lengths, combined and routed");

    notices(&|lines| add(&mut line(lines, "token")[2], 0.01), "ln r is");
    notices(&|lines| line(lines, "token")[1] = "7".into(), "not 7 (margin");
    for word in ["next", "pair", "triple"] {
        // All cells change, because few draws meet few cells.
        let shift = |lines: &mut Vec<Vec<String>>| {
            lines.iter_mut().filter(|line| line[0] == word).for_each(|line| add(&mut line[1], 0.01));
        };
        notices(&shift, &format!("{word} ln r is"));
    }
    let unlist = |lines: &mut Vec<Vec<String>>| {
        let first = lines.iter().position(|line| line[0] == "next").unwrap();
        lines.drain(first..first + 8);
    };
    notices(&unlist, "which should be listed");
    notices(&|lines| line(lines, "support").truncate(3), "the first token is impossible");
    let complete = |lines: &mut Vec<Vec<String>>| {
        lines.iter_mut().filter(|line| line[0] == "rest").for_each(|line| line[2] = "0".into());
    };
    notices(&complete, "the triple is impossible");
    let reweighted = |lines: &mut Vec<Vec<String>>| {
        let engine = line(lines, "engine").join(" ");
        let swapped = engine.replace("[0.2, 0.3, 0.5]", "[0.3, 0.2, 0.5]");
        assert_ne!(engine, swapped);
        *line(lines, "engine") = vec![swapped];
    };
    notices(&reweighted, "ln r is");
    notices(&|lines| line(lines, "vocabulary")[1] = "112".into(), "96 tokens, not 112");
    notices(&|lines| line(lines, "engine")[1].insert(0, '['), "line 3");
    notices(&|lines| line(lines, "cos-vectors")[1] = "2".into(), "version 2 is not known");
    notices(&|lines| line(lines, "greedy")[1] = "nowhere".into(), "prompt nowhere is not known");
    notices(&|lines| drop(lines.pop()), "cut off");
}

/// Routed targets have no log-probabilities. Only the frequencies of the cells show a wrong distribution.
#[test]
fn wrong_frequencies_are_noticed() {
    let swap = |lines: &mut Vec<Vec<String>>| {
        let next: Vec<usize> = (0..lines.len()).filter(|&index| lines[index][0] == "next").collect();
        let first = lines[next[0]][2].clone();
        let ninth = std::mem::replace(&mut lines[next[8]][2], first);
        lines[next[0]][2] = ninth;
    };
    let fits = |section: &Section| {
        let routed = section.comparisons.iter().find(|c| c.name.ends_with("routed, next")).unwrap();
        routed.fit.p
    };
    assert!(fits(&replay_changed(|_| {}, 400)) > 1e-6);
    assert!(fits(&replay_changed(swap, 400)) < 1e-6);
}
