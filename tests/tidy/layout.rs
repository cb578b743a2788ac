//! Lengths of lines, functions and files, and first lines.

use crate::source::Source;
use crate::{Rule, Violation};

/// The widest line.
pub const COLUMNS: usize = 120;

/// The longest file.
pub const FILE: usize = 700;

/// The longest function of Rust, from its name to its closing brace.
pub const FUNCTION: usize = 70;

/// How many columns a tab takes.
const TAB: usize = 4;

pub fn check(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    let Source { path, text } = source;
    for (index, line) in text.lines().enumerate() {
        let width: usize = line.chars().map(|c| if c == '\t' { TAB } else { 1 }).sum();
        if width > COLUMNS {
            found.push(Violation::new(Rule::Columns, path, index + 1, format!("{width} columns")));
        }
    }
    let lines = text.lines().count();
    if lines > FILE {
        found.push(Violation::new(Rule::File, path, lines, format!("{lines} lines, {FILE} are allowed")));
    }
    if !opens(path, text) {
        found.push(Violation::new(Rule::Opening, path, 1, "the first line does not say what the file is"));
    }
    if path.ends_with(".rs") {
        for (line, name, length) in functions(text).into_iter().filter(|(.., length)| *length > FUNCTION) {
            let what = format!("`{name}` has {length} lines, {FUNCTION} are allowed");
            found.push(Violation::new(Rule::Function, path, line, what));
        }
    }
    found
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

/// The functions of a formatted file: their lines, names and lengths.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let closes = |line: &&str| {
            let rest = line.strip_prefix(indent).unwrap_or_default();
            rest.starts_with('}') || (rest.starts_with(')') && rest.ends_with(';'))
        };
        let one_line = line.ends_with('}') || line.ends_with(';');
        let length =
            if one_line { 1 } else { 1 + lines[index + 1..].iter().take_while(|line| !closes(line)).count() + 1 };
        found.push((index + 1, name, length));
    }
    found
}

/// The name of the function that a line begins, if it does.
fn function(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let modifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\"", "\"C-unwind\""];
    let word = words.find(|word| !modifiers.contains(word))?;
    let name = words.next().filter(|_| word == "fn")?;
    Some(name.split(|c: char| c != '_' && !c.is_alphanumeric()).next().unwrap_or_default().to_string())
}

#[test]
fn lengths_are_measured() {
    let long = "x\n".repeat(FUNCTION - 1);
    let text = format!("fn a() {{}}\nimpl A {{\n    pub unsafe extern \"C\" fn b(\n    ) -> c {{\n{long}    }}\n}}\n");
    let lengths: Vec<_> = functions(&text).into_iter().map(|(line, name, length)| (line, name, length - 1)).collect();
    assert_eq!(lengths, [(1, "a".into(), 0), (3, "b".into(), FUNCTION + 1)]);
    let wide =
        Source { path: "a.rs".into(), text: format!("//! A file.\n{}\n\t{}", "é".repeat(121), "x".repeat(117)) };
    let found: Vec<usize> = check(&wide).iter().map(|violation| violation.line).collect();
    assert_eq!(found, [2, 3]);
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
