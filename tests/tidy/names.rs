//! The name of a public type, trait or constant stands for one thing in the whole crate.
//!
//! Functions are left out, because they are read with their module before them, as in `names::check`. So are methods
//! and associated items.

use std::collections::BTreeMap;

use crate::rust::{Rust, items};
use crate::{Rule, Violation};

const KINDS: [&str; 7] = ["struct", "enum", "union", "trait", "type", "const", "static"];

pub fn check(sources: &[Rust]) -> Vec<Violation> {
    let mut declared: BTreeMap<String, Vec<(&str, usize, bool)>> = BTreeMap::new();
    for source in sources {
        let named = items(&source.trees).into_iter().filter(|item| KINDS.contains(&&*item.kind) && item.name != "_");
        for item in named {
            // A constant that one file keeps to itself is read there only.
            if item.public || !["const", "static"].contains(&&*item.kind) {
                declared.entry(item.name).or_default().push((&source.path, item.line, item.public));
            }
        }
    }
    let mut found = Vec::new();
    for (name, places) in declared {
        if places.len() < 2 || !places.iter().any(|(.., public)| *public) {
            continue;
        }
        for (index, (file, line, _)) in places.iter().enumerate() {
            let (other, at, _) = places[(index + 1) % places.len()];
            found.push(Violation::new(Rule::Name, file, *line, format!("`{name}` is also declared in {other}:{at}")));
        }
    }
    found
}

#[test]
fn a_name_that_is_declared_twice_is_found() {
    let found = check(&crate::files(&[
        (
            "src/a.rs",
            "pub struct Row<'a> {\n    type Item: u8,\n}\npub(crate) enum Kind {}\nstruct Own;\n\
             pub const\nTWO: u8 = 2;",
        ),
        ("src/b.rs", "\ntype Row = u8;\npub trait Item {}\nstruct Own;\npub fn Kind() {}\npub static TWO: u8 = 3;"),
        ("src/c.rs", "const TWO: u8 = 2;"),
    ]));
    let places: Vec<_> = found.iter().map(|violation| (violation.file.as_str(), violation.line)).collect();
    assert_eq!(places, [("src/a.rs", 1), ("src/b.rs", 2), ("src/a.rs", 7), ("src/b.rs", 6)]);
}
