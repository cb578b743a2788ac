//! The name of a public type stands for one thing in the whole crate.

use std::collections::BTreeMap;

use crate::source::Source;
use crate::{Rule, Violation};

pub fn check(sources: &[Source]) -> Vec<Violation> {
    let mut declared: BTreeMap<String, Vec<(&str, usize, bool)>> = BTreeMap::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            if let Some((name, public)) = declaration(line) {
                declared.entry(name).or_default().push((&source.path, index + 1, public));
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
            found.push(Violation::new(Rule::Name, file, *line, format!("`{name}` is also a type of {other}:{at}")));
        }
    }
    found
}

/// The name of the type that a line declares at the top of a file, and whether it is public.
fn declaration(line: &str) -> Option<(String, bool)> {
    let (public, rest) = match line.strip_prefix("pub") {
        Some(rest) => (true, rest.split_once(' ')?.1),
        None => (false, line),
    };
    let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
    let (kind, rest) = rest.split_once(' ')?;
    let name = rest.split(|c: char| c != '_' && !c.is_alphanumeric()).next()?;
    ["struct", "enum", "union", "trait", "type"].contains(&kind).then(|| (name.to_string(), public))
}

#[test]
fn a_name_that_is_declared_twice_is_found() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let found = check(&[
        source("a.rs", "pub struct Row<'a> {\n    type Item = u8;\n}\npub(crate) enum Kind {}\nstruct Own;"),
        source("b.rs", "\ntype Row = u8;\npub trait Item {}\nstruct Own;"),
    ]);
    let places: Vec<_> = found.iter().map(|violation| (violation.file.as_str(), violation.line)).collect();
    assert_eq!(places, [("a.rs", 1), ("b.rs", 2)]);
}
