//! Rows in half precision: their values, their probabilities, and bad ones.

use std::sync::Arc;

use cos::config::Combine;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::model::{Cancel, Model};
use cos::onnx::RowsOn;
use cos::rows::Sampler;
use half::{bf16, f16};

use super::exports::{
    BAD, BF16, BF16_LOGITS, CONTRASTIVE, GRAPHS, PROMPT, TARGET, WEIGHTED, engine_with, forward, gpu, load_with,
    logits, run, worst,
};
use crate::common::Golden;

/// Whether a score is a number of the export's half precision.
fn is_half(form: &str, score: f32) -> bool {
    score == if form.contains("bf16") { bf16::from_f32(score).to_f32() } else { f16::from_f32(score).to_f32() }
}

/// Rows in half precision are PyTorch's in float32 up to rounding, and equal on the GPU and on the host.
#[test]
fn half_rows_agree_with_pytorch_anywhere() {
    let Some(_turn) = gpu() else { return };
    let golden = Golden::read("llama");
    // PyTorch's own rows in these types are off by 0.012 and 0.1.
    for (form, element, tolerance) in
        [(GRAPHS, "float16", 0.05), (BF16, "float32", 0.3), (BF16_LOGITS, "bfloat16", 0.3)]
    {
        let models = [RowsOn::Host, RowsOn::Gpu].map(|rows| load_with(form, &[], Some(rows)).unwrap());
        models.iter().for_each(|model| assert_eq!(model.describe()["logits"]["type"], element, "{form}"));
        let mut off = 0.0f32;
        for (tokens, rows) in &golden.sequences {
            let mut sequences = models.each_ref().map(|model| model.start(&Arc::new(Cancel::default())).unwrap());
            for width in [6, 1, 1, 1, 4, 4, 4, 17].into_iter().cycle() {
                let start = sequences[0].len();
                let end = tokens.len().min(start + width);
                if start == end {
                    break;
                }
                for (model, sequence) in models.iter().zip(&mut sequences) {
                    forward(model, sequence.as_mut(), &tokens[start..end], start + 1).unwrap();
                }
                for position in start + 1..=end {
                    let [host, gpu] = sequences.each_ref().map(|sequence| logits(sequence.as_ref(), position));
                    assert_eq!(host, gpu, "{form}, position {position}");
                    assert!(host.iter().all(|&score| is_half(form, score)), "{form}, position {position}");
                    off = off.max(worst(host, &rows[position - 1]));
                }
            }
        }
        println!("{form}: {off:.1e} from PyTorch");
        assert!(off < tolerance, "{form}: off by {off}");
    }
}

/// Draws from rows in half precision have probabilities at least as exact as those of a softmax in float32.
#[test]
fn probabilities_of_half_rows_are_made_in_float32() {
    for form in ["variants/fp16-io", "variants/bf16-io"] {
        probabilities_are_a_softmax(form, "cpu", "host");
    }
    let Some(_turn) = gpu() else { return };
    for form in [GRAPHS, BF16, BF16_LOGITS] {
        let texts = ["host", "gpu"].map(|rows| probabilities_are_a_softmax(form, "cuda", rows));
        assert_eq!(texts[0], texts[1], "{form}");
    }
}

/// Returns the greedy text.
fn probabilities_are_a_softmax(form: &str, provider: &str, rows: &str) -> Vec<i32> {
    let engine = engine_with(&[(form, provider)], rows, TARGET);
    let model = engine.models().next().unwrap();
    let mut text = Vec::new();
    // The first session leaves its buffers to the others, so no kernel may rely on their lengths.
    let warm = Options { strategy: Strategy::Standard, stop_tokens: Some(Vec::new()), ..Options::default() };
    run(&engine, &PROMPT, &warm);
    for (seed, temperature) in [(1, 1.0), (2, 0.7), (3, 1.5), (0, 0.0)] {
        let options = Options {
            seed,
            strategy: Strategy::Standard,
            sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
            log_probabilities: true,
            max_tokens: 60,
            stop_tokens: Some(Vec::new()),
            ..Options::default()
        };
        let logs;
        (text, logs, _) = run(&engine, &PROMPT, &options);
        assert_eq!((text.len(), logs.len()), (60, 60));
        let rate = if temperature == 0.0 { 1.0 } else { 1.0 / f64::from(temperature) };
        // The same passes give the same rows.
        let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        forward(model, sequence.as_mut(), &PROMPT, PROMPT.len()).unwrap();
        for (&token, log) in text.iter().zip(logs) {
            let position = sequence.len();
            let row = logits(sequence.as_ref(), position);
            assert!(row.iter().all(|&score| is_half(form, score)), "{form}, position {position}");
            let score = |score: f32| f64::from(score) * rate;
            let max = row.iter().copied().map(score).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = row.iter().map(|&of| (score(of) - max).exp()).sum();
            let expected = score(row[token as usize]) - max - total.ln();
            let off = (f64::from(log) - expected).abs();
            assert!(off < 1e-3, "{form} on {provider}, {rows}, {temperature}, position {position}: off by {off}");
            forward(model, sequence.as_mut(), &[token], position + 1).unwrap();
        }
    }
    text
}

/// A bad row of a float16 model is an error that names the model, wherever its rows are. The session goes on as on the
/// processor.
#[test]
fn bad_half_rows_are_errors_anywhere() {
    let ways = || {
        let way = |strategy, lengths: [i32; 2], temperature, top_k| Options {
            strategy,
            targets: Some(Targets::Combined),
            sampler: Sampler::new(temperature, top_k, 0.0, 0.0).unwrap(),
            proposal_lengths: (strategy != Strategy::Standard).then(|| lengths.to_vec()),
            ..Options::default()
        };
        // At this temperature, the next token is certain.
        [(0.0, 0), (0.1, 0), (0.1, 3)].into_iter().flat_map(move |(temperature, top_k)| {
            [
                (Strategy::Standard, [0, 0]),
                (Strategy::Speculative, [0, 4]),
                (Strategy::Speculative, [4, 0]),
                (Strategy::Cos, [3, 3]),
            ]
            .map(|(strategy, lengths)| way(strategy, lengths, temperature, top_k))
        })
    };
    let pair = |providers: [&str; 2], rows: &str, combine: &str| {
        engine_with(&[(BAD, providers[0]), ("../fixtures/half", providers[1])], rows, combine)
    };
    for combine in [WEIGHTED, CONTRASTIVE] {
        let engine = pair(["cpu", "cpu"], "host", combine);
        ways().for_each(|options| bad_rows_are_errors(&engine, &options));
    }
    let Some(_turn) = gpu() else { return };
    for (providers, rows) in
        [(["cuda", "cuda"], "host"), (["cuda", "cuda"], "gpu"), (["cuda", "cpu"], "host"), (["cuda", "cpu"], "gpu")]
    {
        for combine in [WEIGHTED, CONTRASTIVE] {
            let engine = pair(providers, rows, combine);
            ways().for_each(|options| bad_rows_are_errors(&engine, &options));
        }
    }
}

/// Decodes 9, 10, 11 and so on. The first of two models gives an infinity after 11, and NaN after 13.
fn bad_rows_are_errors(engine: &Arc<Engine>, options: &Options) {
    let what = format!("{:?}, {options:?}", engine.combine());
    let start = |prompt: &[i32]| {
        let mut session = Session::new(engine, options).unwrap();
        session.prompt(prompt).unwrap();
        session
    };
    // Decoding ends at the bad row, and trying again gives the same error.
    let fails = |session: &mut Session, tokens: &[i32], says: &str| {
        let (mut found, before) = (Vec::new(), session.decoder().counters().tokens as usize);
        let error = loop {
            match session.step() {
                Ok((new, state)) => {
                    found.extend_from_slice(new);
                    assert_eq!(state, State::Open, "{what}: {found:?}");
                }
                Err(error) => break error,
            }
        };
        assert_eq!(found, tokens, "{what}");
        let committed = session.decoder().committed().to_vec();
        let says = format!("{BAD}, position {}: {says}", committed.len());
        for error in [error, session.step().map(drop).unwrap_err()] {
            assert!(matches!(&error, Error::Numeric(message) if message.contains(&says)), "{what}: {error}");
        }
        assert_eq!(session.decoder().committed(), committed, "{what}");
        let counters = session.decoder().counters();
        assert!(
            counters.tokens as usize == before + tokens.len() && counters.accepted <= counters.tested,
            "{what}: {counters:?}"
        );
    };
    let ends = |session: &mut Session, tokens: &[i32]| {
        let (mut found, mut state) = (Vec::new(), State::Open);
        while state == State::Open {
            let (new, now) = session.step().unwrap_or_else(|error| panic!("{what}: {error}"));
            found.extend_from_slice(new);
            state = now;
        }
        assert_eq!(found, tokens, "{what}");
    };
    let mut session = start(&[9]);
    fails(&mut session, &[10, 11], "a row of logits holds plus infinity");
    // Tokens of a prompt need no row.
    session.prompt(&[12]).unwrap();
    fails(&mut session, &[13], "a row of logits holds NaN");
    session.prompt(&[14]).unwrap();
    ends(&mut session, &[15, 0]);

    // A bad row directly after a prompt. Then the session goes on without the model with the bad rows.
    let mut session = start(&[1, 13]);
    fails(&mut session, &[], "a row of logits holds NaN");
    if matches!(engine.combine(), Combine::Weighted { .. }) {
        session.set_weights(&[0.0, 1.0]).unwrap();
        ends(&mut session, &[14, 15, 0]);
        let mut session = start(&[9]);
        fails(&mut session, &[10, 11], "a row of logits holds plus infinity");
        session.set_weights(&[0.0, 1.0]).unwrap();
        ends(&mut session, &[12, 13, 14, 15, 0]);
    }
    // Other sessions are not affected.
    ends(&mut start(&[14]), &[15, 0]);
}
