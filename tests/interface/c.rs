//! The C interface used from C: programs under sanitizers, hosts that fork or unload, the header in each supported
//! dialect, and the programs of the README.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cos::config::Config;
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
const SONAME: &str = "libcos.so.0";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shared library that `cargo test` built beside this test. The one in the folder above is as old as the last
/// `cargo build`.
fn library() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libcos.so")
}

/// An empty folder for a test.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A compiler with the flags that all of these tests use.
fn compiler(variable: &str, default: &str, standard: &str) -> Command {
    let program = std::env::var(variable).ok().filter(|name| !name.is_empty()).unwrap_or(default.into());
    let mut words = program.split_whitespace(); // such as "ccache gcc"
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(format!("-std={standard}")).args(WARNINGS).arg("-I").arg(root().join("include"));
    command
}

/// Runs a command and returns its output. If it fails, the panic shows the output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        let missing = err.contains("cannot find") && (err.contains("asan") || err.contains("ubsan"));
        let hint = "the compiler's sanitizers are missing: install libasan and libubsan, which are parts of gcc\n";
        panic!("{}{command:?}: {}\n{out}{err}", if missing { hint } else { "" }, output.status);
    }
    out.into_owned()
}

/// Compiles a C program with sanitizers and links it with the library, in a folder of its own.
fn compile(source: &Path, folder: &Path) -> PathBuf {
    symlink(library(), folder.join(SONAME)).unwrap();
    let program = folder.join("program");
    run(compiler("CC", "cc", "c11")
        .args(["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"])
        .arg(source)
        .arg(library())
        .arg("-Wl,-rpath,$ORIGIN")
        .arg("-o")
        .arg(&program));
    program
}

fn execute(program: &Path, folder: &Path) -> String {
    run(Command::new(program)
        .arg(root())
        .current_dir(folder)
        .env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1")
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .env_remove("LSAN_OPTIONS")
        // Cargo's value would find the library of the last `cargo build`.
        .env_remove("LD_LIBRARY_PATH"))
}

/// Compiles and runs a program of `tests/c`.
fn check(name: &str) {
    let folder = scratch(name);
    let out = execute(&compile(&root().join(format!("tests/c/{name}.c")), &folder), &folder);
    println!("{name}: {out}");
    assert!(out.trim_end().ends_with("checks passed"), "{name} stopped early: {out}");
}

#[test]
fn smoke() {
    check("smoke");
}

#[test]
fn errors() {
    check("errors");
}

/// Runs `tests/c/host.c` as a host that does `what`. Returns its lines of output.
fn host(what: &str) -> Vec<String> {
    let folder = scratch(what);
    let program = folder.join("program");
    run(compiler("CC", "cc", "c11")
        .args(["-g", "-O1", "-pthread"])
        .arg(root().join("tests/c/host.c"))
        .args(["-ldl", "-o"])
        .arg(&program));
    cos::onnx::environment(None, 0, None).unwrap();
    let onnxruntime = &cos::onnx::loaded().unwrap().library;
    std::fs::copy(onnxruntime, folder.join("copy.so")).unwrap();
    // ONNX Runtime logs a warning about an initialiser that nothing uses. Appending it to the file merges it into the
    // graph.
    let field = |number: u8, data: &[u8]| [&[number << 3 | 2, data.len() as u8], data].concat();
    let tensor = [&[8, 3, 16, 1][..], &field(8, b"left_over"), &field(9, &[0; 12])].concat();
    for file in ["genai_config.json", "tokenizer.json", "model.onnx"] {
        std::fs::copy(root().join("models/demo/small").join(file), folder.join(file)).unwrap();
    }
    let model = folder.join("model.onnx");
    let graph = field(7, &field(5, &tensor));
    std::fs::File::options().append(true).open(&model).unwrap().write_all(&graph).unwrap();
    let config = folder.join("engine.json");
    std::fs::write(&config, r#"{"models": [{"path": "."}], "combine": {"kind": "target", "model": 0}, "threads": 2}"#)
        .unwrap();
    let mut command = Command::new(program);
    command.arg(what).arg(library()).arg(onnxruntime).args([&config, &model]).env("ORT_DYLIB_PATH", onnxruntime);
    if what.starts_with("host_") {
        command.env("ORT_DISABLE_TELEMETRY", "1"); // a host that loads ONNX Runtime first must set it
    }
    let out = run(command.current_dir(&folder).env_remove("LD_LIBRARY_PATH"));
    std::fs::remove_file(folder.join("copy.so")).unwrap();
    let mut lines: Vec<String> = out.lines().map(str::to_owned).collect();
    assert_eq!(lines.pop().as_deref(), Some("done"), "{what}: {out}");
    lines
}

/// The text of the model of [`host`], which is the same whatever the host does.
fn text() -> String {
    let config = r#"{"models": [{"path": "models/demo/small"}], "combine": {"kind": "target", "model": 0}}"#;
    let engine = Arc::new(Engine::load(&Config::parse(config).unwrap()).unwrap());
    let options = Options { max_tokens: 8, stop_tokens: Some(Vec::new()), ..Options::default() };
    let mut session = Session::new(&engine, &options).unwrap();
    session.prompt(&[5, 6, 7, 8]).unwrap();
    while session.step().unwrap().1 == State::Open {}
    session.decoder().committed()[4..].iter().fold("text".into(), |text, token| format!("{text} {token}"))
}

#[test]
fn a_host_may_unload_the_library() {
    assert_eq!(host("unload"), [&text(), "pool process"]);
}

#[test]
fn a_host_may_use_onnx_runtime_itself() {
    assert_eq!(host("host_first"), [&text(), "pool model", "warned"]);
    assert_eq!(host("host_second"), [&text(), "pool process"]);
    assert_eq!(host("host_copy"), [&text(), "pool process"]);
}

#[test]
fn a_host_may_fork() {
    let text = text();
    let in_child = [&text, "pool model", "warned"];
    assert_eq!(host("forks"), [&[&*text][..], &in_child, &in_child, &[&text]].concat());
    assert_eq!(host("daemons"), [&[&*text][..], &["pool process"], &[&text], &["pool process"]].concat());
    assert_eq!(host("early_forks"), [""; 0]);
}

#[test]
fn a_host_may_change_its_working_directory() {
    assert_eq!(host("moves"), [text()]);
}

/// The first code block of a language after a mark in a README.
fn example(readme: &str, mark: &str, language: &str) -> String {
    let text = std::fs::read_to_string(root().join(readme)).unwrap();
    let block = text.split_once(mark).and_then(|(_, rest)| rest.split(&format!("```{language}\n")).nth(1));
    let block = block.and_then(|rest| rest.split("```").next());
    block.unwrap_or_else(|| panic!("{readme} has nothing in {language} behind {mark:?}")).to_owned()
}

#[test]
fn the_example_of_the_readme_runs() {
    let example = example("README.md", "## Use", "c");
    assert!(example.contains("cos_text_stream_finish"), "the last characters of a text may be missing");
    let folder = scratch("readme");
    std::fs::write(folder.join("chat.c"), example).unwrap();
    let out = execute(&compile(&folder.join("chat.c"), &folder), root());
    assert!(out.len() > 20, "the example wrote only {out:?}");
}

#[test]
fn every_program_is_run() {
    let entries = std::fs::read_dir(root().join("tests/c")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let programs: BTreeSet<String> = names.filter(|name| name.ends_with(".c")).collect();
    let tested = BTreeSet::from(["errors.c", "host.c", "smoke.c"].map(String::from));
    assert_eq!(programs, tested, "give each program a test here");
}

#[test]
fn the_header_compiles_alone_and_twice() {
    let source = scratch("header").join("twice.h");
    std::fs::write(&source, "#include \"cos.h\"\n#include \"cos.h\"\n").unwrap();
    for (variable, default, language, standard) in
        [("CC", "cc", "c", "c11"), ("CXX", "c++", "c++", "c++17"), ("CXX", "c++", "c++", "c++20")]
    {
        run(compiler(variable, default, standard).args(["-fsyntax-only", "-x", language]).arg(&source));
    }
}

/// The program of `make demo` in a folder of its own.
fn demo(folder: &str) -> PathBuf {
    let folder = scratch(folder);
    symlink(library(), folder.join(SONAME)).unwrap();
    let program = folder.join("demo");
    run(compiler("CXX", "c++", "c++17")
        .arg(root().join("bindings/cpp/examples/demo.cpp"))
        .arg(library())
        .arg("-Wl,-rpath,$ORIGIN")
        .arg("-o")
        .arg(&program));
    program
}

#[test]
fn the_demo_inspects_a_configuration() {
    let program = demo("demo");
    let inspect = |config: &str| {
        run(Command::new(&program).args(["inspect", config]).current_dir(root()).env_remove("LD_LIBRARY_PATH"))
    };
    let table = inspect("models/demo/three.json");
    for expected in ["base", "math", "small", "vocabulary of 4096 tokens", "shared, float32", "8 x 2 x 64", "8,192"] {
        assert!(table.contains(expected), "no {expected:?} in\n{table}");
    }
}

#[test]
fn the_demo_tells_how_it_is_called() {
    let program = demo("demo-usage");
    let call = |words: &[&str]| {
        let output = Command::new(&program).args(words).env_remove("LD_LIBRARY_PATH").output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()))
    };
    let (code, [out, err]) = call(&["--help"]);
    assert!(code == Some(0) && out.starts_with("usage: ") && err.is_empty(), "{code:?} {out:?} {err:?}");
    for words in [&["--quick"][..], &["-h", "x"], &["inspect"], &["a", "b", "c"]] {
        let (code, [out, err]) = call(words);
        assert!(code == Some(2) && out.is_empty() && err.starts_with("usage: "), "{words:?}: {code:?} {out:?} {err:?}");
    }
}
