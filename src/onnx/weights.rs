//! Loads the sessions of models. Models of a process that name the same files share one session, and so one set of
//! weights.

use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Weak};

use once_cell::sync::OnceCell;
use ort::ep::ArbitrarilyConfigurableExecutionProvider;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use parking_lot::Mutex;

use super::attention::AttentionKernels;
use super::binding::{RECORD_PROVIDERS, operators_by};
use super::calm::CalmSession;
use super::huge_pages::AnonymousMappings;
use super::options::{Provider, ProviderOptions};
use super::packed::register;
use super::runtime::Runtime;
use super::{attention, runtime};
use crate::cuda::{self, Device};
use crate::error::{Error, Result};
use crate::export::graph::Graph;
use crate::export::pack::{self, RunsOn};
use crate::export::{Export, shapes};
use crate::process::{PerProcess, Process, release_freed_memory};

/// A session of ONNX Runtime, and the device that it runs on.
pub struct LoadedSession {
    /// Dropped before the device, whose stream it uses.
    pub session: ManuallyDrop<Session>,
    /// The GPU that it runs on, if any.
    pub device: Option<Arc<Device>>,
    /// Whether all operators run on the GPU, except those that compute shapes. Only then can passes be captured.
    pub is_whole: bool,
    /// The types of operators that run on the processor, if the session was meant for a GPU and is not whole.
    pub on_processor: BTreeSet<String>,
    /// Why passes cannot be captured as CUDA graphs.
    pub no_graphs: Option<String>,
    /// The attention kernels that the provider was told to use, if it was told.
    pub attention: Option<String>,
    /// Whether cuDNN plans each width of a pass on each size of the cache, which takes long.
    pub plans_widths: bool,
    /// The process that created the session.
    process: Process,
    /// What the session depends on, if that is known.
    key: Option<SessionKey>,
    /// The session for passes on crowded cores, if the model has one.
    calm: OnceCell<Arc<CalmSession>>,
}

impl Drop for LoadedSession {
    fn drop(&mut self) {
        // SAFETY: the value is being dropped, so nothing uses the session afterwards.
        let session = unsafe { ManuallyDrop::take(&mut self.session) };
        if !self.process.is_current() {
            std::mem::forget((session, self.device.take())); // their threads exist in the parent only
        } else if let Some(device) = &self.device {
            let _unloading = cuda::loading();
            device.by_runner(|| drop(session));
        }
    }
}

/// Models with more bytes than this have no second session, which would take as much memory again.
const MOST_TWICE: u64 = 1 << 30;

impl LoadedSession {
    /// The session for passes on crowded cores, of an export that was rewritten for the processor. `None` if the
    /// session itself does not spin, or its weights are too large for a second one.
    pub fn calm(&self, export: &Export) -> Option<Arc<CalmSession>> {
        runtime::loaded()?.workers.as_ref()?;
        let key = self.key.as_ref().filter(|key| key.bytes() <= MOST_TWICE)?;
        let load = || {
            let (key, export) = (key.clone(), export.clone());
            CalmSession::new(move || {
                let graph = Graph::read(&export.file)?;
                let packed = pack::rewrite(&export, &graph, RunsOn::Host).map_err(Error::Model)?;
                let source = ModelSource::Packed(&packed.bytes);
                if SessionKey::of(&export.file, &graph, &key.provider, source).as_ref() != Some(&key) {
                    return Err(Error::Model(format!("{} has changed since it was loaded", export.file.display())));
                }
                create(runtime()?.calm_session(), (&export.file, &graph, source), None)
            })
        };
        Some(self.calm.get_or_init(|| Arc::new(load())).clone())
    }
}

/// The sessions that are loaded or being loaded. Entries hold weak references, so models own the sessions.
static LOADED: PerProcess<Mutex<Slots>> = PerProcess::new(Mutex::default);

type Slots = Vec<(SessionKey, Arc<Slot>)>;

/// The session of a key. The lock is held while the session is loaded.
type Slot = Mutex<Weak<LoadedSession>>;

/// Everything that a session depends on. Two models with equal keys share a session.
#[derive(Clone, PartialEq)]
struct SessionKey {
    provider: Provider,
    source: std::mem::Discriminant<ModelSource<'static>>,
    files: Vec<FileVersion>,
}

/// Where the graph comes from.
#[derive(Clone, Copy)]
pub enum ModelSource<'a> {
    /// The file.
    File,
    /// The file without the shapes of inner values, because those that it declares are wrong.
    WithoutShapes,
    /// The file, rewritten for packed passes.
    Packed(&'a [u8]),
}

/// A file and its state: device, inode, size, and time of change in seconds and nanoseconds.
type FileVersion = (u64, u64, u64, i64, i64);

impl SessionKey {
    /// The bytes of the export and its weights.
    fn bytes(&self) -> u64 {
        self.files.iter().map(|&(_, _, size, ..)| size).sum()
    }

    /// The key of an export and its files of weights. `None` if the state of a file cannot be read.
    fn of(file: &Path, graph: &Graph, provider: &Provider, source: ModelSource<'_>) -> Option<Self> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let external = graph.external_files.keys().map(|name| folder.join(name));
        let version = |path: &Path| {
            let file = path.metadata().ok()?;
            Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        let files = std::iter::once(file.to_path_buf()).chain(external).map(|path| version(&path));
        let source = match source {
            ModelSource::File => std::mem::discriminant(&ModelSource::File),
            ModelSource::WithoutShapes => std::mem::discriminant(&ModelSource::WithoutShapes),
            ModelSource::Packed(_) => std::mem::discriminant(&ModelSource::Packed(&[])),
        };
        Some(SessionKey { provider: provider.clone(), source, files: files.collect::<Option<_>>()? })
    }
}

/// The session of an export. [`runtime::environment`] must be called first.
///
/// A session allows concurrent runs, so models can share it. A caller that needs a session which another thread is
/// loading waits for it. That takes less time and memory than loading it twice.
pub fn load(file: &Path, graph: &Graph, provider: &Provider, source: ModelSource<'_>) -> Result<Arc<LoadedSession>> {
    let key = SessionKey::of(file, graph, provider, source);
    let slot = key.clone().map_or_else(Arc::default, slot);
    let mut slot = slot.lock();
    if let Some(loaded) = slot.upgrade() {
        return Ok(loaded);
    }
    let mut loaded = match provider {
        Provider::Cpu => LoadedSession {
            session: ManuallyDrop::new(create(runtime()?.session(), (file, graph, source), None)?),
            device: None,
            is_whole: false,
            on_processor: BTreeSet::new(),
            no_graphs: None,
            attention: None,
            plans_widths: false,
            process: Process::current(),
            key: None,
            calm: OnceCell::new(),
        },
        Provider::Cuda { device_id, options } => load_on_gpu(file, graph, source, *device_id, options)?,
    };
    loaded.key = key;
    let loaded = Arc::new(loaded);
    *slot = Arc::downgrade(&loaded);
    Ok(loaded)
}

fn slot(key: SessionKey) -> Arc<Slot> {
    let mut slots = LOADED.get().lock();
    // A slot with one reference is in this list only, and the list is locked, so no thread can be using it.
    slots.retain(|(_, slot)| Arc::strong_count(slot) > 1 || slot.lock().strong_count() > 0);
    if let Some((_, slot)) = slots.iter().find(|(other, _)| *other == key) {
        return slot.clone();
    }
    let slot = Arc::<Slot>::default();
    slots.push((key, slot.clone()));
    slot
}

/// The option of the CUDA provider for CUDA graphs. It is set although CoS captures by itself: ONNX Runtime then checks
/// that all operators run on the GPU, and puts nothing on the stream that cannot be captured.
const GRAPHS: &str = "enable_cuda_graph";

fn load_on_gpu(
    file: &Path,
    graph: &Graph,
    source: ModelSource<'_>,
    device_id: i32,
    options: &ProviderOptions,
) -> Result<LoadedSession> {
    let _loading = cuda::loading();
    let device = Device::open(device_id).map_err(|error| match error {
        Error::Runtime(what) => unavailable(file, &what),
        other => other,
    })?;
    // By default, cuDNN computes attention on some GPUs, and it plans each new width and size of the cache for 60 ms or
    // more. It is excluded where other kernels are as good. Elsewhere, passes have few widths: see
    // `GpuPasses::padding`.
    let by_default = device.prefers_cudnn() && !options.contains_key(attention::KERNELS);
    let is_packed = matches!(source, ModelSource::Packed(_));
    let kernels = if by_default && !is_packed { AttentionKernels::of(graph) } else { AttentionKernels::Own };
    let mut options = options.clone();
    // Packed passes have many sizes.
    if kernels == AttentionKernels::CudnnForSeveral || (by_default && is_packed) {
        options.insert(attention::KERNELS.into(), attention::WITHOUT_CUDNN.into());
    }
    let create = |graphs: bool| {
        // With TF32, the third digit of logits would depend on the width of a pass.
        let cuda = ort::ep::CUDA::default().with_device_id(device_id).with_tf32(false);
        let cuda = options.iter().fold(cuda, |cuda, (key, value)| cuda.with_arbitrary_config(key, value));
        // SAFETY: the device, and so its stream, outlives the session: see `LoadedSession`.
        let cuda = unsafe { cuda.with_cuda_graph(graphs).with_compute_stream(device.stream()) };
        device.by_runner(|| create(runtime()?.session(), (file, graph, source), Some(cuda)))
    };
    let asked = options.get(GRAPHS).is_none_or(|value| value != "0");
    let (mut is_whole, mut on_processor) = (true, BTreeSet::new());
    // With graphs, creation fails unless all operators run on the GPU, except those that compute shapes.
    let (session, no_graphs) = match create(true) {
        Ok(session) => (session, (!asked).then(|| format!("\"{GRAPHS}\" is \"0\""))),
        // A session without graphs may work. If not, its error is the clearer one.
        Err(error) => {
            let session = create(false)?;
            is_whole = false;
            on_processor = operators_by(&session, c"CPUExecutionProvider").unwrap_or_default();
            let operators: Vec<&str> = on_processor.iter().map(String::as_str).collect();
            let why = match operators[..] {
                [] => error.to_string(),
                _ => format!("ONNX Runtime runs some operators on the processor: {}", operators.join(", ")),
            };
            (session, Some(why))
        }
    };
    Ok(LoadedSession {
        session: ManuallyDrop::new(session),
        device: Some(device),
        is_whole,
        on_processor,
        no_graphs,
        attention: options.get(attention::KERNELS).cloned(),
        plans_widths: kernels == AttentionKernels::Cudnn,
        process: Process::current(),
        key: None,
        calm: OnceCell::new(),
    })
}

fn unavailable(file: &Path, why: &str) -> Error {
    Error::Runtime(format!(
        "provider \"cuda\" is not available for {}: {why}; it needs an NVIDIA driver, CUDA and cuDNN, and \
         libonnxruntime_providers_cuda.so with libonnxruntime_providers_shared.so beside a GPU build of \
         libonnxruntime.so (package onnxruntime-gpu); use \"cpu\" otherwise",
        file.display()
    ))
}

fn runtime() -> Result<&'static Runtime> {
    runtime::load(None, 0, None)
}

fn create(
    builder: ort::Result<SessionBuilder>,
    (file, graph, source): (&Path, &Graph, ModelSource<'_>),
    cuda: Option<ort::ep::CUDA>,
) -> Result<Session> {
    let refuse = |error: &dyn std::fmt::Display| Error::Model(format!("cannot load {}: {error}", file.display()));
    let mut builder = builder.map_err(|error| refuse(&error))?;
    // ONNX Runtime would keep a memory plan for each combination of input shapes, and most passes have a new one.
    builder = builder.with_memory_pattern(false).map_err(|error| refuse(&error))?;
    // By default, products with quantised weights round activations to eight bits, which changes the model.
    builder =
        builder.with_config_entry("session.qdq_matmulnbits_accuracy_level", "1").map_err(|error| refuse(&error))?;
    if let Some(cuda) = cuda {
        builder = builder.with_config_entry(RECORD_PROVIDERS, "1").map_err(|error| refuse(&error))?;
        let cuda = cuda.build().error_on_failure();
        builder = builder.with_execution_providers([cuda]).map_err(|error| unavailable(file, &error.to_string()))?;
    }
    let before = AnonymousMappings::now();
    if !matches!(source, ModelSource::File) || graph.unpaged.is_some() {
        // A session from memory must be told where external weights are.
        let folder = file.parent().and_then(Path::to_str).ok_or_else(|| refuse(&"its path is not UTF-8"))?;
        let folder = if folder.is_empty() { "." } else { folder };
        builder = builder
            .with_config_entry("session.model_external_initializers_file_folder_path", folder)
            .map_err(|error| refuse(&error))?;
    }
    let session = match (source, &graph.unpaged) {
        (ModelSource::File | ModelSource::WithoutShapes, Some(bytes)) => builder.commit_from_memory(bytes),
        (ModelSource::File, None) => builder.commit_from_file(file),
        (ModelSource::WithoutShapes, None) => {
            builder.commit_from_memory(&shapes::without(file).map_err(|error| refuse(&error))?)
        }
        (ModelSource::Packed(bytes), _) => {
            register::register(&builder).map_err(|error| refuse(&error))?;
            builder.commit_from_memory(bytes)
        }
    };
    let session = session.map_err(|error| {
        refuse(&format_args!("{error}; if the file is corrupt or incomplete, copy or export it again"))
    })?;
    // Otherwise, freed memory would get huge pages too, and keep them.
    release_freed_memory();
    before.advise_since();
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_records_which_provider_runs_an_operator() {
        let environment = runtime::environment(None, 0, None).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/small/model.onnx");
        let load = |record| {
            let builder = Session::builder(environment).unwrap();
            builder.with_config_entry(RECORD_PROVIDERS, record).unwrap().commit_from_file(&file).unwrap()
        };
        let session = load("1");
        let operators = operators_by(&session, c"CPUExecutionProvider").unwrap();
        assert!(operators.contains("GroupQueryAttention"), "{operators:?}");
        assert!(operators_by(&session, c"CUDAExecutionProvider").unwrap().is_empty());
        assert!(operators_by(&load("0"), c"CPUExecutionProvider").is_err());
    }

    #[test]
    fn an_unchanged_export_is_loaded_once() {
        runtime::environment(None, 0, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/small");
        let file = folder.path().join("model.onnx");
        std::fs::copy(demo.join("model.onnx"), &file).unwrap();
        let load = |file: &Path| load(file, &Graph::read(file).unwrap(), &Provider::Cpu, ModelSource::File).unwrap();
        let first = load(&file);
        assert!(Arc::ptr_eq(&first, &load(&file)));
        let other_way = folder.path().join("../").join(folder.path().file_name().unwrap()).join("model.onnx");
        assert!(Arc::ptr_eq(&first, &load(&other_way)));
        assert!(!Arc::ptr_eq(&first, &load(&demo.join("model.onnx"))), "a copy is another file");

        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        std::fs::File::options().append(true).open(&file).unwrap().set_modified(later).unwrap();
        let second = load(&file);
        assert!(!Arc::ptr_eq(&first, &second), "the file has changed");
        let weak = Arc::downgrade(&second);
        drop((first, second));
        assert!(weak.upgrade().is_none(), "an unused session is freed");

        let at_once = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| load(&file))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(
            at_once.iter().all(|loaded| Arc::ptr_eq(loaded, &at_once[0])),
            "threads wait for a session that is being loaded"
        );
    }
}
