//! Which room of `src` may import which, and that nothing imports itself by way of others.
//!
//! A room is a folder of `src`, or a file that lies there. Paths that begin with `crate`, `super` or `self`, or with a
//! module that was imported, are followed through `pub use` to the file that declares what they name.

use std::collections::{BTreeMap, BTreeSet};

use crate::rust::{Rust, Token, items};
use crate::{Rule, Violation};

/// What each room may import: a room, or single items of it as `room::Item`.
pub const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("files", &["error"]),
    ("process", &["error"]),
    ("cuda", &["error"]),
    ("rows", &["cuda", "error"]),
    ("model", &["rows", "error"]),
    ("export", &["files", "error"]),
    ("text", &["files", "error"]),
    ("grammar", &["control", "error", "text"]),
    ("onnx", &["cuda", "error", "export", "files", "model", "process", "rows"]),
    ("clock", &[]),
    ("learn", &[]),
    ("control", &["error", "rows"]),
    // It runs no pass: it says which one is needed, and reads its rows.
    (
        "decode",
        &[
            "control",
            "error",
            "learn",
            "model::CacheUse",
            "model::Memory",
            "model::Pass",
            "model::Report",
            "model::Sequence",
            "rows",
        ],
    ),
    ("plan", &["clock", "decode", "error", "learn", "rows"]),
    ("config", &["decode::Combination", "error", "files"]),
    (
        "engine",
        &[
            "clock", "config", "control", "decode", "error", "export", "files", "grammar", "learn", "model", "onnx",
            "plan", "process", "rows", "text",
        ],
    ),
    ("request", &["config", "control", "decode", "engine", "error", "grammar", "model", "rows", "text"]),
    (
        "ffi",
        &["config", "control", "decode", "engine", "error", "grammar", "model", "process", "request", "rows", "text"],
    ),
];

/// A place that imports a file, or an item of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    file: String,
    line: usize,
    to: String,
    /// The item, or nothing if it is a module.
    item: String,
    /// Whether it is only shown to others, as `pub use` does.
    shown: bool,
}

pub fn check(sources: &[Rust]) -> Vec<Violation> {
    let modules = Modules::new(sources);
    let imports: Vec<Import> = sources.iter().flat_map(|source| modules.imports(source)).collect();
    let mut found: Vec<Violation> = imports.iter().filter_map(forbidden).collect();
    found.extend(circles(&imports));
    found
}

/// The room of a file, such as `decode`; `lib` is none.
pub fn room(file: &str) -> Option<&str> {
    let path = file.strip_prefix("src/")?;
    Some(path.split_once('/').map_or(path.trim_end_matches(".rs"), |(room, _)| room)).filter(|room| *room != "lib")
}

fn forbidden(import: &Import) -> Option<Violation> {
    let (from, to) = (room(&import.file)?, room(&import.to)?);
    let allowed = ROOMS.iter().find(|(room, _)| *room == from).map_or(&[][..], |(_, allowed)| allowed);
    let item = format!("{to}::{}", import.item);
    if from == to || allowed.contains(&to) || allowed.contains(&item.as_str()) {
        return None;
    }
    let what = format!("`{from}` may not import `{}`", if import.item.is_empty() { to } else { &item });
    Some(Violation::new(Rule::Import, &import.file, import.line, what))
}

/// Files of a room that import each other, and rooms that do.
fn circles(imports: &[Import]) -> Vec<Violation> {
    let (mut within, mut between) = (BTreeMap::new(), BTreeMap::new());
    for import in imports {
        let (Some(from), Some(to)) = (room(&import.file), room(&import.to)) else { continue };
        let graph: &mut BTreeMap<_, Edges> = if from == to { &mut within } else { &mut between };
        let ends = if from == to { (&*import.file, &*import.to) } else { (from, to) };
        // A room may show what its files declare.
        if import.file != import.to && !(import.shown && from == to) {
            graph.entry(ends.0).or_default().entry(ends.1).or_insert(import);
        }
    }
    let mut found = Vec::new();
    for graph in [&within, &between] {
        for (from, edges) in graph {
            for (to, import) in edges {
                if reaches(graph, to, from) {
                    let what = format!("`{from}` imports `{to}`, which imports it in turn");
                    found.push(Violation::new(Rule::Circle, &import.file, import.line, what));
                }
            }
        }
    }
    found
}

/// The files or rooms that one of them imports, each with one place where it does.
type Edges<'a> = BTreeMap<&'a str, &'a Import>;

fn reaches(graph: &BTreeMap<&str, Edges>, from: &str, to: &str) -> bool {
    let (mut seen, mut left) = (BTreeSet::from([from]), vec![from]);
    while let Some(at) = left.pop() {
        if at == to {
            return true;
        }
        let next = graph.get(at).into_iter().flat_map(|edges| edges.keys());
        left.extend(next.filter(|next| seen.insert(**next)));
    }
    false
}

/// The modules of the crate by their paths, such as `["decode", "policy"]`.
pub struct Modules<'a> {
    files: BTreeMap<Vec<String>, Module<'a>>,
}

struct Module<'a> {
    file: &'a str,
    /// What each file declares itself at its top.
    items: BTreeSet<String>,
    /// What is imported under which name, and whether it is exported again.
    uses: Vec<Use>,
}

/// A name that a file imports; `*` stands for all names of a module.
#[derive(Debug, PartialEq)]
pub struct Use {
    pub name: String,
    pub path: Vec<String>,
    pub line: usize,
    public: bool,
}

impl<'a> Modules<'a> {
    pub fn new(sources: &'a [Rust]) -> Self {
        let module = |source: &'a Rust| {
            let items = items(&source.trees).into_iter().filter(|item| item.kind != "mod").map(|item| item.name);
            let (items, uses) = (items.collect(), uses(&source.tokens));
            (module_path(&source.path), Module { file: &source.path, items, uses })
        };
        Modules { files: sources.iter().map(module).collect() }
    }

    /// What the `use` statements of a file import.
    pub fn uses(&self, file: &str) -> &[Use] {
        &self.files[&module_path(file)].uses
    }

    /// What a file imports, and the paths that it writes out.
    fn imports(&self, source: &Rust) -> Vec<Import> {
        let here = module_path(&source.path);
        let module = &self.files[&here];
        let mut paths: Vec<_> = module.uses.iter().map(|u| (u.path.clone(), u.line, u.public)).collect();
        for (path, line) in written(&source.tokens) {
            let first = path[0].as_str();
            let imported = module.uses.iter().find(|u| u.name == first);
            if ["crate", "super", "self"].contains(&first) {
                paths.push((path, line, false));
            } else if let Some(imported) = imported {
                paths.push((imported.path.iter().chain(&path[1..]).cloned().collect(), line, false));
            } else if self.files.contains_key(&[&here[..], &path[..1]].concat()) {
                paths.push((["self".to_string()].into_iter().chain(path).collect(), line, false));
            }
        }
        let mut found: Vec<Import> = paths
            .into_iter()
            .filter_map(|(path, line, shown)| {
                let (to, item) = self.resolve(&here, &path, 8)?;
                Some(Import { file: source.path.clone(), line, to, item, shown })
            })
            .filter(|import| import.to != source.path)
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// The file that declares what a path names from a module, and the item of it.
    fn resolve(&self, here: &[String], path: &[String], depth: usize) -> Option<(String, String)> {
        let mut at = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "super" | "self" => here.to_vec(),
            _ => {
                // The name of a child in the path of a `use`.
                let child = [here, &path[..1]].concat();
                self.files.get(&child)?;
                here.to_vec()
            }
        };
        for segment in path {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => drop(at.pop()),
                _ => break,
            }
        }
        let mut rest =
            path.iter().skip_while(|segment| ["crate", "self", "super"].contains(&segment.as_str())).peekable();
        while let Some(segment) = rest.peek() {
            let next: Vec<String> = at.iter().chain([*segment]).cloned().collect();
            if !self.files.contains_key(&next) {
                break;
            }
            (at, _) = (next, rest.next());
        }
        let module = self.files.get(&at)?;
        let Some(item) = rest.next().filter(|item| *item != "*") else {
            return Some((module.file.into(), String::new()));
        };
        if depth > 0 && !module.items.contains(item) {
            let exported = module.uses.iter().filter(|u| u.name == *item || u.name == "*");
            for u in exported {
                let mut path = u.path.clone();
                if u.name == "*" {
                    path.pop();
                    path.push(item.clone());
                }
                if let Some(found) = self.resolve(&at, &path, depth - 1)
                    && (u.name != "*" || self.declares(&found))
                {
                    return Some(found);
                }
            }
        }
        Some((module.file.into(), item.clone()))
    }

    fn declares(&self, (file, item): &(String, String)) -> bool {
        self.files.values().any(|module| module.file == file && module.items.contains(item))
    }
}

/// The path of the module that a file is.
fn module_path(file: &str) -> Vec<String> {
    let path = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Vec::new() } else { path.split('/').map(String::from).collect() }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// Where the statements `use …;` begin and end.
fn statements(tokens: &[Token]) -> Vec<(usize, usize)> {
    let starts = (0..tokens.len()).filter(|&at| {
        tokens[at].0 == "use" && (at == 0 || [";", "}", "{", "pub", ")", "]"].contains(&&*tokens[at - 1].0))
    });
    let end = |start: usize| (start..tokens.len()).find(|&at| tokens[at].0 == ";").unwrap_or(tokens.len());
    starts.map(|start| (start, end(start))).collect()
}

/// What the `use` statements of a file import.
fn uses(tokens: &[Token]) -> Vec<Use> {
    let mut found = Vec::new();
    for (start, end) in statements(tokens) {
        let public = start > 0 && ["pub", ")"].contains(&&*tokens[start - 1].0);
        tree(&tokens[start + 1..end], &mut Vec::new(), public, &mut found);
    }
    found
}

/// Read one tree of imports, such as `a::{self, b as c, d::*}`.
fn tree(tokens: &[Token], path: &mut Vec<String>, public: bool, found: &mut Vec<Use>) {
    let length = path.len();
    let mut at = 0;
    while at < tokens.len() {
        let (token, line) = (tokens[at].0.as_str(), tokens[at].1);
        match token {
            "{" => {
                for branch in branches(&tokens[at + 1..tokens.len() - 1]) {
                    tree(branch, path, public, found);
                }
                path.truncate(length);
                return;
            }
            "as" => {
                let name = tokens[at + 1].0.to_string();
                found.push(Use { name, path: path.clone(), line, public });
                path.truncate(length);
                return;
            }
            "self" if !path.is_empty() => {}
            "::" => {}
            _ => path.push(token.into()),
        }
        at += 1;
    }
    if let (Some(name), Some((_, line))) = (path.last(), tokens.last()) {
        found.push(Use { name: name.clone(), path: path.clone(), line: *line, public });
    }
    path.truncate(length);
}

/// What stands between commas that are in no further braces.
fn branches(tokens: &[Token]) -> Vec<&[Token]> {
    let mut depth = 0;
    let parts = tokens.split(|(token, _)| {
        depth += i32::from(token == "{") - i32::from(token == "}");
        token == "," && depth == 0
    });
    parts.filter(|part| !part.is_empty()).collect()
}

/// Paths of at least two words outside of `use` statements.
pub fn written(tokens: &[Token]) -> Vec<(Vec<String>, usize)> {
    let statements = statements(tokens);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if let Some((_, end)) = statements.iter().find(|(start, _)| *start == at) {
            at = *end;
            continue;
        }
        let start = at;
        at += 1;
        // A path may begin with `::`, but what follows `Vec<T>::` is none.
        let goes_on = |before: &Token| is_word(&before.0) || before.0 == ">";
        let is_behind = start > 0 && tokens[start - 1].0 == "::" && (start == 1 || goes_on(&tokens[start - 2]));
        if !is_word(&tokens[start].0) || is_behind {
            continue;
        }
        let mut path = vec![tokens[start].0.to_string()];
        while at + 1 < tokens.len() && tokens[at].0 == "::" && is_word(&tokens[at + 1].0) {
            path.push(tokens[at + 1].0.to_string());
            at += 2;
        }
        if path.len() > 1 {
            found.push((path, tokens[start].1));
        }
    }
    found
}

#[test]
fn every_room_is_in_the_table() {
    let sources = crate::source::sources(std::path::Path::new(env!("CARGO_MANIFEST_DIR")));
    let rooms: BTreeSet<&str> = sources.iter().filter_map(|source| room(&source.path)).collect();
    let rooms: BTreeSet<&str> = rooms.into_iter().filter(|room| !room.contains('.')).collect();
    assert_eq!(rooms, ROOMS.iter().map(|(room, _)| *room).collect());
}

#[test]
fn imports_are_followed() {
    let sources = crate::files(&[
        ("src/rows/mod.rs", "mod host;\npub use host::Row; // shown, so no circle\npub fn sum() {}"),
        ("src/rows/host.rs", "use super::sum;\npub struct Row;"),
        ("src/decode/mod.rs", "pub mod a;\npub mod b;"),
        ("src/decode/a.rs", "use crate::{decode::b as c, rows::{self, Row}};\nfn x() { c::y(rows::sum()) }"),
        ("src/decode/b.rs", "pub fn y() {}\nimpl crate::engine::Z for super::a::W {}"),
        ("src/engine.rs", "pub trait Z {}"),
    ]);
    let modules = Modules::new(&sources);
    let of = |index: usize| -> Vec<String> {
        let imports = modules.imports(&sources[index]).into_iter();
        imports.map(|import| format!("{} {} {}", import.line, import.to, import.item)).collect()
    };
    assert_eq!(of(0), ["2 src/rows/host.rs Row"]);
    assert_eq!(of(1), ["1 src/rows/mod.rs sum"]);
    assert_eq!(
        of(3),
        [
            "1 src/decode/b.rs ",
            "1 src/rows/host.rs Row",
            "1 src/rows/mod.rs ",
            "2 src/decode/b.rs y",
            "2 src/rows/mod.rs sum"
        ]
    );
    let found = check(&sources);
    let found: Vec<(Rule, &str, usize)> = found.iter().map(|found| (found.rule, &*found.file, found.line)).collect();
    assert_eq!(
        found,
        [
            (Rule::Import, "src/decode/b.rs", 2),
            (Rule::Circle, "src/decode/a.rs", 1),
            (Rule::Circle, "src/decode/b.rs", 2),
        ]
    );
}
