//! The code is tidy: lengths, first lines, names, and which room of `src` may import or do what.
//!
//! Every violation is printed at once, as `file:line: rule: what is wrong`, with how to mend it. What is violated today
//! stands in `exceptions.txt`. An exception that is no longer needed fails the test too, so the list only gets shorter.

mod effects;
mod functions;
mod imports;
mod layout;
mod names;
mod rust;
mod source;

use std::collections::BTreeSet;
use std::path::Path;

use rust::rust_sources;
use source::{sources, unknown_folders};

/// A rule, as violations and exceptions name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// At most [`layout::COLUMNS`] columns.
    Columns,
    /// At most [`layout::FILE`] lines in a file.
    File,
    /// At most [`layout::FUNCTION`] lines in a function.
    Function,
    /// The first line says what the file is.
    Opening,
    /// The name of a public type, trait or constant stands for one thing.
    Name,
    /// A room imports only what [`imports::ROOMS`] allows.
    Import,
    /// No circle between the files of a room, and none between rooms.
    Circle,
    /// A room does only what [`effects::check`] allows it: time, threads, files, and the like.
    Effect,
    /// Nothing hides an import: no renamed module, no file that is read as code.
    Hidden,
    /// Each folder of the project is known to these rules.
    Folder,
}

impl Rule {
    fn mend(self) -> &'static str {
        match self {
            Rule::Columns => "break the line at 120 columns",
            Rule::File => "split the file by topic",
            Rule::Function => "give parts of the function names of their own",
            Rule::Opening => "begin the file with a comment that says what it is",
            Rule::Name => "rename one of the two",
            Rule::Import => {
                "move the item to a room that both may use, or say in ARCHITECTURE.md and `imports::ROOMS` why not"
            }
            Rule::Effect => "let a room do it that may, and pass the result as an argument",
            Rule::Hidden => "name the item by its own path, in a file of its own",
            Rule::Folder => "add it to `FOLDERS` or `OTHERS` of tests/tidy/source.rs",
            Rule::Circle => "move what both need to a third file, or pass it as an argument",
        }
    }
}

/// Something that a rule does not allow.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    rule: Rule,
    file: String,
    line: usize,
    what: String,
}

impl Violation {
    fn new(rule: Rule, file: &str, line: usize, what: impl Into<String>) -> Self {
        Violation { rule, file: file.into(), line, what: what.into() }
    }
}

/// All violations of the files below a folder.
fn violations(root: &Path) -> Vec<Violation> {
    let all = sources(root);
    assert!(all.len() > 100, "only {} files were found in {}", all.len(), root.display());
    let rust = rust_sources(&all, "src/");
    let mut found: Vec<Violation> = all.iter().flat_map(layout::check).collect();
    found.extend(names::check(&rust));
    found.extend(imports::check(&rust));
    found.extend(effects::check(&rust));
    found.extend(unknown_folders(root).iter().map(|name| Violation::new(Rule::Folder, name, 1, "an unknown folder")));
    found.sort();
    found
}

/// What is violated today: lines with a rule and a file. The list only gets shorter.
const EXCEPTIONS: &str = "tests/tidy/exceptions.txt";

#[test]
fn the_code_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let exceptions = std::fs::read_to_string(root.join(EXCEPTIONS)).unwrap();
    let known: Vec<&str> = exceptions.lines().filter(|line| !line.starts_with('#')).collect();
    let mut needed = BTreeSet::new();
    let mut report = String::new();
    for Violation { rule, file, line, what } in violations(root) {
        let exception = format!("{rule:?} {file}");
        if known.contains(&exception.as_str()) {
            println!("to be removed: {file}:{line}: {rule:?}: {what}");
            needed.insert(exception);
        } else {
            report += &format!("{file}:{line}: {rule:?}: {what}; {}\n", rule.mend());
        }
    }
    let (kept, unneeded): (Vec<&str>, Vec<&str>) = known.iter().partition(|line| needed.contains(**line));
    println!("{} exceptions are left", kept.len());
    if !unneeded.is_empty() && std::env::var_os("COS_PRUNE").is_some() {
        let keeps = |line: &&str| line.starts_with('#') || kept.contains(line);
        let lines = exceptions.lines().filter(keeps).flat_map(|line| [line, "\n"]);
        std::fs::write(root.join(EXCEPTIONS), lines.collect::<String>()).unwrap();
    } else {
        for line in unneeded {
            report += &format!("{EXCEPTIONS}: {line:?} is no longer needed; `COS_PRUNE=1` removes all such lines\n");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

/// Files of Rust, for the tests of rules.
#[cfg(test)]
fn files(all: &[(&str, &str)]) -> Vec<rust::Rust> {
    let source = |(path, text): &(&str, &str)| source::Source { path: (*path).into(), text: (*text).into() };
    rust_sources(&all.iter().map(source).collect::<Vec<_>>(), "src/")
}
