//! Loads exports into ONNX Runtime: each once, for all models of the process that name it.

use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Weak};

use ort::ep::ArbitrarilyConfigurableExecutionProvider;
use ort::session::Session;
use parking_lot::Mutex;

use super::binding::{REMEMBER_PROVIDERS, operators_by};
use super::huge_pages::Mappings;
use super::options::Provider;
use super::runtime;
use crate::cuda::{self, Device};
use crate::error::{Error, Result};
use crate::export::graph::{Graph, Node};
use crate::export::shapes;
use crate::process::{PerProcess, Process};

/// A session of ONNX Runtime, and where it runs.
pub struct LoadedSession {
    /// Dropped before the device, whose stream it uses.
    pub session: ManuallyDrop<Session>,
    /// The GPU that it runs on.
    pub device: Option<Arc<Device>>,
    /// Whether all that counts runs on a GPU, so that its passes could be captured.
    pub is_whole: bool,
    /// If not, the operators that ONNX Runtime runs on the processor.
    pub on_processor: BTreeSet<String>,
    /// Why passes cannot be captured, if they cannot.
    pub no_graphs: Option<String>,
    /// What it was told of the kernels for attention, if anything.
    pub attention: Option<String>,
    /// Whether each width is planned on each size of the cache, which takes long.
    pub plans_widths: bool,
    process: Process,
}

impl Drop for LoadedSession {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        let session = unsafe { ManuallyDrop::take(&mut self.session) };
        if !self.process.is_current() {
            std::mem::forget((session, self.device.take())); // their threads are in the parent
        } else if let Some(device) = &self.device {
            let _unloading = cuda::loading();
            device.by_runner(|| drop(session));
        }
    }
}

/// What was loaded or is being loaded, with what of. It stays as long as models use it.
static LOADED: PerProcess<Mutex<Slots>> = PerProcess::new(Mutex::default);

type Slots = Vec<(Source, Arc<Slot>)>;

/// A session of a source. The lock is held while it is loaded.
type Slot = Mutex<Weak<LoadedSession>>;

/// What a session was made of. How models use it is no part of it.
#[derive(Clone, PartialEq)]
struct Source {
    provider: Provider,
    shapes: Shapes,
    files: Vec<Version>,
}

/// Where the shapes of inner values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shapes {
    /// From the file.
    Declared,
    /// From ONNX Runtime, because those of the file are wrong.
    Inferred,
}

/// A file as it is now, by whatever path: device and inode, size, time of change in seconds and nanoseconds.
type Version = (u64, u64, u64, i64, i64);

impl Source {
    /// Of an export and the files with its weights; `None` where one cannot be seen.
    fn of(file: &Path, graph: &Graph, provider: &Provider, shapes: Shapes) -> Option<Self> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let external = graph.external_files.keys().map(|name| folder.join(name));
        let version = |path: &Path| {
            let file = path.metadata().ok()?;
            Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        let files = std::iter::once(file.to_path_buf()).chain(external).map(|path| version(&path));
        Some(Source { provider: provider.clone(), shapes, files: files.collect::<Option<_>>()? })
    }
}

/// The session of an export. [`runtime::environment`] must have been made.
///
/// Runs of one session may be at the same time, so those who share it do not notice. Who wants the same export while it is being loaded
/// waits for it, which takes less time and memory than loading it again.
pub fn load(file: &Path, graph: &Graph, provider: &Provider, shapes: Shapes) -> Result<Arc<LoadedSession>> {
    let slot = Source::of(file, graph, provider, shapes).map_or_else(Arc::default, slot);
    let mut slot = slot.lock();
    if let Some(loaded) = slot.upgrade() {
        return Ok(loaded);
    }
    let made = Arc::new(match provider {
        Provider::Cpu => LoadedSession {
            session: ManuallyDrop::new(make(file, shapes, None)?),
            device: None,
            is_whole: false,
            on_processor: BTreeSet::new(),
            no_graphs: None,
            attention: None,
            plans_widths: false,
            process: Process::current(),
        },
        Provider::Cuda { device_id, options } => on_gpu(file, graph, shapes, *device_id, options)?,
    });
    *slot = Arc::downgrade(&made);
    Ok(made)
}

fn slot(source: Source) -> Arc<Slot> {
    let mut slots = LOADED.get().lock();
    // Nobody can take another's slot meanwhile, since that needs the list.
    slots.retain(|(_, slot)| Arc::strong_count(slot) > 1 || slot.lock().strong_count() > 0);
    if let Some((_, slot)) = slots.iter().find(|(other, _)| *other == source) {
        return slot.clone();
    }
    let slot = Arc::<Slot>::default();
    slots.push((source, slot.clone()));
    slot
}

/// The option of the provider that says whether passes are captured. ONNX Runtime is told of it, because it then leaves nothing
/// behind on the stream that could not be captured; but the capturing is ours.
const GRAPHS: &str = "enable_cuda_graph";

/// The option of the provider that says which kernels it has for attention, and the sum of all of them but cuDNN's.
const ATTENTION: &str = "sdpa_kernel";
const WITHOUT_CUDNN: &str = "23";

/// Groups of heads, and their sizes, for which ONNX Runtime has XQA kernels, of single tokens.
const XQA_GROUPS: [i64; 7] = [1, 2, 4, 5, 8, 16, 32];
const XQA_HEADS: [i64; 3] = [64, 128, 256];

/// Inputs of `GroupQueryAttention`.
const COSINES: usize = 7;
const BIAS: usize = 10;
const SINK: usize = 11;

/// Kernels of `GroupQueryAttention`, which alone has caches of few sizes, that ONNX Runtime 1.31 takes by itself on a GPU of Hopper's
/// or newer (contrib_ops/cuda/bert/group_query_attention.cc).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Attention {
    /// None of cuDNN's.
    Own,
    /// cuDNN's for several tokens; single ones go to XQA.
    WideByCudnn,
    /// cuDNN's.
    Cudnn,
}

impl Attention {
    fn of(graph: &Graph) -> Self {
        let mut by_cudnn = graph.all("GroupQueryAttention").filter(|node| may_be_cudnns(node));
        if by_cudnn.clone().any(|node| !has_xqa(graph, node)) {
            Attention::Cudnn
        } else if by_cudnn.next().is_some() {
            Attention::WideByCudnn
        } else {
            Attention::Own
        }
    }
}

fn input(node: &Node, index: usize) -> Option<&str> {
    node.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
}

/// Whether cuDNN can do it: neither capped, nor of a window, nor with a sink.
fn may_be_cudnns(node: &Node) -> bool {
    node.fraction("softcap").unwrap_or(0.0) == 0.0
        && node.integer("local_window_size").unwrap_or(-1) == -1
        && node.integer("smooth_softmax").unwrap_or(0) != 1
        && input(node, SINK).is_none()
}

/// Whether what cuDNN can do has better kernels for single tokens. Positions turn a head's numbers in pairs: two for each cosine.
fn has_xqa(graph: &Graph, node: &Node) -> bool {
    let heads = node.integer("num_heads").zip(node.integer("kv_num_heads").filter(|&heads| heads > 0));
    let cosines = input(node, COSINES).and_then(|table| graph.weight(table)?.last().copied());
    heads.is_some_and(|(heads, shared)| XQA_GROUPS.contains(&(heads / shared)))
        && cosines.is_some_and(|cosines| XQA_HEADS.iter().any(|size| size / 2 == cosines))
        && input(node, BIAS).is_none()
        && std::env::var("ORT_ENABLE_XQA").map_or(true, |value| value.trim() != "0")
}

fn on_gpu(file: &Path, graph: &Graph, shapes: Shapes, device_id: i32, options: &Options) -> Result<LoadedSession> {
    let _loading = cuda::loading();
    let device = Device::open(device_id).map_err(|error| match error {
        Error::Runtime(what) => unavailable(file, &what),
        other => other,
    })?;
    // By default attention is cuDNN's, which takes 60 ms and more for a width on a size of the cache that it has not met: any prompt of
    // another length. It is left out where nothing is lost by that; elsewhere there are few widths (see `GpuPasses::padding`).
    let by_default = device.prefers_cudnn() && !options.contains_key(ATTENTION);
    let kernels = if by_default { Attention::of(graph) } else { Attention::Own };
    let mut options = options.clone();
    if kernels == Attention::WideByCudnn {
        options.insert(ATTENTION.into(), WITHOUT_CUDNN.into());
    }
    let make = |graphs: bool| {
        // With TF32, logits would depend on the width of a pass in the third digit.
        let cuda = ort::ep::CUDA::default().with_device_id(device_id).with_tf32(false);
        let cuda = options.iter().fold(cuda, |cuda, (key, value)| cuda.with_arbitrary_config(key, value));
        // SAFETY: the device, and so its stream, outlives the session: see `LoadedSession`.
        let cuda = unsafe { cuda.with_cuda_graph(graphs).with_compute_stream(device.stream()) };
        device.by_runner(|| make(file, shapes, Some(cuda)))
    };
    let asked = options.get(GRAPHS).is_none_or(|value| value != "0");
    let (mut is_whole, mut on_processor) = (true, BTreeSet::new());
    // This fails unless all operators run on the GPU, but for those that only look at shapes.
    let (session, no_graphs) = match make(true) {
        Ok(session) => (session, (!asked).then(|| format!("\"{GRAPHS}\" is \"0\""))),
        // Who cannot capture may run all the same; if not, the second error says it better.
        Err(error) => {
            let session = make(false)?;
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
    let (attention, plans_widths) = (options.get(ATTENTION).cloned(), kernels == Attention::Cudnn);
    let session = ManuallyDrop::new(session);
    let (device, process) = (Some(device), Process::current());
    Ok(LoadedSession { session, device, is_whole, on_processor, no_graphs, attention, plans_widths, process })
}

fn unavailable(file: &Path, why: &str) -> Error {
    Error::Runtime(format!(
        "provider \"cuda\" is not available for {}: {why}; it needs an NVIDIA driver, CUDA and cuDNN, and \
         libonnxruntime_providers_cuda.so with libonnxruntime_providers_shared.so beside a GPU build of \
         libonnxruntime.so (package onnxruntime-gpu); use \"cpu\" otherwise",
        file.display()
    ))
}

/// Options of a provider.
pub type Options = std::collections::BTreeMap<String, String>;

fn make(file: &Path, shapes: Shapes, cuda: Option<ort::ep::CUDA>) -> Result<Session> {
    let runtime = runtime::load(None, 0, None)?;
    let refuse = |error: &dyn std::fmt::Display| Error::Model(format!("cannot load {}: {error}", file.display()));
    let mut builder = runtime.session().map_err(|error| refuse(&error))?;
    // ORT keeps a memory plan for each combination of input shapes, and here every pass has another one.
    builder = builder.with_memory_pattern(false).map_err(|error| refuse(&error))?;
    // By default ORT rounds the activations of products with quantised weights to eight bits, and so changes the model.
    builder =
        builder.with_config_entry("session.qdq_matmulnbits_accuracy_level", "1").map_err(|error| refuse(&error))?;
    if let Some(cuda) = cuda {
        builder = builder.with_config_entry(REMEMBER_PROVIDERS, "1").map_err(|error| refuse(&error))?;
        let cuda = cuda.build().error_on_failure();
        builder = builder.with_execution_providers([cuda]).map_err(|error| unavailable(file, &error.to_string()))?;
    }
    let before = Mappings::now();
    let session = match shapes {
        Shapes::Declared => builder.commit_from_file(file),
        Shapes::Inferred => {
            // which is where weights beside the file are looked for
            let folder = file.parent().and_then(Path::to_str).ok_or_else(|| refuse(&"its path is not UTF-8"))?;
            let bytes = shapes::without(file).map_err(|error| refuse(&error))?;
            let folder = if folder.is_empty() { "." } else { folder };
            builder
                .with_config_entry("session.model_external_initializers_file_folder_path", folder)
                .map_err(|error| refuse(&error))?
                .commit_from_memory(&bytes)
        }
    };
    let session = session.map_err(|error| {
        refuse(&format_args!("{error}; if the file is corrupt or incomplete, copy or export it again"))
    })?;
    before.advise_since();
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_attention_is_known() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (export, kernels, why) in [
            ("models/demo/small", Attention::WideByCudnn, "two heads of 64, and one for keys"),
            ("models/demo/base", Attention::Cudnn, "six heads, and two for keys"),
            ("tests/exports/llama/builder-fp16-cuda", Attention::Cudnn, "heads of 16"),
            ("tests/exports/gemma2/builder-fp32", Attention::Own, "capped scores"),
            ("tests/exports/gpt_oss/builder-fp32", Attention::Own, "sinks"),
            ("tests/exports/llama/optimum-fp32", Attention::Own, "products of matrices"),
        ] {
            let graph = Graph::read(&root.join(export).join("model.onnx")).unwrap();
            assert_eq!(Attention::of(&graph), kernels, "{export}: {why}");
        }
    }

    #[test]
    fn what_runs_an_operator_is_remembered() {
        let environment = runtime::environment(None, 0, None).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/small/model.onnx");
        let load = |remember| {
            let builder = Session::builder(environment).unwrap();
            builder.with_config_entry(REMEMBER_PROVIDERS, remember).unwrap().commit_from_file(&file).unwrap()
        };
        let session = load("1");
        let operators = operators_by(&session, c"CPUExecutionProvider").unwrap();
        assert!(operators.contains("GroupQueryAttention"), "{operators:?}");
        assert!(operators_by(&session, c"CUDAExecutionProvider").unwrap().is_empty());
        assert!(operators_by(&load("0"), c"CPUExecutionProvider").is_err());
    }

    #[test]
    fn an_export_is_loaded_once_as_long_as_it_stays() {
        runtime::environment(None, 0, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/small");
        let file = folder.path().join("model.onnx");
        std::fs::copy(demo.join("model.onnx"), &file).unwrap();
        let load = |file: &Path| load(file, &Graph::read(file).unwrap(), &Provider::Cpu, Shapes::Declared).unwrap();
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
        assert!(weak.upgrade().is_none(), "nobody keeps what nobody uses");

        let at_once = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| load(&file))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(at_once.iter().all(|loaded| Arc::ptr_eq(loaded, &at_once[0])), "those who come meanwhile wait for it");
    }
}
