//! The kernels of `kernels/rows.cu` without a GPU: a program in C++ runs them, thread by thread, on the processor, and compares
//! what they make of random rows with what they say they do. `tests/gpu/cuda.rs` runs them where they belong.

use std::path::Path;
use std::process::Command;

#[test]
fn kernels_do_what_they_say() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/rows.cpp");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let compiler = std::env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or("c++".into());
    let mut words = compiler.split_whitespace(); // such as "ccache g++"
    let mut build = Command::new(words.next().unwrap());
    build.args(words).args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]);
    // which refuses to jump from one stack to another, as fibers do
    build.args(["-U_FORTIFY_SOURCE", "-o"]);
    let built = build.arg(&program).arg(source).output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let ran = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    print!("{said}");
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
}
