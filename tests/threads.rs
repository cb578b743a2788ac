//! All models of the process share one thread pool: loading more of them starts no more threads.

use std::path::Path;
use std::sync::Arc;

use cos::config::Config;
use cos::engine::Engine;
use cos::session::{Options, Session};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn models_share_one_thread_pool() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let load = |names: &[&str]| {
        let models: Vec<_> = names.iter().map(|name| serde_json::json!({ "path": demo.join(name) })).collect();
        let weights = vec![1.0; names.len()];
        let config = serde_json::json!({
            "models": models, "combine": { "kind": "logits", "weights": weights }, "threads": 3, "spinning": false
        });
        Arc::new(Engine::load(&Config::parse(&config.to_string()).unwrap()).unwrap())
    };
    let step = |engine: &Arc<Engine>| {
        let mut session = Session::new(engine, &Options::default()).unwrap();
        session.prompt(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        session.step().unwrap();
    };
    let before = threads();
    let small = load(&["small"]);
    step(&small);
    let one = threads();
    assert!(one > before, "a pool of three has threads of its own");
    let all = load(&["base", "math", "small"]);
    step(&all);
    assert_eq!(threads(), one, "three more models must not start threads");

    let config = r#"{"models":[{"path":"x"}],"combine":{"kind":"target","model":0},"threads":1}"#;
    let error = Engine::load(&Config::parse(config).unwrap()).err().unwrap();
    assert_eq!(error.code(), 2);
    assert!(error.to_string().contains("thread pool of this process was made with 3"), "{error}");

    let spinning = |spinning: bool| {
        let config = serde_json::json!({
            "models": [{ "path": demo.join("small") }], "combine": { "kind": "target", "model": 0 }, "spinning": spinning
        });
        Engine::load(&Config::parse(&config.to_string()).unwrap())
    };
    let error = spinning(true).err().unwrap();
    assert_eq!(error.code(), 2);
    assert!(error.to_string().contains("thread pool of this process was made with false"), "{error}");
    assert!(spinning(false).is_ok());
}
