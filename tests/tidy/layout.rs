//! Lengths of lines, functions and files, and first lines.

use crate::functions::functions;
use crate::source::Source;
use crate::{Rule, Violation};

/// The widest line.
pub const COLUMNS: usize = 120;

/// The longest file.
pub const FILE: usize = 700;

/// The longest function, from its name to its closing brace.
pub const FUNCTION: usize = 70;

/// How many columns a tab takes.
const TAB: usize = 4;

pub fn check(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    let Source { path, text } = source;
    for (index, line) in text.lines().enumerate() {
        let width: usize = line.chars().map(|c| if c == '\t' { TAB } else { 1 }).sum();
        if width > COLUMNS && !may_be_wide(path, line) {
            found.push(Violation::new(Rule::Columns, path, index + 1, format!("{width} columns")));
        }
    }
    let lines = text.lines().count();
    if lines > FILE && !is_prose(path) {
        found.push(Violation::new(Rule::File, path, lines, format!("{lines} lines, {FILE} are allowed")));
    }
    if !is_prose(path) && !opens(path, text) {
        found.push(Violation::new(Rule::Opening, path, 1, "the first line does not say what the file is"));
    }
    for (line, name, length) in functions(source).into_iter().filter(|(.., length)| *length > FUNCTION) {
        let what = format!("`{name}` has {length} lines, {FUNCTION} are allowed");
        found.push(Violation::new(Rule::Function, path, line, what));
    }
    found
}

/// Documents, and tables of settings: their first line is a title or a section.
fn is_prose(path: &str) -> bool {
    path.ends_with(".md") || path.ends_with(".toml")
}

/// Rows of tables, and lines with links, cannot be broken everywhere.
fn may_be_wide(path: &str, line: &str) -> bool {
    path.ends_with(".md") && (line.trim_start().starts_with('|') || line.contains("](") || line.contains("://"))
}

/// Whether a file begins with a comment of some words. Before it may stand the interpreter of a script, and in Java,
/// whose classes have such comments, the package and the imports.
fn opens(path: &str, text: &str) -> bool {
    let before = |line: &&str| {
        let header = line.is_empty() || line.starts_with("package ") || line.starts_with("import ");
        (line.starts_with("#!") && !line.starts_with("#![")) || (header && path.ends_with(".java"))
    };
    let mut lines = text.lines().skip_while(before);
    let Some(first) = lines.next() else { return false };
    let comment = ["//!", "//", "/*", "\"\"\"", "# "].into_iter().find_map(|mark| first.strip_prefix(mark));
    let words = |text: &str| text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).count() > 1;
    // A comment in a block may begin on its second line.
    comment
        .is_some_and(|comment| words(comment) || lines.next().is_some_and(|line| line.starts_with(" *") && words(line)))
}

#[test]
fn lengths_are_measured() {
    let wide =
        Source { path: "a.rs".into(), text: format!("//! A file.\n{}\n\t{}", "é".repeat(121), "x".repeat(117)) };
    let found: Vec<usize> = check(&wide).iter().map(|violation| violation.line).collect();
    assert_eq!(found, [2, 3]);
    let text = format!("Title\n{0}\n| {0} |\n[a](https://{0})\n", "x".repeat(121));
    let found = check(&Source { path: "a.md".into(), text: text.clone() });
    assert_eq!(found.iter().map(|violation| violation.line).collect::<Vec<_>>(), [2]);
    assert_eq!(check(&Source { path: "a.toml".into(), text }).len(), 3);
}

#[test]
fn first_lines_are_read() {
    for right in
        ["//! A file.", "#!/bin/sh\n# A script.\n", "/* A program. */", "/*\n * A program.", "\"\"\"Write models.\n"]
    {
        assert!(opens("a", right), "{right}");
    }
    assert!(opens("A.java", "package a;\n\nimport b;\n\n/** A class. */") && !opens("a.go", "package a\n\n// A file."));
    for wrong in ["", "use std::fs;", "#!/bin/sh\nset -e", "#![allow(x)]", "//", "#include <a.h>\n"] {
        assert!(!opens("a.java", wrong), "{wrong}");
    }
}
