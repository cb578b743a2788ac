//! Finds and loads ONNX Runtime, and makes the one environment of the process with its shared thread pool.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use once_cell::sync::OnceCell;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// The environment variable that names the ONNX Runtime library, before anything else.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

struct Shared {
    environment: Environment,
    threads: usize,
    spinning: bool,
    library: PathBuf,
}

/// One environment for the process: ONNX Runtime allows no second one, and all models must share its thread pool
/// (two models with spinning pools of their own run 2.3 times slower on two cores).
static SHARED: OnceCell<Shared> = OnceCell::new();

/// The environment, made on first use from `library` (unless `ORT_DYLIB_PATH` is set) with `threads` threads (0: as many as
/// there are cores for us), which spin unless told not to.
///
/// Later calls get the same one; asking for another number of threads, or for other spinning, then is an error.
pub fn environment(library: Option<&Path>, threads: usize, spinning: Option<bool>) -> Result<&'static Environment> {
    // Two first uses at once must not both try.
    static FIRST: Mutex<()> = Mutex::new(());
    let _first = FIRST.lock();
    let shared = SHARED.get_or_try_init(|| {
        let threads = if threads == 0 { cores() } else { threads };
        make(library, threads, spinning.unwrap_or(true))
    })?;
    if threads != 0 && threads != shared.threads {
        return Err(Error::Config(format!(
            "threads is {threads}, but the thread pool of this process was made with {}; \
             it is shared by all engines, so leave threads out or set the same number",
            shared.threads
        )));
    }
    if spinning.is_some_and(|spinning| spinning != shared.spinning) {
        return Err(Error::Config(format!(
            "spinning is {}, but the thread pool of this process was made with {}; \
             it is shared by all engines, so leave spinning out or set the same",
            !shared.spinning, shared.spinning
        )));
    }
    Ok(&shared.environment)
}

/// How many threads can compute at once: physical cores, or fewer where affinity or a control group (the limit of a
/// container) allows no more.
///
/// ONNX Runtime counts for itself if it is not told, but knows nothing of control groups, and threads that spin beyond
/// one's share are the slowest of all.
fn cores() -> usize {
    num_cpus::get_physical().min(num_cpus::get()).max(1)
}

/// The ONNX Runtime library that was loaded, and the number of threads of its pool.
pub fn library() -> Option<(&'static Path, usize)> {
    SHARED.get().map(|shared| (shared.library.as_path(), shared.threads))
}

fn make(library: Option<&Path>, threads: usize, spinning: bool) -> Result<Shared> {
    let path = find(library)?;
    let failed = |error: &dyn std::fmt::Display| {
        Error::Runtime(format!("{error}; ONNX Runtime 1.{} or newer is needed", ort::MINOR_VERSION))
    };
    // ort looks for relative paths beside the program, we beside the working directory.
    let path = path.canonicalize().unwrap_or(path);
    let builder = ort::init_from(&path).map_err(|error| match &error {
        // What the loader says is a level below.
        ort::LoadDynamicError::Dlopen { error: cause, path } => match std::error::Error::source(cause) {
            Some(cause) => failed(&format_args!("cannot load {}: {cause}", path.display())),
            None => failed(&error),
        },
        ort::LoadDynamicError::BadVersion { version_str, path } => {
            failed(&format_args!("{} is version {version_str}", path.display()))
        }
        _ => failed(&error),
    })?;
    let make = || -> ort::Result<Environment> {
        let pool = GlobalThreadPoolOptions::default().with_intra_threads(threads)?.with_spin_control(spinning)?;
        let environment = builder
            .with_name("cos")
            .with_telemetry(false)
            .with_global_thread_pool(pool)
            // A library has no business on its host's standard error: what ORT logs goes to `tracing`.
            .with_logger(Arc::new(|level, _category: &str, _id: &str, location: &str, message: &str| match level {
                LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "onnxruntime", location, "{message}"),
                _ => tracing::warn!(target: "onnxruntime", location, "{message}"),
            }))
            .build()?;
        environment.set_log_level(LogLevel::Warning);
        Ok(environment)
    };
    Ok(Shared { environment: make().map_err(|error| failed(&error))?, threads, spinning, library: path })
}

/// Where the library is: `ORT_DYLIB_PATH`, then the configuration, then beside this library where set-up puts it,
/// then whatever the system's loader finds.
fn find(configured: Option<&Path>) -> Result<PathBuf> {
    let variable = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = variable.map(|path| (path, LIBRARY_VARIABLE)).or(configured.map(|path| (path.into(), "onnxruntime")));
    if let Some((path, source)) = named {
        let path = if path.is_dir() { library_in(&path).unwrap_or(path) } else { path };
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Error::Runtime(format!(
                "{source} names {}, which is not a file; name the library, such as libonnxruntime.so",
                path.display()
            )))
        };
    }
    let own = own_path();
    own.as_deref().and_then(near).or_else(system_library).ok_or_else(|| {
        Error::Runtime(format!(
            "libonnxruntime.so was not found beside {}; run `make onnxruntime` in CoS's folder, \
                 or name the library in {LIBRARY_VARIABLE} or as \"onnxruntime\" in the configuration",
            own.as_deref().unwrap_or(Path::new("libcos.so")).display()
        ))
    })
}

/// A library beside a file, or in a folder `onnxruntime` there; or the same in the folders above, where set-up puts it in
/// cargo's, but then of the same owner: in one like /tmp anybody may have left a library for us.
fn near(own: &Path) -> Option<PathBuf> {
    own.ancestors().skip(1).take(4).enumerate().find_map(|(above, folder)| {
        let folders = [folder.to_owned(), folder.join("onnxruntime")];
        folders.iter().filter_map(|folder| library_in(folder)).find(|library| above == 0 || same_owner(own, library))
    })
}

fn same_owner(one: &Path, other: &Path) -> bool {
    let owner = |path: &Path| path.metadata().map(|metadata| metadata.uid()).ok();
    owner(one).is_some_and(|uid| owner(other) == Some(uid))
}

/// The newest `libonnxruntime.so*` of a folder.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = folder.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"libonnxruntime.so")))
        .filter(|path| path.is_file())
        .max()
}

/// The file that this code was loaded from: `libcos.so`, or a program that links the crate.
fn own_path() -> Option<PathBuf> {
    // SAFETY: dladdr only reads the address and fills `info`, and its strings live as long as the file is loaded.
    let name = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(own_path as *const libc::c_void, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    PathBuf::from(OsStr::from_bytes(name.to_bytes())).canonicalize().ok()
}

/// A library that the system's loader knows by name, if there is one.
fn system_library() -> Option<PathBuf> {
    [c"libonnxruntime.so.1", c"libonnxruntime.so"].into_iter().find_map(|name| {
        // SAFETY: the name is a C string; loading runs the library's initialisers, which is what we are about to do
        // anyway, and the handle is kept for good.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        (!handle.is_null()).then(|| PathBuf::from(OsStr::from_bytes(name.to_bytes())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_another_user_left_above_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("release/deps/libcos.so");
        let library = folder.path().join("onnxruntime/libonnxruntime.so.1.31.1");
        for file in [&own, &library] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        assert_eq!(near(&own), Some(library.clone()));
        if std::os::unix::fs::chown(&library, Some(65534), None).is_ok() {
            assert_eq!(near(&own), None);
        } else {
            println!("skipped in part, because only root can give files away");
        }
        let beside = own.with_file_name("libonnxruntime.so");
        std::fs::write(&beside, "").unwrap();
        assert_eq!(near(&own), Some(beside));
    }
}
