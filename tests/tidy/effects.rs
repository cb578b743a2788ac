//! What of the world each room may use, and constructs that would hide an import from these rules.

use crate::imports::{Modules, written};
use crate::rust::{Rust, Token};
use crate::{Rule, Violation};

/// Kinds of effects, and the paths that have them.
const EFFECTS: &[(&str, &[&str])] = &[
    ("time", &["std::time::Instant", "std::time::SystemTime", "std::time::UNIX_EPOCH"]),
    ("threads", &["std::thread", "std::sync::mpsc", "std::sync::Condvar", "std::sync::Barrier"]),
    ("locks", &["parking_lot", "std::sync::Mutex", "std::sync::RwLock"]),
    ("files", &["std::fs", "memmap2"]),
    ("process", &["std::process", "std::env", "libc", "num_cpus"]),
    ("network", &["std::net", "std::os::unix::net"]),
    ("ort", &["ort"]),
    ("cudarc", &["cudarc"]),
];

/// Which effects each room has. A room that is not listed has none: it computes.
const ROOMS: &[(&str, &[&str])] = &[
    ("process", &["files", "process", "threads"]),
    ("files", &["files", "process"]),
    ("cuda", &["cudarc", "locks", "ort", "process", "threads", "time"]),
    ("model", &["locks"]),
    // Element types of rows, and errors of the queues that they are computed on.
    ("rows", &["ort"]),
    ("export", &["files", "ort"]),
    // What texts leave to later ones.
    ("grammar", &["locks"]),
    ("text", &["threads"]),
    ("onnx", &["files", "locks", "ort", "process", "threads", "time"]),
    // What sessions share.
    ("plan", &["locks"]),
    // Threads of the callers wait here for common passes. It starts none.
    ("engine", &["locks", "threads", "time"]),
    ("ffi", &["locks"]),
];

/// Macros and attributes that read another file, and where they may.
const READERS: &[(&str, &[&str])] =
    &[("include", &[]), ("include_str", &["src/cuda/device.rs"]), ("include_bytes", &[]), ("path", &[])];

/// Modules with braces that need not be files: code of one processor.
const INLINE: &[&str] = &["src/rows/widen.rs"];

pub fn check(sources: &[Rust]) -> Vec<Violation> {
    let modules = Modules::new(sources);
    let mut found = Vec::new();
    for source in sources {
        found.extend(effects(source, &modules));
        found.extend(hidden(source));
    }
    found
}

fn effects(source: &Rust, modules: &Modules) -> Vec<Violation> {
    let Some(room) = crate::imports::room(&source.path) else { return Vec::new() };
    let allowed = ROOMS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| allowed);
    let uses = modules.uses(&source.path);
    let mut paths: Vec<(Vec<String>, usize)> = uses.iter().map(|each| (each.path.clone(), each.line)).collect();
    for (path, line) in written(&source.tokens) {
        let imported = uses.iter().find(|each| each.name == path[0]).map(|each| &each.path[..]);
        paths.push((
            imported.into_iter().flatten().chain(&path[usize::from(imported.is_some())..]).cloned().collect(),
            line,
        ));
    }
    let mut found = Vec::new();
    for (path, line) in paths {
        let path = path.join("::");
        let whole = path.strip_suffix('*').unwrap_or(&path);
        let effect = EFFECTS.iter().find(|(_, paths)| {
            paths.iter().any(|one| {
                let below = path.strip_prefix(one).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
                below || (whole != path && one.starts_with(whole))
            })
        });
        if let Some((effect, _)) = effect.filter(|(effect, _)| !allowed.contains(effect)) {
            let what = format!("`{room}` may not use `{path}`, which is of the kind {effect:?}");
            found.push(Violation::new(Rule::Effect, &source.path, line, what));
        }
    }
    found.dedup();
    found
}

/// Constructs by which the tables of imports could be evaded.
fn hidden(source: &Rust) -> Vec<Violation> {
    let mut found = Vec::new();
    let tokens = &source.tokens;
    let word = |at: usize| tokens.get(at).map_or("", |(token, _): &Token| token);
    for (at, (token, line)) in tokens.iter().enumerate() {
        let mut tell = |what: String| found.push(Violation::new(Rule::Hidden, &source.path, *line, what));
        let reader = READERS.iter().find(|(name, _)| name == token).filter(|(name, files)| {
            let is_used = if *name == "path" {
                word(at + 1) == "=" && word(at.wrapping_sub(1)) == "["
            } else {
                word(at + 1) == "!"
            };
            is_used && !files.contains(&&*source.path)
        });
        if let Some((name, _)) = reader {
            tell(format!("`{name}` reads another file"));
        }
        match token.as_str() {
            "crate" | "super" | "self" if word(at + 1) == "as" => tell(format!("`{token} as` renames a module")),
            "extern" if word(at + 1) == "crate" => tell("`extern crate` imports without `use`".into()),
            "mod" if word(at + 2) == "{" && !INLINE.contains(&&*source.path) => {
                tell(format!("the module `{}` is no file of its own", word(at + 1)));
            }
            "pub" => {
                let open =
                    if word(at + 1) == "(" { tokens[at..].iter().position(|(token, _)| token == ")") } else { Some(0) };
                let start = at + open.unwrap_or_default() + 1;
                let is_renamed = |(token, _): &Token| token == "as";
                if word(start) == "use" && tokens[start..].iter().take_while(|(token, _)| token != ";").any(is_renamed)
                {
                    tell("`pub use … as` gives an item a second name".into());
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn effects_are_found_however_they_are_written() {
    for (text, is_found) in [
        ("use std::time::Duration;", false),
        ("use std::time::Instant;", true),
        ("use std::time::{Duration, SystemTime as Clock};", true),
        ("use std::time::*;", true),
        ("use std as s; fn a() { s::fs::read(b) }", true),
        ("fn a() { let _ = ::std::thread::spawn(b); }", true),
        ("fn a() { b!(std::net::TcpStream::connect(c)) }", true),
        ("use ort::value::Value;", true),
        ("use libc;", true),
        ("use parking_lot::Mutex;", true),
        ("/// Not `std::fs`.\nconst A: &str = \"std::fs\"; fn sort() { port::a() }", false),
        ("#[cfg(test)] mod tests { use std::fs; }", false),
    ] {
        let found = check(&crate::files(&[("src/decode/a.rs", text)]));
        assert_eq!(found.iter().any(|found| found.rule == Rule::Effect), is_found, "{text}: {found:?}");
    }
    assert!(check(&crate::files(&[("src/engine/a.rs", "use std::time::Instant;")])).is_empty());
    let found = check(&crate::files(&[("src/learn/mod.rs", ""), ("src/plan/a.rs", "use cudarc::driver;")]));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn what_hides_imports_is_found() {
    for (text, is_found) in [
        ("use crate as c;", true),
        ("use super as s;", true),
        ("extern crate ort as o;", true),
        ("#[path = \"x.rs\"] mod a;", true),
        ("include!(\"x.rs\");", true),
        ("const A: &[u8] = include_bytes!(\"x\");", true),
        ("mod a { }", true),
        ("pub mod a;", false),
        ("pub use b::C as D;", true),
        ("pub(crate) use b::{C, D as E};", true),
        ("use b::C as D;", false),
        ("pub use b::C; fn d() { e as u8 }", false),
    ] {
        let found = hidden(&crate::files(&[("src/decode/a.rs", text)])[0]);
        assert_eq!(!found.is_empty(), is_found, "{text}: {found:?}");
    }
}
