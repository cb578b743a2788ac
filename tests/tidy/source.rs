//! The files that are checked, and Rust without comments, strings and tests.

use std::path::Path;

/// A text file of ours.
pub struct Source {
    /// Below the project's folder.
    pub path: String,
    pub text: String,
}

/// Folders with files of ours.
const FOLDERS: [&str; 9] =
    ["src", "tests", "benches", "bindings", "scripts", "kernels", "packaging", "examples", ".ci"];

/// Files of ours outside of these folders.
const FILES: [&str; 3] = ["build.rs", "cbindgen.toml", "Makefile"];

/// Kinds of files that are checked. Those without an extension are scripts and makefiles.
const KINDS: [&str; 12] = ["rs", "c", "h", "cpp", "hpp", "cu", "cuh", "py", "go", "java", "sh", ""];

/// Generated files, or what others wrote.
const NOT_OURS: [&str; 5] =
    ["bindings/go/cos.h", "tests/exports", "tests/fixtures", "tests/vectors", "bindings/java/native/headers"];

/// Every file of ours, in the order of their paths.
pub fn sources(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    FOLDERS.iter().for_each(|folder| walk(root, folder, &mut found));
    FILES.iter().for_each(|file| read(root, file, &mut found));
    found.sort_by(|a: &Source, b: &Source| a.path.cmp(&b.path));
    found
}

fn walk(root: &Path, folder: &str, found: &mut Vec<Source>) {
    let Ok(entries) = root.join(folder).read_dir() else { return };
    for entry in entries.map(|entry| entry.expect("an entry")) {
        let name = entry.file_name().into_string().expect("UTF-8");
        let path = format!("{folder}/{name}");
        let kind = entry.file_type().expect("a type");
        if NOT_OURS.contains(&path.as_str()) || name.starts_with('.') || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() && !["target", "build", "__pycache__"].contains(&name.as_str()) {
            walk(root, &path, found);
        } else if kind.is_file() && KINDS.contains(&name.rsplit_once('.').map_or("", |(_, kind)| kind)) {
            read(root, &path, found);
        }
    }
}

fn read(root: &Path, path: &str, found: &mut Vec<Source>) {
    let text = std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    found.push(Source { path: path.into(), text });
}

/// Files of Rust below a folder, without comments, strings and what is compiled for tests only.
pub fn rust_sources(all: &[Source], folder: &str) -> Vec<Source> {
    let rust = all.iter().filter(|source| source.path.starts_with(folder) && source.path.ends_with(".rs"));
    let mut tests = Vec::new();
    let mut found: Vec<Source> = rust
        .map(|source| {
            let (text, modules) = without_tests(&code(&source.text));
            tests.extend(modules.into_iter().map(|name| child(&source.path, &name)));
            Source { path: source.path.clone(), text }
        })
        .collect();
    found.retain(|source| {
        !tests.iter().any(|test| source.path == format!("{test}.rs") || source.path.starts_with(&format!("{test}/")))
    });
    found
}

/// The path of a module that a file declares, without `.rs` or `/mod.rs`.
fn child(file: &str, name: &str) -> String {
    let folder = file.strip_suffix("/mod.rs").or(file.strip_suffix("/lib.rs")).or(file.strip_suffix(".rs"));
    format!("{}/{name}", folder.expect("a file of Rust"))
}

/// Rust with spaces in place of comments, strings and characters; lines stay where they are.
pub fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out: Vec<u8> = bytes.iter().map(|&byte| if byte == b'\n' { byte } else { b' ' }).collect();
    let mut at = 0;
    while at < bytes.len() {
        match skipped(&bytes[at..], at.checked_sub(1).map(|before| bytes[before])) {
            0 => {
                if bytes[at].is_ascii() {
                    out[at] = bytes[at];
                }
                at += 1;
            }
            length => at += length,
        }
    }
    String::from_utf8(out).expect("ASCII")
}

/// The length of the comment, string or character that a text begins with, if it does.
fn skipped(text: &[u8], before: Option<u8>) -> usize {
    let find = |needle: &[u8], from: usize| {
        (from..text.len()).find(|&at| text[at..].starts_with(needle)).map_or(text.len(), |at| at + needle.len())
    };
    let in_word = before.is_some_and(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    match text {
        [b'/', b'/', ..] => find(b"\n", 2) - 1,
        [b'/', b'*', ..] => find(b"*/", 2),
        [b'"', ..] => quoted(text),
        [b'r', b'"' | b'#', ..] if !in_word || before == Some(b'b') || before == Some(b'c') => {
            let hashes = text[1..].iter().take_while(|&&byte| byte == b'#').count();
            if text.get(1 + hashes) != Some(&b'"') {
                return 0; // a raw identifier
            }
            find(&[b"\"", &b"#".repeat(hashes)[..]].concat(), 2 + hashes)
        }
        [b'\'', b'\\', ..] => find(b"'", 3),
        // A character, not a lifetime. Those outside ASCII take several bytes.
        [b'\'', ..] => (2..6)
            .find(|&at| text.get(at) == Some(&b'\''))
            .filter(|&at| at == 2 || !text[1].is_ascii())
            .map_or(0, |at| at + 1),
        _ => 0,
    }
}

/// The length of a string in quotes.
fn quoted(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// Code without what is marked `#[cfg(test)]`, and the modules so marked that are files of their own.
fn without_tests(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut text, mut modules) = (code.to_string(), Vec::new());
    while let Some(start) = text.find(MARK) {
        let rest = &text[start + MARK.len()..];
        let end = rest.find(['{', ';']).expect("an item behind an attribute");
        let mut length = end + 1;
        if rest[end..].starts_with('{') {
            let mut depth = 0;
            length = end
                + 1
                + rest[end..]
                    .find(|c| {
                        depth += i32::from(c == '{') - i32::from(c == '}');
                        depth == 0
                    })
                    .expect("a brace that ends");
        } else if let Some((_, name)) = rest[..end].rsplit_once("mod ") {
            modules.push(name.trim().to_string());
        }
        let end = start + MARK.len() + length;
        let blank: String = text[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        text.replace_range(start..end, &blank);
    }
    (text, modules)
}

#[test]
fn comments_strings_and_tests_are_left_out() {
    let text = "a /* b */ \"c \\\" //\" d // e\n'f' '\\'' 'g r#\"h\"#\n\
                #[cfg(test)]\nmod i {\n j { k }\n}\nl '…' m\n#[cfg(test)] mod n;\no";
    let (text, modules) = without_tests(&code(text));
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["a", "d", "'g", "l", "m", "o"]);
    assert_eq!(text.lines().nth(6), Some("l       m"));
    assert_eq!(modules, ["n"]);
    assert_eq!(child("src/text/mod.rs", "tests"), "src/text/tests");
}
