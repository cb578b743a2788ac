//! No allocation per step in steady state, by a counting allocator, for every strategy on real models.
//!
//! It counts what Rust allocates; what ONNX Runtime allocates inside a pass is its own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cos::config::Config;
use cos::decode::combine::Function;
use cos::decode::policy::{Strategy, Targets};
use cos::decode::sampling::Sampler;
use cos::engine::Engine;
use cos::session::{Options, Session, State};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steps_do_not_allocate() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for config in ["engine.json", "contrastive.json"] {
        let engine = Arc::new(Engine::load(&Config::open(&demo.join(config)).unwrap()).unwrap());
        for temperature in [0.0, 1.0] {
            for (top_k, top_p) in [(0, 0.0), (40, 0.9)] {
                for strategy in [Strategy::Auto, Strategy::Standard, Strategy::Speculative, Strategy::Cos] {
                    let options = Options {
                        strategy,
                        targets: if strategy == Strategy::Auto { None } else { Some(Targets::Combined) },
                        sampler: Sampler::new(temperature, top_k, top_p, 0.0).unwrap(),
                        proposal_lengths: Some(vec![2, 3]),
                        ..Options::default()
                    };
                    check(&engine, options, config);
                }
            }
        }
    }
    // With all that may come on top: a look-up, log-probabilities, a function of the caller.
    let config = format!(
        r#"{{ "models": [ {{ "path": {0:?} }}, {{ "path": {1:?} }}, {{ "kind": "ngram" }} ],
             "combine": {{ "kind": "weighted", "weights": [0.5, 0.5, 0] }} }}"#,
        demo.join("base"),
        demo.join("math")
    );
    let engine = Arc::new(Engine::load(&Config::parse(&config).unwrap()).unwrap());
    let sum = Function::new(|rows, out| {
        out.fill(0.0);
        for row in rows.flatten() {
            out.iter_mut().zip(row).for_each(|(out, logit)| *out += logit);
        }
        Ok(())
    });
    for temperature in [0.0, 1.0] {
        for strategy in [Strategy::Speculative, Strategy::Cos] {
            for combine in [None, Some(sum.clone())] {
                let options = Options {
                    strategy,
                    targets: Some(Targets::Combined),
                    sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
                    proposal_lengths: Some(vec![1, 1, 4]),
                    log_probabilities: true,
                    combine,
                    ..Options::default()
                };
                check(&engine, options, "with a look-up");
            }
        }
    }
}

fn check(engine: &Arc<Engine>, options: Options, config: &str) {
    let options = Options { stop_tokens: Some(Vec::new()), ..options };
    let mut session = Session::new(engine, &options).unwrap();
    let prompt = engine.text().unwrap().encode("Question: How many legs do 3 cats have?\nAnswer:", true).unwrap();
    session.prompt(&prompt).unwrap();
    // The first steps size the buffers: each model has run at each width, and far behind once.
    while session.decoder().committed().len() < prompt.len() + 60 {
        assert_eq!(session.step().unwrap().1, State::Open);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut steps = 0;
    // within the cache's first 256 tokens, so that it does not grow
    while session.decoder().committed().len() < 200 {
        assert_eq!(session.step().unwrap().1, State::Open);
        steps += 1;
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(steps > 20, "{config}, {options:?}: only {steps} steps");
    assert_eq!(allocations, 0, "{config}, {options:?}: {steps} steps");
}
