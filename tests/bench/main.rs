//! The parts of the benchmark that do not depend on time: its theory, its report, and tiny runs.

#[allow(dead_code, reason = "only parts of it are tested")]
#[path = "../../benches/bench/main.rs"]
mod bench;
mod serve;

use std::ffi::OsString;
use std::sync::Arc;

use bench::cases::Picks;
use bench::measure;
use bench::quality;
use bench::report;
use bench::results::{Case, PassCost, Results, Row, Sample, Spread, Theory, paired};
use bench::theory::{Event, Policy, Setup, theorem_3_1, theorem_3_6};
use clap::Parser;
use cos::config::Combine;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::model::Model;
use cos::model::scripted::Scripted;
use cos::rows::Sampler;

fn cos(lengths: &[usize], order: &[usize]) -> Setup {
    let policy = Policy::Cos { lengths: lengths.to_vec(), order: order.to_vec() };
    Setup { needed: vec![true; lengths.len()], policy }
}

fn near(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * b.abs(), "{a}, not {b}");
}

#[test]
fn the_paths_are_those_of_the_algorithms() {
    let path = |setup: Setup, events| setup.path().take(events).collect::<Vec<_>>();
    let pass = |model, width| Event::Pass { model, width };
    assert_eq!(
        path(cos(&[1, 1], &[0, 1]), 5),
        [pass(0, 1), pass(1, 2), Event::Decision(Some(0)), pass(0, 2), Event::Decision(Some(1))]
    );
    let speculative = Setup { needed: vec![true; 2], policy: Policy::Speculative { proposer: 0, length: 2 } };
    assert_eq!(
        path(speculative, 8),
        [
            pass(0, 1),
            pass(0, 1),
            pass(1, 3),
            Event::Decision(Some(0)),
            Event::Decision(Some(0)),
            pass(0, 1),
            Event::Decision(None), // the true bonus token
            pass(0, 1),
        ]
    );
}

#[test]
fn the_count_is_the_closed_form() {
    let cost = |model: usize, width: usize| [0.7, 1.0][model] * (1.0 + 0.1 * width as f64);
    for a in [0.0f64, 0.3, 0.8, 0.99] {
        let expected = cos(&[1, 1], &[0, 1]).expected(&[a; 2], cost).seconds;
        near(expected, (1.0 - a) * cost(0, 1) + (cost(1, 2) + a * cost(0, 2)) / (1.0 + a), 1e-6);
        for length in [1usize, 5] {
            let setup = Setup { needed: vec![true; 2], policy: Policy::Speculative { proposer: 0, length } };
            let power = a.powi(length as i32);
            let closed = (1.0 - a) / (1.0 - a * power) * ((length as f64 + power) * cost(0, 1) + cost(1, length + 1));
            near(setup.expected(&[a; 2], cost).seconds, closed, 1e-6);
        }
    }
}

#[test]
fn the_theorems_are_the_papers() {
    for (a, c) in [(0.5, 0.2), (0.8, 1.0)] {
        // Corollary 3.7.
        near(theorem_3_6(a, c, 1, 1), (1.0 + c) / (1.0 + c - a * c), 1e-12);
        near(theorem_3_1(a, c, 1), 1.0, 1e-12);
        near(theorem_3_1(a, c, 5), (1.0 - f64::powi(a, 5)) * (1.0 + c) / ((1.0 - a) * (1.0 + 5.0 * c)), 1e-12);
        // The count is at least as good if all passes cost the same.
        let expected = cos(&[1, 1], &[0, 1]).expected(&[a; 2], |model, _| [c, 1.0][model]).seconds;
        assert!((1.0 + c) / expected >= theorem_3_6(a, c, 1, 1) - 1e-9);
    }
    near(theorem_3_1(1.0, 0.1, 4), 4.0 * 1.1 / 1.4, 1e-12);
}

/// Models with the same distribution after every context, so acceptances are independent of each other.
fn constant_models(distributions: &[[f32; 3]]) -> Vec<Arc<dyn Model>> {
    let model = |(index, row): (usize, &[f32; 3])| {
        let logits = row.map(f32::ln);
        let script = move |_: &[i32], out: &mut [f32]| {
            out.copy_from_slice(&logits);
            Ok(())
        };
        Arc::new(Scripted::new(3, script).with_cost(index as u64 + 1)) as Arc<dyn Model>
    };
    distributions.iter().enumerate().map(model).collect()
}

#[test]
fn the_decoder_does_what_the_count_says() {
    const SESSIONS: u64 = 5; // long, for their ends are not in the theory
    let rows = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.1, 0.6]];
    let cases: [(&[f32], Strategy, &[i32]); 8] = [
        (&[0.5, 0.5], Strategy::Cos, &[1, 1]),
        (&[0.3, 0.7], Strategy::Cos, &[5, 1]),
        (&[0.3, 0.7], Strategy::Cos, &[5, 5]),
        (&[0.5, 0.5], Strategy::Speculative, &[1, 1]),
        (&[0.5, 0.5], Strategy::Speculative, &[5, 5]),
        (&[0.2, 0.5, 0.3], Strategy::Cos, &[1, 1, 1]),
        (&[0.2, 0.5, 0.3], Strategy::Cos, &[2, 1, 3]),
        (&[0.0, 0.5, 0.5], Strategy::Speculative, &[4, 0, 0]),
    ];
    for (weights, strategy, lengths) in cases {
        let rows = &rows[..weights.len()];
        let models = constant_models(rows);
        let combine = Combine::Weighted { weights: weights.to_vec() };
        let engine = Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap());
        let options = Options {
            strategy,
            proposal_lengths: Some(lengths.to_vec()),
            sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
            max_tokens: 4000,
            ..Options::default()
        };
        let setup = bench::cases::Ours {
            engine: engine.clone(),
            strategy,
            targets: None,
            lengths: Some(lengths.to_vec()),
            weights: None,
        };
        let setup = setup.theory().unwrap();
        let (mut counted, mut tests) = ([0u64; 3], vec![[0; 2]; rows.len()]);
        for seed in 0..SESSIONS {
            let mut session = Session::new(&engine, &Options { seed, ..options.clone() }).unwrap();
            session.prompt(&[0]).unwrap();
            let mut steps = vec![session.stats().counters];
            while session.step().unwrap().1 == State::Open {
                steps.push(session.stats().counters);
            }
            let last = session.stats().counters;
            counted = [counted[0] + last.tokens, counted[1] + last.forwards, counted[2] + last.positions];
            measure::attribute(&setup, &steps, &mut tests);
        }
        let combined = |token: usize| rows.iter().zip(weights).map(|(row, weight)| row[token] * weight).sum::<f32>();
        let acceptance = |row: &[f32; 3]| (0..3).map(|token| f64::from(row[token].min(combined(token)))).sum::<f64>();
        let acceptance: Vec<f64> = rows.iter().map(acceptance).collect();
        let expected = setup.expected(&acceptance, |_, _| 1.0);
        near(counted[1] as f64 / counted[0] as f64, expected.passes, 0.02);
        near(counted[2] as f64 / counted[0] as f64, expected.positions, 0.02);
        for ([tested, accepted], acceptance) in tests.into_iter().zip(acceptance) {
            if tested > 1000 {
                near(accepted as f64 / tested as f64, acceptance, 0.04);
            }
        }
    }
}

#[test]
fn models_of_one_size_are_mixed_and_of_two_contrasted() {
    // The sizes of base, code, large, math and small.
    let picks = Picks::new(&[14, 14, 30, 14, 1]);
    assert_eq!(picks, Picks { pair: Some(vec![0, 1]), triple: Some(vec![0, 1, 3]), contrast: Some(vec![2, 4]) });
    assert_eq!(Picks::new(&[30, 1]), Picks { pair: None, triple: None, contrast: Some(vec![0, 1]) });
    assert_eq!(Picks::new(&[14]), Picks { pair: None, triple: None, contrast: None });
    assert_eq!(Picks::new(&[]), Picks { pair: None, triple: None, contrast: None });
}

#[test]
fn ratios_are_of_the_prompts_that_both_decoded() {
    let sample = |tokens, seconds| Sample { tokens, seconds };
    let standard = [vec![sample(10, 1.0), sample(10, 9.0)], vec![sample(10, 2.0), sample(10, 9.0)]];
    let peer = [vec![sample(10, 2.0)], vec![sample(10, 1.0)]];
    assert_eq!(paired(&peer, &standard), [0.5, 2.0]);
    assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
    assert_eq!(Spread::of([3.0, 1.0]).median, 2.0);
    assert!(Spread::of([]).median.is_nan());
}

#[test]
fn the_report_shows_what_was_measured() {
    let spread = |median| Spread { median, least: median - 0.1, most: median + 0.1 };
    let row = |name: &str, ratio: f64| Row {
        name: name.into(),
        tokens_per_second: spread(100.0 * ratio),
        ratio: spread(ratio),
        ratios: vec![ratio; 3],
        ..Row::default()
    };
    let mut case = Case {
        title: "weighted <two>".into(),
        models: vec!["base".into(), "math".into()],
        rounds: 3,
        rows: vec![row("standard", 1.0), row("cos γ=1", 1.5), row("auto", 1.8)],
        pass_costs: vec![PassCost { model: "base".into(), width: 2, milliseconds: spread(2.5) }],
        ..Case::default()
    };
    let theory = |expected| Theory { theorem: None, expected, reached: spread(0.9), host: 1.0, passes: 0.9, rest: 1.0 };
    case.rows[1].theory = Some(theory(1.67));
    case.rows.push(Row { peer: true, ..row("genai loop", 0.45) });
    case.rows.push(Row { failed: Some("no such package".into()), peer: true, ..Row::default() });
    let mut sweep =
        Case { title: "γ sweep".into(), sweep: Some("γ".into()), judge: Some("large".into()), ..Case::default() };
    sweep.rows = vec![row("standard", 1.0)];
    for at in [1.0, 5.0] {
        sweep.rows.push(Row { series: "cos".into(), at, likelihood: Some(-2.5), ..row("cos", 1.0 + at / 10.0) });
    }
    let results = Results {
        facts: vec![("machine".into(), "two cores".into())],
        notes: vec!["transformers: skipped".into()],
        cases: vec![case, sweep],
        raw: Vec::new(),
        prompts: Vec::new(),
    };
    let folder = tempfile::tempdir().unwrap();
    report::write(&results, folder.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let (page, markdown) = (read("index.html"), read("report.md"));
    for text in
        ["1.80 (1.70–1.90)", "4.00 (4.00–4.00)", "no such package", "transformers: skipped", "rejections come in runs"]
    {
        assert!(page.contains(text) && markdown.contains(text), "{text}: {markdown}");
    }
    assert!(
        page.contains("weighted &lt;two&gt;") && !page.contains("<two>") && page.contains("1.50 (1.40–1.60); -2.50")
    );
    assert_eq!(page.matches("<svg").count(), 3); // bars of the case, two plots of the sweep
    assert!(!page.contains("NaN") && !page.contains("src=") && !page.contains("http"));
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&read("results.json")).unwrap()["cases"][0]["rows"][2]["name"],
        "auto"
    );
}

/// `cargo bench` on the demo models writes its report. Its numbers are not tested.
#[test]
fn a_tiny_run_writes_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["bench", "--quick", "--no-peers", "--prompts", "1", "--tokens", "8", "--rounds", "1"];
    let words = words.into_iter().chain(["--cases", "contrastive: greedy;two models: sampled", "--out"]);
    let words = words.map(OsString::from).chain([folder.path().into()]);
    bench::run(&bench::Arguments::parse_from(words)).unwrap();
    let page = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    for text in
        ["contrastive: greedy, GSM8K", "weighted, two models: sampled, GSM8K", "speculative γ=5", "routed", "look-up"]
    {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("NaN"));
}

/// The runs of `scripts/bench-cuda`, but on the processor, write the page of the GPU.
#[test]
fn a_tiny_run_over_exports_writes_the_page_of_the_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("models");
    let run = |words: &[&str], paths: &[&std::path::Path]| {
        let words = std::iter::once("bench").chain(words.iter().copied()).map(OsString::from);
        let words = words.chain(paths.iter().map(|path| path.into()));
        bench::run(&bench::Arguments::parse_from(words)).unwrap();
    };
    // Both models are the smallest one.
    let exports = folder.path().join("exports");
    std::fs::create_dir(&exports).unwrap();
    for name in ["base", "math"] {
        let small = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/small");
        std::os::unix::fs::symlink(small, exports.join(name)).unwrap();
    }
    let exports = exports.to_str().unwrap();
    let few =
        ["--quick", "--no-peers", "--prompts", "1", "--tokens", "8", "--rounds", "1", "--cases", "sampled;one model"];
    let words: Vec<&str> = few.into_iter().chain(["--exports", exports, "--out"]).collect();
    run(&words, &[&results]);
    run(&["--quick", "--passes", "--exports", exports, "--out"], &[&folder.path().join("models-passes")]);
    let docs = folder.path().join("docs");
    run(&["--out", docs.to_str().unwrap(), "--cuda-report"], &[folder.path()]);
    let page = std::fs::read_to_string(docs.join("cuda.md")).unwrap();
    for text in [
        "| routed |",
        "one model: greedy, GSM8K",
        "## A pass beside plain ONNX Runtime",
        "150 tokens, float16",
        " MB |",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains("NaN") && !page.contains("plain ONNX Runtime with base"), "{page}");
    for plot in ["models", "passes"] {
        assert!(
            std::fs::read_to_string(docs.join("cuda").join(plot).with_extension("svg"))
                .unwrap()
                .starts_with("<svg xmlns")
        );
    }
    // The table has columns for two GPUs only if there are such rows.
    let file = results.join("results.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let renamed = text.replace("\"routed\"", "\"standard, two GPUs\"");
    assert!(!page.contains("two GPUs") && renamed != text, "{page}");
    std::fs::write(&file, renamed).unwrap();
    run(&["--out", docs.to_str().unwrap(), "--cuda-report"], &[folder.path()]);
    let page = std::fs::read_to_string(docs.join("cuda.md")).unwrap();
    let cells =
        |start: &str| page.lines().find(|line| line.starts_with(start)).unwrap_or_default().matches('|').count();
    assert_eq!((cells("| case |"), cells("| weighted, two models: sampled")), (9, 9), "{page}");

    // Without time, no case is begun, and the report says so.
    run(&["--quick", "--no-peers", "--exports", exports, "--budget", "0", "--out"], &[&results]);
    let report = std::fs::read_to_string(results.join("report.md")).unwrap();
    assert!(report.contains("left out for want of time: weighted, two models: sampled, GSM8K"), "{report}");
}

#[test]
fn what_a_combination_does_to_the_text_is_told() {
    // Two models of three tokens. Each prefers one of tokens 1 and 2, and they never agree.
    let model = |name: &str, step: i32| {
        let script = move |tokens: &[i32], row: &mut [f32]| {
            row.fill(0.0);
            row[(1 + (tokens.last().unwrap() + step) % 2) as usize] = 2.0;
            Ok(())
        };
        Arc::new(Scripted::new(3, script).with_name(name).with_max_pass(2)) as Arc<dyn Model>
    };
    let models = vec![model("same", 1), model("other", 0)];
    let engine = Engine::new(models, Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap();
    // Half of the prompt is likely under one model, and half under the other one.
    let prompt = vec![1, 1, 2, 2, 1, 1, 2, 2, 1];
    let (likely, unlikely) = (2.0 - (2.0f64.exp() + 2.0).ln(), -(2.0f64.exp() + 2.0).ln());
    let of = |combine| quality::quality(&engine, combine, std::slice::from_ref(&prompt), 12).unwrap();
    let alone = of(Combine::Target { model: 0 });
    near(alone.likelihoods[0], (likely + unlikely) / 2.0, 1e-5);
    // 12 equal tokens have 9 stretches of 4.
    near(alone.repeated, 8.0 / 9.0, 1e-9);
    let together = of(engine.combine().clone());
    near(together.likelihoods[0], (0.5 * (likely.exp() + unlikely.exp())).ln(), 1e-5);
    let sum = of(Combine::Contrastive { mu: 1.0, plausibility: 0.0 });
    near(sum.likelihoods[0], 0.5 * (2.0 - 2.0) - (2.0f64.exp() + (-2.0f64).exp() + 1.0).ln(), 1e-5);

    let table = quality::table(&engine, &[prompt], 12).unwrap();
    for text in
        ["| same alone | -1.24 | 88.9 % |", "| other alone | -1.24 |", "| **together** | -0.81 |", "1 of 1 prompts"]
    {
        assert!(table.contains(text), "no {text:?} in\n{table}");
    }
    let masked = Combine::Contrastive { mu: 1.0, plausibility: 0.9 };
    let engine = Engine::new(engine.participants().to_vec(), masked, Vec::new(), None).unwrap();
    assert!(quality::table(&engine, &[vec![1, 0]], 12).unwrap().contains("| **together** | some are masked |"));
    assert_eq!(quality::repetitions(&[1, 2, 3, 4, 1, 2, 3, 4, 1]), 2);
}
