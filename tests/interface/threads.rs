//! All models of a process share one thread pool, so loading more models starts no more threads. The pool has one
//! thread for each core that the process may use, and gives way to others.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cos::config::Config;
use cos::engine::Engine;
use cos::engine::metrics::metrics;
use cos::engine::session::{Options, Session};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn models_share_one_thread_pool() {
    alone("shared_pool", &[]);
}

#[test]
#[ignore = "run by models_share_one_thread_pool"]
fn shared_pool() {
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
            "models": [{ "path": demo.join("small") }],
            "combine": { "kind": "target", "model": 0 },
            "spinning": spinning
        });
        Engine::load(&Config::parse(&config.to_string()).unwrap())
    };
    let error = spinning(true).err().unwrap();
    assert_eq!(error.code(), 2);
    assert!(error.to_string().contains("thread pool of this process was made with false"), "{error}");
    assert!(spinning(false).is_ok());
}

/// Runs a test of this program in a new process, which makes its own pool, on these cores or on all.
fn alone(test: &str, cores: &[usize]) {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("threads::{test}"), "--ignored", "--nocapture"]);
    let cores = cores.to_vec();
    // SAFETY: the closure only makes one system call with its own memory.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            cores.iter().for_each(|&core| libc::CPU_SET(core, &mut set));
            match cores.is_empty() || libc::sched_setaffinity(0, size_of_val(&set), &set) == 0 {
                true => Ok(()),
                false => Err(std::io::Error::last_os_error()),
            }
        })
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn small() -> Engine {
    demo("small")
}

fn demo(name: &str) -> Engine {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo").join(name);
    let config = serde_json::json!({ "models": [{ "path": demo }], "combine": { "kind": "target", "model": 0 } });
    Engine::load(&Config::parse(&config.to_string()).unwrap()).unwrap()
}

#[test]
fn the_pool_has_as_many_threads_as_the_process_has_cores() {
    alone("one_core", &[first_core()]);
}

/// Spinning threads without a core of their own hold up the others: opening the smallest model would take minutes.
#[test]
fn more_threads_than_cores_do_not_spin() {
    alone("crowded", &[first_core()]);
}

#[test]
#[ignore = "run by more_threads_than_cores_do_not_spin"]
fn crowded() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/small");
    let engine = |more: serde_json::Value| {
        let (models, combine) =
            (serde_json::json!([{ "path": demo }]), serde_json::json!({ "kind": "target", "model": 0 }));
        let mut config = serde_json::json!({ "models": models, "combine": combine, "spinning": true });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Engine::load(&Config::parse(&config.to_string()).unwrap())
    };
    let crowded = || engine(serde_json::json!({ "threads": 2 })).unwrap().describe();
    let description = crowded();
    assert_eq!(description["threads"], 2);
    assert!(
        description["warnings"].to_string().contains("more threads (2) than cores (1), so they do not spin"),
        "{description}"
    );
    assert_eq!(crowded()["threads"], 2, "the same again is the same");
    let error = engine(serde_json::json!({})).err().unwrap();
    assert!(error.to_string().contains("made with false"), "{error}");
}

/// The first core that this process may use.
fn first_core() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    list.trim().split(['-', ',']).next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "run by the_pool_has_as_many_threads_as_the_process_has_cores"]
fn one_core() {
    assert_eq!(small().describe()["threads"], 1);
}

/// Where other threads want the cores, passes run on threads that sleep while they wait. The session that they run in
/// takes the memory of its weights, and not that of its loading, which is several times as much.
#[test]
fn passes_give_way_to_other_work() {
    alone("beside_others", &[]);
}

#[test]
#[ignore = "run by passes_give_way_to_other_work"]
fn beside_others() {
    let cores = small().describe()["threads"].as_u64().unwrap();
    if cores < 2 {
        println!("skipped, because the pool has one thread");
        return;
    }
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 12 >> 20
    };
    let before = resident();
    let engine = Arc::new(demo("base"));
    let decode = || {
        let mut session = Session::new(&engine, &Options { max_tokens: 50, ..Options::default() }).unwrap();
        session.prompt(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        while session.decoder().is_open() {
            session.step().unwrap();
        }
    };
    let gave_way = || !metrics(&engine).contains("\ncos_calm_passes_total 0\n");
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 * cores {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // Finding the others takes 20 ms of passes, and then the second session is loaded.
        let started = Instant::now();
        while !gave_way() && started.elapsed() < Duration::from_secs(60) {
            decode();
        }
        ends.store(true, Ordering::Relaxed);
    });
    assert!(gave_way(), "no pass gave way in a minute beside {} busy loops", 2 * cores);
    // 14 M weights in fp32 take 56 MiB, and loading them over 300.
    let grown = resident().saturating_sub(before);
    assert!(grown < 250, "two sessions take {grown} MiB");
}
