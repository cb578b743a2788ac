//! The C interface does not drift: the header is generated from the sources, and the library exports exactly what it
//! declares.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shared library that `cargo test` built with the crate.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // The library in the folder above is only updated by `cargo build`.
    let library = test.with_file_name("libcos.so");
    assert!(library.is_file(), "{} is missing", library.display());
    library
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_header_is_fresh() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut generated = Vec::new();
    let builder = cbindgen::Builder::new().with_config(config).with_src(root().join("src/ffi/mod.rs"));
    builder.generate().unwrap().write(&mut generated);
    // The sections on safety are for Rust. C callers read the parameters.
    let generated = without_safety(&String::from_utf8(generated).unwrap());
    let path = root().join("include/cos.h");
    if std::env::var_os("COS_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == generated, "include/cos.h is stale; run `make header` and commit it");
}

fn without_safety(header: &str) -> String {
    let mut out = String::new();
    let mut skipping = false;
    for line in header.lines() {
        if line == " * # Safety" {
            skipping = true;
            out.truncate(out.trim_end_matches(" *\n").len());
        }
        skipping &= line != " */";
        if !skipping {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[test]
fn every_item_of_the_header_is_documented() {
    let header = std::fs::read_to_string(root().join("include/cos.h")).unwrap();
    let lines: Vec<&str> = header.lines().collect();
    let mut items = 0;
    for (index, line) in lines.iter().enumerate() {
        let function = line.contains(" cos_") && line.contains('(') && !line.starts_with([' ', '/', '*']);
        let constant = line.starts_with("#define COS_") && !line.starts_with("#define COS_H");
        let member = line.starts_with("  ") && !line.starts_with("   ") && line.ends_with(';');
        let aggregate = line.starts_with("typedef struct");
        if function || constant || member || aggregate {
            items += 1;
            assert_eq!(lines[index - 1].trim(), "*/", "no documentation: {line}");
        }
    }
    assert!(items > 60, "only {items} items were recognised");
    for function in declared(&header) {
        let position = header.rfind(&format!("{function}(")).unwrap();
        let comment = &header[header[..position].rfind("/**").unwrap()..position];
        assert!(comment.contains("Since 0.1"), "{function} does not say since when");
    }
}

/// The names of the functions that a header declares.
fn declared(header: &str) -> BTreeSet<String> {
    let code: Vec<&str> = header.lines().filter(|line| !line.starts_with([' ', '/', '*'])).collect();
    let mut names = BTreeSet::new();
    for line in code {
        if let Some(end) = line.find('(')
            && let Some(start) = line[..end].rfind(|c: char| !(c.is_alphanumeric() || c == '_'))
            && line[start + 1..end].starts_with("cos_")
        {
            names.insert(line[start + 1..end].to_owned());
        }
    }
    names
}

#[test]
fn exported_symbols_are_those_of_the_header() {
    let header = std::fs::read_to_string(root().join("include/cos.h")).unwrap();
    let symbols = run("nm", &["-D", "--defined-only", library().to_str().unwrap()]);
    let exported: BTreeSet<String> =
        symbols.lines().filter_map(|line| Some(line.split(' ').nth(2)?.to_owned())).collect();
    assert_eq!(exported, declared(&header));
    assert!(exported.len() > 15);
}

/// README.md and docs/versions.md say which systems a library runs on. Newer glibc has new versions of some functions,
/// such as `fmod` of 2.38, and a call of one would exclude more systems.
#[test]
fn the_library_needs_no_newer_glibc_than_the_readme_says() {
    let symbols = run("objdump", &["-T", library().to_str().unwrap()]);
    let undefined = symbols.lines().filter(|line| line.contains("*UND*") && !line.contains("  w  "));
    let needed: Vec<(u32, &str)> = undefined
        .filter_map(|line| {
            let version = line.split("GLIBC_2.").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?;
            Some((version.parse().unwrap(), line))
        })
        .collect();
    assert!(needed.len() > 30, "{symbols}");
    let newer: Vec<&str> = needed.iter().filter(|(version, _)| *version > 34).map(|(_, line)| *line).collect();
    assert!(newer.is_empty(), "{newer:#?}");
}

#[test]
fn the_library_has_its_soname() {
    let library = library();
    let dynamic = run("readelf", &["-d", library.to_str().unwrap()]);
    assert!(dynamic.contains("Library soname: [libcos.so.0]"), "{dynamic}");
    // Loading needs only the C library and its companions. ONNX Runtime is loaded on first use.
    for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        let plain = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux", "libpthread.so", "libdl.so"];
        assert!(plain.iter().any(|name| line.contains(name)), "{line}");
    }
}
