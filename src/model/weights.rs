//! Loads exports into ONNX Runtime: each once, for all models of the process that name it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Weak};

use ort::session::Session;
use parking_lot::Mutex;

use super::graph::Graph;
use super::huge_pages::Mappings;
use super::{Provider, runtime};
use crate::error::{Error, Result};

/// The sessions that were made, with what of, while there are models that use them.
static LOADED: Mutex<Vec<(Source, Weak<Session>)>> = Mutex::new(Vec::new());

/// What a session was made of. How models use it is no part of it.
#[derive(Clone, PartialEq)]
struct Source {
    provider: Provider,
    files: Vec<Version>,
}

/// A file as it is now, by whatever path: device and inode, size, time of change in seconds and nanoseconds.
type Version = (u64, u64, u64, i64, i64);

impl Source {
    /// Of an export and the files with its weights; `None` where one cannot be seen.
    fn of(file: &Path, graph: &Graph, provider: Provider) -> Option<Self> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let external = graph.external_files.iter().map(|name| folder.join(name));
        let version = |path: &Path| {
            let file = path.metadata().ok()?;
            Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        let files = std::iter::once(file.to_path_buf()).chain(external).map(|path| version(&path));
        Some(Source { provider, files: files.collect::<Option<_>>()? })
    }
}

/// The session of an export. [`runtime::environment`] must have been made.
///
/// Runs of one session may be at the same time, so those who share it do not notice. Two that load the same export for
/// the first time at the same moment do not share: waiting for each other could be long.
pub fn load(file: &Path, graph: &Graph, provider: Provider) -> Result<Arc<Session>> {
    let source = Source::of(file, graph, provider);
    if let Some(session) = source.as_ref().and_then(find) {
        return Ok(session);
    }
    let session = Arc::new(make(file, provider)?);
    if let Some(source) = source {
        let mut loaded = LOADED.lock();
        loaded.retain(|(_, session)| session.strong_count() > 0);
        loaded.push((source, Arc::downgrade(&session)));
    }
    Ok(session)
}

fn find(source: &Source) -> Option<Arc<Session>> {
    LOADED.lock().iter().filter(|(other, _)| other == source).find_map(|(_, session)| session.upgrade())
}

fn make(file: &Path, provider: Provider) -> Result<Session> {
    let environment = runtime::environment(None, 0, None)?;
    let refuse = |error: &dyn std::fmt::Display| Error::Model(format!("cannot load {}: {error}", file.display()));
    let mut builder = Session::builder(environment).map_err(|error| refuse(&error))?;
    // ORT keeps a memory plan for each combination of input shapes, and here every pass has another one.
    builder = builder.with_memory_pattern(false).map_err(|error| refuse(&error))?;
    // By default ORT rounds the activations of products with quantised weights to eight bits, and so changes the model.
    builder =
        builder.with_config_entry("session.qdq_matmulnbits_accuracy_level", "1").map_err(|error| refuse(&error))?;
    if let Provider::Cuda { device_id } = provider {
        // With TF32, logits would depend on the width of a pass in the third digit.
        let cuda = ort::ep::CUDA::default().with_device_id(device_id).with_tf32(false).build().error_on_failure();
        builder = builder.with_execution_providers([cuda]).map_err(|error| {
            Error::Runtime(format!(
                "provider \"cuda\" is not available for {}: {error}; it needs an NVIDIA driver, CUDA and cuDNN, and \
                 libonnxruntime_providers_cuda.so with libonnxruntime_providers_shared.so beside a GPU build of \
                 libonnxruntime.so (package onnxruntime-gpu); use \"cpu\" otherwise",
                file.display()
            ))
        })?;
    }
    let before = Mappings::now();
    let session = builder.commit_from_file(file).map_err(|error| {
        refuse(&format_args!("{error}; if the file is corrupt or incomplete, copy or export it again"))
    })?;
    before.advise_since();
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_loaded_once_as_long_as_it_stays() {
        runtime::environment(None, 0, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/small");
        let file = folder.path().join("model.onnx");
        std::fs::copy(demo.join("model.onnx"), &file).unwrap();
        let load = |file: &Path| load(file, &Graph::read(file).unwrap(), Provider::Cpu).unwrap();
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
    }
}
