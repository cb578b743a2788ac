//! Finds and loads ONNX Runtime, and makes the one environment of the process with its shared thread pool.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use once_cell::sync::OnceCell;
use ort::environment::{Environment, EnvironmentBuilder, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::process::{self, PerProcess, Process};

/// The environment variable that names the ONNX Runtime library, before anything else.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// ONNX Runtime as this process uses it.
pub struct Runtime {
    environment: Environment,
    /// The library that was loaded.
    pub library: PathBuf,
    /// Threads of a pool; `None` if other code made it, which ONNX Runtime does not tell.
    pub threads: Option<usize>,
    /// Whether they stay awake for a while when there is nothing to do.
    spinning: bool,
    /// Who has a pool.
    pub pools: Pools,
}

/// Who has a thread pool. One for all models is best: two models with spinning pools of their own run 2.3 times slower on two cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pools {
    /// All models of the process share one.
    Process,
    /// They share the one that other code of the process made with the environment.
    Host,
    /// Each model has its own, because other code made the environment without a pool to share.
    ModelBesideHost,
    /// Each model has its own, because the threads of the shared one are in the process that this one was forked from.
    ModelInChild,
}

impl Pools {
    /// What `describe` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Pools::Process => "process",
            Pools::Host => "host",
            Pools::ModelBesideHost | Pools::ModelInChild => "model",
        }
    }

    /// What a user should know of it.
    pub fn warning(self) -> Option<&'static str> {
        match self {
            Pools::Process => None,
            Pools::Host => Some(
                "other code of the process made ONNX Runtime's environment first, with a thread pool of its own, which all models use; \
                 \"threads\" and \"spinning\" have no effect",
            ),
            Pools::ModelBesideHost => Some(
                "other code of the process made ONNX Runtime's environment first, without a thread pool to share, so each model has one \
                 of its own and several models decode more slowly; open an engine before other code uses ONNX Runtime",
            ),
            Pools::ModelInChild => Some(
                "the process was forked from one that had opened engines, so each model has a thread pool of its own and several models \
                 decode more slowly; open the first engine behind fork()",
            ),
        }
    }
}

impl Runtime {
    /// Build a session in its environment, with the pool that is meant for it.
    pub fn session(&self) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&self.environment)?;
        if self.pools != Pools::Process {
            // What is logged goes to the host's logger, which the host may free once it has released its environment. Errors are returned.
            builder = builder.with_log_level(LogLevel::Fatal)?;
        }
        Ok(match (self.pools, self.threads) {
            (Pools::ModelBesideHost | Pools::ModelInChild, Some(threads)) => builder
                .with_independent_thread_pool()?
                .with_intra_threads(threads)?
                .with_config_entry("session.intra_op.allow_spinning", if self.spinning { "1" } else { "0" })?,
            _ => builder,
        })
    }
}

/// The same for all engines of a process, since ONNX Runtime allows one environment.
#[derive(Default)]
struct Shared {
    /// Two first uses at once must not both try.
    first: Mutex<()>,
    runtime: OnceCell<Runtime>,
}

static SHARED: PerProcess<Shared> = PerProcess::new(Shared::default);

/// What a process has made, also for its children.
static MADE: OnceCell<(Environment, PathBuf)> = OnceCell::new();

/// The number of the process that makes it now, or 0. A child that was forked meanwhile has locks that nobody will release.
static MAKING: AtomicU32 = AtomicU32::new(0);

/// Marks that this process makes it, until dropped.
struct Making;

impl Making {
    fn start() -> Result<Self> {
        let process = Process::current().number();
        let parent = MAKING.swap(process, Ordering::SeqCst);
        if parent == 0 || parent == process {
            return Ok(Making);
        }
        MAKING.store(parent, Ordering::SeqCst);
        Err(Error::Unsupported(
            "this process was forked while its parent opened its first engine, which left ONNX Runtime half made; fork before that, or \
             when the engine is open"
                .into(),
        ))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        MAKING.store(0, Ordering::SeqCst);
    }
}

/// ONNX Runtime, loaded on first use from `library` (unless `ORT_DYLIB_PATH` is set) with a pool of `threads` threads (0: as many as
/// there are cores for us), which spin unless told not to.
///
/// Later calls get the same one; asking for another number of threads, or for other spinning, then is an error.
pub fn load(library: Option<&Path>, threads: usize, spinning: Option<bool>) -> Result<&'static Runtime> {
    let shared = SHARED.get();
    let _first = shared.first.lock();
    let runtime = shared.runtime.get_or_try_init(|| make(library, threads, spinning))?;
    let Some(known) = runtime.threads else { return Ok(runtime) };
    if threads != 0 && threads != known {
        return Err(Error::Config(format!(
            "threads is {threads}, but the thread pool of this process was made with {known}; \
             it is shared by all engines, so leave threads out or set the same number"
        )));
    }
    if let Some(spinning) = spinning.filter(|&spinning| spinning != runtime.spinning) {
        return Err(Error::Config(format!(
            "spinning is {spinning}, but the thread pool of this process was made with {}; \
             it is shared by all engines, so leave spinning out or set the same",
            runtime.spinning
        )));
    }
    Ok(runtime)
}

/// Its environment, likewise.
pub fn environment(library: Option<&Path>, threads: usize, spinning: Option<bool>) -> Result<&'static Environment> {
    load(library, threads, spinning).map(|runtime| &runtime.environment)
}

/// How many threads can compute at once: physical cores, or fewer where affinity or a control group (the limit of a
/// container) allows no more.
///
/// ONNX Runtime counts for itself if it is not told, but knows nothing of control groups, and threads that spin beyond
/// one's share are the slowest of all.
fn cores() -> usize {
    num_cpus::get_physical().min(num_cpus::get()).max(1)
}

/// ONNX Runtime, if it was loaded.
pub fn loaded() -> Option<&'static Runtime> {
    SHARED.get().runtime.get()
}

fn make(library: Option<&Path>, threads: usize, spinning: Option<bool>) -> Result<Runtime> {
    let threads = if threads == 0 { cores() } else { threads };
    let with = |environment: Environment, library: PathBuf, pools: Pools| Runtime {
        environment,
        library,
        threads: (pools != Pools::Host).then_some(threads),
        // Several pools that spin would fight for the cores.
        spinning: spinning.unwrap_or(pools == Pools::Process),
        pools,
    };
    if let Some((environment, library)) = MADE.get() {
        return Ok(with(environment.clone(), library.clone(), Pools::ModelInChild));
    }
    let _making = Making::start()?;
    let path = find(library)?;
    let failed = |error: &dyn std::fmt::Display| {
        Error::Runtime(format!("{error}; ONNX Runtime 1.{} or newer is needed", ort::MINOR_VERSION))
    };
    // ort looks for relative paths beside the program, we beside the working directory.
    let path = path.canonicalize().unwrap_or(path);
    let not_made =
        |error: ort::Error| Error::Runtime(format!("{}: ONNX Runtime cannot start: {error}", path.display()));
    // ONNX Runtime keeps the address of its logger for good.
    process::stay_loaded();
    // Its builds for Linux report to Microsoft from 1.29 on, by a thread for which a child of fork() waits for ever when it exits.
    process::set_default(c"ORT_DISABLE_TELEMETRY", c"ORT_DISABLE_TELEMETRY=1");
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
    let (environment, pools) = make_environment(builder, threads, spinning.unwrap_or(true)).map_err(not_made)?;
    _ = MADE.set((environment.clone(), path.clone()));
    Ok(with(environment, path, pools))
}

/// A model that does nothing.
const PROBE: &[u8] =
    b"\x08\x08:7\n\x10\n\x01x\x12\x01y\"\x08Identity\x12\x01pZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01\
    b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11";

/// The environment, and who has pools in it. If there is one in the process already, ONNX Runtime gives that one, and does not say so.
fn make_environment(builder: EnvironmentBuilder, threads: usize, spinning: bool) -> ort::Result<(Environment, Pools)> {
    let pool = GlobalThreadPoolOptions::default().with_intra_threads(threads)?.with_spin_control(spinning)?;
    let heard = Arc::new(AtomicBool::new(false));
    let logger = heard.clone();
    let environment = builder
        .with_name("cos")
        .with_telemetry(false)
        .with_global_thread_pool(pool)
        // A library has no business on its host's standard error: what ORT logs goes to `tracing`.
        .with_logger(Arc::new(move |level, _category: &str, _id: &str, location: &str, message: &str| {
            logger.store(true, Ordering::Relaxed);
            match level {
                LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "onnxruntime", location, "{message}"),
                LogLevel::Warning => tracing::warn!(target: "onnxruntime", location, "{message}"),
                LogLevel::Info | LogLevel::Verbose => {}
            }
        }))
        .build()?;
    // A session without a pool of its own can be made only where there is one to share. All that is logged meanwhile goes to the logger
    // of whoever made the environment.
    let has_pool = Session::builder(&environment)?.commit_from_memory(PROBE).is_ok();
    let is_ours = heard.load(Ordering::Relaxed);
    if is_ours {
        environment.set_log_level(LogLevel::Warning);
    }
    let pools = match (is_ours, has_pool) {
        (true, _) => Pools::Process,
        (false, true) => Pools::Host,
        (false, false) => Pools::ModelBesideHost,
    };
    Ok((environment, pools))
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
    let own = process::own_path();
    own.as_deref().and_then(near).or_else(system_library).ok_or_else(|| missing(own.as_deref()))
}

/// What to do without ONNX Runtime: the command puts it where [`near`] looks, in a source tree and in an installation.
fn missing(own: Option<&Path>) -> Error {
    let place = own.and_then(|own| Some((own, own.parent()?.join("onnxruntime"))));
    let beside = place.map_or(String::from("; "), |(own, folder)| {
        let (own, folder) = (own.display(), folder.display());
        format!(" beside {own}; run `scripts/fetch-onnxruntime '{folder}'` in CoS's source folder, or ")
    });
    Error::Runtime(format!(
        "libonnxruntime.so was not found{beside}name the library in {LIBRARY_VARIABLE} or as \"onnxruntime\" in the \
         configuration"
    ))
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
