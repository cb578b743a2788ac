//! The files that are checked.

use std::path::Path;

/// A text file of ours.
pub struct Source {
    /// Below the project's folder.
    pub path: String,
    pub text: String,
}

/// Folders with files of ours.
const FOLDERS: [&str; 11] =
    ["src", "tests", "benches", "bindings", "scripts", "kernels", "packaging", "include", "models", "docs", ".ci"];

/// Folders beside them that are not ours.
const OTHERS: [&str; 2] = [".git", "target"];

/// Kinds of files that are checked. Those without an extension are scripts and makefiles.
const KINDS: [&str; 14] = ["rs", "c", "h", "cpp", "hpp", "cu", "cuh", "py", "go", "java", "sh", "md", "toml", ""];

/// Generated files and templates of such, and what others wrote.
const NOT_OURS: [&str; 12] = [
    "bindings/go/cos.h",
    "bindings/java/native/headers",
    "bindings/triton/gateway/wire",
    "include/cos.h",
    "docs/cuda.md",
    "docs/two-gpus",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "tests/conformance/report/summary.md",
    "tests/exports",
    "tests/fixtures",
    "tests/vectors/errors.txt",
];

/// Every file of ours, in the order of their paths.
pub fn sources(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    FOLDERS.iter().for_each(|folder| walk(root, folder, &mut found));
    walk(root, "", &mut found);
    found.sort_by(|a: &Source, b: &Source| a.path.cmp(&b.path));
    found
}

fn walk(root: &Path, folder: &str, found: &mut Vec<Source>) {
    let Ok(entries) = root.join(folder).read_dir() else { return };
    for entry in entries.map(|entry| entry.expect("an entry")) {
        let name = entry.file_name().into_string().expect("UTF-8");
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let kind = entry.file_type().expect("a type");
        if NOT_OURS.contains(&path.as_str()) || name.starts_with('.') || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() && !folder.is_empty() && !["target", "build", "__pycache__"].contains(&name.as_str()) {
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

/// Folders of the project that neither list has.
pub fn unknown_folders(root: &Path) -> Vec<String> {
    let entries = root.read_dir().expect("the project").map(|entry| entry.expect("an entry"));
    let folders = entries.filter(|entry| entry.file_type().expect("a type").is_dir());
    let names = folders.map(|entry| entry.file_name().into_string().expect("UTF-8"));
    names.filter(|name| !FOLDERS.contains(&name.as_str()) && !OTHERS.contains(&name.as_str())).collect()
}

#[test]
fn folders_that_no_list_has_are_found() {
    let root = tempfile::tempdir().unwrap();
    for folder in ["src", ".git", "lib"] {
        std::fs::create_dir(root.path().join(folder)).unwrap();
    }
    assert_eq!(unknown_folders(root.path()), ["lib"]);
}
