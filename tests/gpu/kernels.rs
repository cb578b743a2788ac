//! The kernels of `kernels` without a GPU. Programs in C++ run them on the processor, thread by thread, and compare
//! their results for random inputs with their definitions. `tests/gpu/cuda` runs them on a GPU.

use std::path::Path;
use std::process::Command;

#[test]
fn kernels_of_rows_do_what_they_say() {
    check("rows");
}

#[test]
fn the_kernel_of_attention_does_what_it_says() {
    check("attention");
}

/// Build the program of this name in `tests/kernels`, and run it.
fn check(name: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(name).with_extension("cpp");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{name}"));
    let compiler = std::env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or("c++".into());
    let mut words = compiler.split_whitespace(); // such as "ccache g++"
    let mut build = Command::new(words.next().unwrap());
    build.args(words).args([
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
    ]);
    // The fortified `longjmp` refuses to jump between stacks, as fibers do.
    build.args(["-U_FORTIFY_SOURCE", "-o"]);
    let built = build.arg(&program).arg(source).output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let ran = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    print!("{said}");
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
}
