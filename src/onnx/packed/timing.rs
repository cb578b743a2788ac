//! The time of packed attention against that of ONNX Runtime's GroupQueryAttention on one sequence.
//!
//! `cargo test --release --lib packed::timing -- --ignored --nocapture [FILTER]`

use std::ffi::CString;
use std::time::Instant;

use ort::memory::MemoryInfo;
use ort::session::{RunOptions, Session};
use ort::value::TensorElementType;

use super::oracle::{Case, Pool, ours, session, theirs};
use crate::onnx::binding::{Binding, Tensor};

/// A session with its inputs and outputs. They are dropped after the binding.
struct Runner {
    threads: usize,
    binding: Binding,
    options: RunOptions,
    _buffers: Vec<Vec<f32>>,
    _integers: Vec<Vec<i64>>,
    _session: Session,
}

impl Runner {
    /// Seconds. One thread is timed by what it got of the processor, since other programs may run.
    fn now(&self) -> f64 {
        let clock = if self.threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the clock is known, and the place for the time is valid.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }

    fn run(&mut self) -> f64 {
        let start = self.now();
        self.binding.run(&self.options).unwrap();
        (self.now() - start) * 1e6
    }
}

/// A buffer, its shape, and the names of the input and the output that it is.
type Part<'a> = (Vec<f32>, Vec<usize>, &'a str, &'a str);

fn runner(
    threads: usize,
    session: Session,
    parts: Vec<Part>,
    integers: Vec<(i64, TensorElementType, &[i64], &str)>,
) -> Runner {
    let memory = MemoryInfo::default();
    let (mut binding, name) = (Binding::new(&session).unwrap(), |name: &str| CString::new(name).unwrap());
    let (mut buffers, mut numbers) = (Vec::new(), Vec::new());
    for (mut data, shape, input, output) in parts {
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let tensor = Tensor::over(&memory, &mut data, TensorElementType::Float32, &shape).unwrap();
        if !input.is_empty() {
            binding.input(&name(input), &tensor).unwrap();
        }
        if !output.is_empty() {
            binding.output(&name(output), &tensor).unwrap();
        }
        buffers.push(data);
    }
    for (number, kind, shape, input) in integers {
        let mut data = vec![number];
        // The low half of a little-endian integer is the same number.
        let tensor = Tensor::over(&memory, &mut data, kind, shape).unwrap();
        binding.input(&name(input), &tensor).unwrap();
        numbers.push(data);
    }
    let options = RunOptions::new().unwrap();
    Runner { threads, binding, options, _buffers: buffers, _integers: numbers, _session: session }
}

fn random(len: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

fn inputs(case: &Case, width: usize) -> Vec<Part<'static>> {
    let (heads, kv) = (case.heads * case.head, case.kv_heads * case.head);
    vec![
        (random(width * heads), vec![1, width, heads], "query", ""),
        (random(width * kv), vec![1, width, kv], "key", ""),
        (random(width * kv), vec![1, width, kv], "value", ""),
        (random(case.positions * case.angles), vec![case.positions, case.angles], "cos", ""),
        (random(case.positions * case.angles), vec![case.positions, case.angles], "sin", ""),
        (vec![0.0; width * heads], vec![1, width, heads], "", "out"),
    ]
}

/// The fastest of many runs of both in turn, in microseconds.
fn both(case: &Case, past: usize, width: usize, threads: usize) -> [f64; 2] {
    let capacity = past + width;
    let mut attributes = case.attributes();
    attributes.push(("layer", 1.0));
    let mut pool = Pool::new(case, capacity / 32 + 1);
    let blocks: Vec<*mut f32> = (0..=capacity / 32).map(|_| pool.take()).collect();
    pool.fill(0.5);
    let table = pool.table(&[(past, width, blocks.as_ptr())]);
    let address = std::ptr::from_ref(&table) as usize as i64;
    let mine = session(&ours(case, &attributes), threads).unwrap();
    let mut mine =
        runner(threads, mine, inputs(case, width), vec![(address, TensorElementType::Int64, &[1][..], "table")]);
    let mut parts = inputs(case, width);
    let (len, shape) = (case.kv_heads * capacity * case.head, vec![1, case.kv_heads, capacity, case.head]);
    parts.push((random(len), shape.clone(), "past_key", "present_key"));
    parts.push((random(len), shape, "past_value", "present_value"));
    let total = capacity as i64;
    let lengths = vec![
        (total - 1, TensorElementType::Int32, &[1][..], "lengths"),
        (total, TensorElementType::Int32, &[1][..], "total"),
    ];
    let mut other = runner(threads, session(&theirs(case), threads).unwrap(), parts, lengths);
    let mut best = [f64::MAX; 2];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.5 {
        for _ in 0..5 {
            best[0] = best[0].min(mine.run());
        }
        for _ in 0..5 {
            best[1] = best[1].min(other.run());
        }
    }
    best
}

#[test]
#[ignore = "prints times and asserts nothing; run it by hand on a quiet machine"]
fn against_group_query_attention() {
    println!("heads kv threads past width |  ours  | theirs, µs | ours/theirs");
    let only = std::env::var("ONLY").unwrap_or_default();
    for (heads, kv_heads) in [(6, 2), (32, 8)] {
        for threads in [1, 2] {
            for past in [0, 300, 1000, 4000] {
                for width in [1, 4, 8, 16, 256] {
                    let what = format!("{heads:5} {kv_heads:2} {threads:7} {past:4} {width:5}");
                    let squeezed = what.split_whitespace().collect::<Vec<_>>().join("-");
                    if !only.is_empty() && only != squeezed {
                        continue;
                    }
                    let [mine, other] =
                        both(&Case { positions: 4300, ..Case::plain(heads, kv_heads, 64) }, past, width, threads);
                    println!("{what} | {mine:6.0} | {other:6.0} | {:.2}", mine / other);
                }
            }
        }
    }
}
