//! Finds and loads ONNX Runtime, and creates the environment of the process with its shared thread pool.

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

use super::workers::{Crew, Workers};
use crate::error::{Error, Result};
use crate::process::{self, PerProcess, Process};

/// The environment variable that names the ONNX Runtime library. It precedes every other setting.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// ONNX Runtime as this process uses it. All engines of the process share it.
pub struct Runtime {
    environment: Environment,
    /// The library file that was loaded.
    pub library: PathBuf,
    /// The threads of a pool. `None` if other code created the pool, because ONNX Runtime does not tell.
    pub threads: Option<usize>,
    /// Whether idle threads spin for a while before they sleep.
    spinning: bool,
    /// Who owns the thread pools.
    pub pools: ThreadPools,
    /// The threads of the pool, if it is ours and they spin.
    pub workers: Option<Workers>,
}

/// Who owns the thread pools. One pool for all models is fastest: two models with spinning pools of their own run 2.3
/// times slower on two cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadPools {
    /// All models of the process share one pool of CoS.
    Process,
    /// All models share the pool that other code of the process created with the environment.
    Host,
    /// Each model has its own, because other code created the environment without a shared pool.
    ModelBesideHost,
    /// Each model has its own, because the shared pool's threads exist only in the process that this one was forked
    /// from.
    ModelInChild,
}

impl ThreadPools {
    /// The name in `cos_engine_describe`.
    pub fn name(self) -> &'static str {
        match self {
            ThreadPools::Process => "process",
            ThreadPools::Host => "host",
            ThreadPools::ModelBesideHost | ThreadPools::ModelInChild => "model",
        }
    }

    /// What a user should know about it.
    pub fn warning(self) -> Option<&'static str> {
        match self {
            ThreadPools::Process => None,
            ThreadPools::Host => Some(
                "other code of the process created ONNX Runtime's environment first, and all models use its thread \
                 pool; \"threads\" and \"spinning\" have no effect",
            ),
            ThreadPools::ModelBesideHost => Some(
                "other code of the process created ONNX Runtime's environment first, without a shared thread pool, so \
                 each model has its own thread pool and several models decode more slowly; open an engine before other \
                 code uses ONNX Runtime",
            ),
            ThreadPools::ModelInChild => Some(
                "the process was forked from one that had opened engines, so each model has its own thread pool and \
                 several models decode more slowly; open the first engine after fork()",
            ),
        }
    }
}

impl Runtime {
    /// A builder of sessions in the environment, with the thread pool that they should use.
    pub fn session(&self) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&self.environment)?;
        if self.pools != ThreadPools::Process {
            // Logs go to the host's logger, and the host may free it once it has released its environment. So nothing
            // but fatal errors is logged. Other errors are returned.
            builder = builder.with_log_level(LogLevel::Fatal)?;
        }
        Ok(match (self.pools, self.threads) {
            (ThreadPools::ModelBesideHost | ThreadPools::ModelInChild, Some(threads)) => builder
                .with_independent_thread_pool()?
                .with_intra_threads(threads)?
                .with_config_entry("session.intra_op.allow_spinning", if self.spinning { "1" } else { "0" })?,
            _ => builder,
        })
    }

    /// A builder of sessions with threads of their own that sleep while they wait.
    pub fn calm_session(&self) -> ort::Result<SessionBuilder> {
        Session::builder(&self.environment)?
            .with_independent_thread_pool()?
            .with_intra_threads(self.threads.unwrap_or(1))?
            .with_config_entry("session.intra_op.allow_spinning", "0")
            .map_err(Into::into)
    }
}

/// The runtime of a process. ONNX Runtime allows one environment.
#[derive(Default)]
struct Shared {
    /// Held while the runtime is created, so that two first uses do not both try.
    first: Mutex<()>,
    runtime: OnceCell<Runtime>,
}

static SHARED: PerProcess<Shared> = PerProcess::new(Shared::default);

/// The environment and the library that this process or an ancestor loaded. Children of `fork()` inherit both.
static MADE: OnceCell<(Environment, PathBuf)> = OnceCell::new();

/// The number of the process that is creating the environment, or 0. In a child that is forked meanwhile, ONNX Runtime
/// holds locks that no thread will release.
static MAKING: AtomicU32 = AtomicU32::new(0);

/// Marks that this process is creating the environment, until dropped.
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
            "this process was forked while its parent opened its first engine, so ONNX Runtime is not usable here; \
             fork before that, or when the engine is open"
                .into(),
        ))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        MAKING.store(0, Ordering::SeqCst);
    }
}

/// ONNX Runtime. The first call loads it and creates the environment; later calls return the same one.
///
/// `library` names the file, unless the variable [`LIBRARY_VARIABLE`] does. `threads` is the size of the thread pool; 0
/// means one for each usable core. Threads spin unless `spinning` is `Some(false)`.
///
/// # Errors
/// `Runtime` if the library cannot be found or loaded, `Config` if a later call asks for other threads or spinning.
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

/// The environment of [`load`].
pub fn environment(library: Option<&Path>, threads: usize, spinning: Option<bool>) -> Result<&'static Environment> {
    load(library, threads, spinning).map(|runtime| &runtime.environment)
}

/// The number of physical cores that this process may use. Affinity and control groups (the limits of containers) lower
/// it.
///
/// ONNX Runtime's own count ignores control groups. A pool with more spinning threads than cores is very slow.
fn cores() -> usize {
    num_cpus::get_physical().min(process::processors()).max(1)
}

/// Passes on the processor so far, of all models, that ran on threads which sleep while they wait.
pub fn calm_passes() -> u64 {
    loaded().and_then(|runtime| runtime.workers.as_ref()).map_or(0, Workers::calm_passes)
}

/// ONNX Runtime, or `None` if it has not been loaded.
pub fn loaded() -> Option<&'static Runtime> {
    SHARED.get().runtime.get()
}

fn make(library: Option<&Path>, threads: usize, spinning: Option<bool>) -> Result<Runtime> {
    let threads = if threads == 0 { cores() } else { threads };
    let crew = Crew::default();
    let with = |environment: Environment, library: PathBuf, pools: ThreadPools| {
        // Several spinning pools would compete for the cores.
        let spinning = spinning.unwrap_or(pools == ThreadPools::Process);
        Runtime {
            environment,
            library,
            threads: (pools != ThreadPools::Host).then_some(threads),
            spinning,
            pools,
            workers: (pools == ThreadPools::Process && spinning && threads > 1).then(|| Workers::new(crew.clone())),
        }
    };
    if let Some((environment, library)) = MADE.get() {
        return Ok(with(environment.clone(), library.clone(), ThreadPools::ModelInChild));
    }
    let _making = Making::start()?;
    let path = find(library)?;
    let failed = |error: &dyn std::fmt::Display| {
        Error::Runtime(format!("{error}; ONNX Runtime 1.{} or newer is needed", ort::MINOR_VERSION))
    };
    // `ort` resolves relative paths from the program's folder, CoS from the working directory.
    let path = path.canonicalize().unwrap_or(path);
    let not_made =
        |error: ort::Error| Error::Runtime(format!("{}: ONNX Runtime cannot start: {error}", path.display()));
    // ONNX Runtime keeps the address of its logger until the process ends.
    process::stay_loaded();
    // From 1.29 on, its Linux builds send telemetry from a thread. A child of fork() would wait for that thread for
    // ever when it exits.
    process::set_default(c"ORT_DISABLE_TELEMETRY", c"ORT_DISABLE_TELEMETRY=1");
    let builder = ort::init_from(&path).map_err(|error| match &error {
        // The message of the system's loader is the source of the error.
        ort::LoadDynamicError::Dlopen { error: cause, path } => match std::error::Error::source(cause) {
            Some(cause) => failed(&format_args!("cannot load {}: {cause}", path.display())),
            None => failed(&error),
        },
        ort::LoadDynamicError::BadVersion { version_str, path } => {
            failed(&format_args!("{} is version {version_str}", path.display()))
        }
        _ => failed(&error),
    })?;
    let (environment, pools) = make_environment(builder, threads, spinning.unwrap_or(true), &crew).map_err(not_made)?;
    _ = MADE.set((environment.clone(), path.clone()));
    Ok(with(environment, path, pools))
}

/// A model with one `Identity` operator.
const PROBE: &[u8] =
    b"\x08\x08:7\n\x10\n\x01x\x12\x01y\"\x08Identity\x12\x01pZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01\
    b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11";

/// Create the environment, and find out who owns its thread pool.
///
/// If the process has an environment already, ONNX Runtime returns that one without saying so. What reaches our logger,
/// and whether a session can do without a pool of its own, tell.
fn make_environment(
    builder: EnvironmentBuilder,
    threads: usize,
    spinning: bool,
    crew: &Crew,
) -> ort::Result<(Environment, ThreadPools)> {
    let pool = GlobalThreadPoolOptions::default().with_intra_threads(threads)?.with_spin_control(spinning)?;
    let pool = pool.with_thread_manager(crew.clone())?;
    let heard = Arc::new(AtomicBool::new(false));
    let logger = heard.clone();
    let environment = builder
        .with_name("cos")
        .with_telemetry(false)
        .with_global_thread_pool(pool)
        // A library should not write to standard error, so logs go to `tracing`.
        .with_logger(Arc::new(move |level, _category: &str, _id: &str, location: &str, message: &str| {
            logger.store(true, Ordering::Relaxed);
            match level {
                LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "onnxruntime", location, "{message}"),
                LogLevel::Warning => tracing::warn!(target: "onnxruntime", location, "{message}"),
                LogLevel::Info | LogLevel::Verbose => {}
            }
        }))
        .build()?;
    // A session without a pool of its own can be created only if there is a shared one. Its creation logs something, to
    // the logger that the environment was created with.
    let has_pool = Session::builder(&environment)?.commit_from_memory(PROBE).is_ok();
    let is_ours = heard.load(Ordering::Relaxed);
    if is_ours {
        environment.set_log_level(LogLevel::Warning);
    }
    let pools = match (is_ours, has_pool) {
        (true, _) => ThreadPools::Process,
        (false, true) => ThreadPools::Host,
        (false, false) => ThreadPools::ModelBesideHost,
    };
    Ok((environment, pools))
}

/// Find the library: by the environment variable, by the configuration, beside this library, or by the system's loader.
fn find(configured: Option<&Path>) -> Result<PathBuf> {
    let variable = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = variable.map(|path| (path, LIBRARY_VARIABLE)).or(configured.map(|path| (path.into(), "onnxruntime")));
    if let Some((path, source)) = named {
        let path = if path.is_dir() { library_in(&path).unwrap_or(path) } else { path };
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Error::Runtime(format!(
                "{source} names {}, which is not a file; let it name the library, such as libonnxruntime.so",
                path.display()
            )))
        };
    }
    let own = process::own_path();
    own.as_deref().and_then(near).or_else(system_library).ok_or_else(|| missing(own.as_deref()))
}

/// The error if no library was found. The command in it puts one where [`near`] looks.
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

/// A library in the folder of `own` or in its subfolder `onnxruntime`, or likewise in up to three folders above.
///
/// Above, it must have the same owner as `own`: in a folder like /tmp, anybody could plant a library.
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

/// The `libonnxruntime.so*` of a folder whose name sorts last.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = folder.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"libonnxruntime.so")))
        .filter(|path| path.is_file())
        .max()
}

/// A library that the system's loader finds by name.
fn system_library() -> Option<PathBuf> {
    [c"libonnxruntime.so.1", c"libonnxruntime.so"].into_iter().find_map(|name| {
        // SAFETY: the name is a C string. Loading runs the library's initialisers, as `make` would. The handle is never
        // closed.
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
