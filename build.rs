//! Gives the shared library its SONAME, and the link that programs need at run time to find it by that name.

use std::path::PathBuf;

const SONAME: &str = "libcos.so.0";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,{SONAME}");
    // llguidance has a C interface of its own, which is no part of ours.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    // OUT_DIR is <profile>/build/<package>/out; the library will lie in <profile>.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if let Some(profile) = out.ancestors().nth(3) {
        let link = profile.join(SONAME);
        let _ = std::fs::remove_file(&link);
        if let Err(error) = std::os::unix::fs::symlink("libcos.so", &link) {
            println!("cargo:warning=cannot make the link {}: {error}", link.display());
        }
    }
}
