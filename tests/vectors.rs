//! The vectors of `tests/vectors`, with few draws: `make conformance` takes many. `COS_VECTORS` names other folders of
//! vectors, separated by colons, and `COS_VECTOR_DRAWS` another number of draws.

#[path = "conformance/results.rs"]
mod results;
#[path = "conformance/stats.rs"]
mod stats;
#[path = "conformance/vectors.rs"]
mod vectors;

use std::path::{Path, PathBuf};

use results::{Run, Section};

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

#[test]
fn the_vectors_hold() {
    let few = |name, draws| (folder(name), draws);
    let mut folders = vec![few("tiny", 40), few("demo", 8)];
    if let Ok(others) = std::env::var("COS_VECTORS") {
        folders = others.split(':').map(|other| (PathBuf::from(other), 8)).collect();
    }
    let draws = std::env::var("COS_VECTOR_DRAWS").ok().map(|draws| draws.parse().unwrap());
    let mut run = Run::default();
    for (folder, few) in folders {
        let section = vectors::replay(&folder, draws.unwrap_or(few), &mut |_| {});
        report(&section);
        run.sections.push(section);
    }
    assert_eq!(run.failures(), [""; 0]);
}
