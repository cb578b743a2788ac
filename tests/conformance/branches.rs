//! Sequences that are forked, kept apart by scopes, or computed anew because others took their memory, against the same
//! exports alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cos::model::{Admission, Cancel, Model, Pass, Sequence};
use cos::onnx::{CacheSize, OnnxModel};

use super::packed::{BLOCK, COMMON, Reader, TEXT, Tally, load, load_at, rows, texts, turn};
use crate::common::root;

/// The export whose sequences are forked.
const EXPORT: &str = "llama/builder-fp32";
/// Sequences at a time.
const SEQUENCES: usize = 6;
/// Blocks that are too few for all of them.
const BLOCKS: usize = 8;
/// Tokens of a text that takes three passes.
const LONG: usize = 600;

/// What was tried and found.
type Found = (&'static str, Tally);

fn start(model: &OnnxModel) -> Box<dyn Sequence> {
    model.start(&Arc::new(Cancel::default())).expect("memory")
}

/// Run a pass, with those before it that compute lost tokens anew. Returns false if there is no memory now.
fn forward(model: &OnnxModel, pass: &mut Pass<'_>) -> bool {
    loop {
        match model.admit(pass) {
            Admission::Waits => return false,
            Admission::Whole(_) => break,
            Admission::Part(_) => {
                let (keep, filter) = (pass.keep, pass.filter);
                let mut part = [Pass { sequence: &mut *pass.sequence, tokens: &[], keep, filter, uniforms: None }];
                model.forward(&mut part).expect("models that do not fail");
            }
        }
    }
    let Pass { tokens, keep, filter, .. } = *pass;
    model
        .forward(&mut [Pass { sequence: &mut *pass.sequence, tokens, keep, filter, uniforms: None }])
        .expect("models that do not fail");
    true
}

/// Run a pass over tokens of which the last row is wanted.
fn follow(model: &OnnxModel, sequence: &mut dyn Sequence, tokens: &[i32]) -> bool {
    let keep = sequence.len() + tokens.len();
    forward(model, &mut Pass { keep, ..Pass::plain(sequence, tokens) })
}

/// Sequences follow texts, and are forked within blocks and behind them. Then parent and fork follow other texts. All
/// of them get memory in turns if it is too little.
fn forks(model: &OnnxModel, texts: &[Vec<i32>; 3], expected: &[Vec<Vec<f32>>], passes: usize) -> Tally {
    let (mut rng, mut tally) = (fastrand::Rng::with_seed(3), Tally::default());
    let begin = |text: usize| Reader { text, sequence: start(model) };
    let mut readers: Vec<Reader> = (0..SEQUENCES).map(|index| begin(index % texts.len())).collect();
    while tally.passes < passes {
        let (index, other) = (rng.usize(..SEQUENCES), rng.usize(..SEQUENCES));
        match rng.u8(..6) {
            0 if index != other => {
                let Reader { text, sequence } = &readers[other];
                let sequence = model.fork(sequence.as_ref(), &Arc::new(Cancel::default())).expect("memory");
                readers[index] = Reader { text: *text, sequence };
            }
            1 if readers[index].sequence.len() == TEXT => readers[index] = begin(rng.usize(..texts.len())),
            2 => {
                let len = readers[index].sequence.len();
                readers[index].sequence.truncate(rng.usize(..=len));
            }
            _ => {}
        }
        let Reader { text, sequence } = &mut readers[index];
        if *text != 1 && sequence.len() <= COMMON {
            *text = [0, 2][rng.usize(..2)];
        }
        let len = sequence.len();
        let Some(turn) = turn(&mut rng, len, &texts[*text], TEXT) else { continue };
        let (sequence, tokens) = (sequence.as_mut(), &turn.tokens[..]);
        let before = sequence.cache_use().recomputed;
        if forward(model, &mut Pass { keep: turn.keep, ..Pass::plain(sequence, tokens) }) {
            tally.passes += 1;
            tally.recomputed += readers[index].sequence.cache_use().recomputed - before;
            if turn.strays {
                readers[index].sequence.truncate(len);
                continue;
            }
            let Reader { text, sequence } = &readers[index];
            (turn.keep..=sequence.len())
                .for_each(|position| tally.compare(sequence.as_ref(), position, &expected[*text]));
        }
    }
    tally
}

/// The oldest of three sequences takes what the others have computed. Both compute it anew, one in several passes.
fn taken(path: &Path) -> Result<Tally, String> {
    let mut rng = fastrand::Rng::with_seed(4);
    let text: Vec<i32> = (0..=LONG).map(|_| rng.i32(3..4000)).collect();
    let other: Vec<i32> = text.iter().map(|token| token + 1).collect();
    let context = Some(LONG + BLOCK);
    let expected = rows(&load_at(path, true, CacheSize::default(), context)?, &text);
    let model = load_at(path, false, CacheSize::Share(0.0), context)?;
    let (mut old, mut sequences, mut tally) = (start(&model), [start(&model), start(&model)], Tally::default());
    let ends = [LONG, 3 * BLOCK + 1];
    for (sequence, end) in sequences.iter_mut().zip(ends) {
        text[..end].chunks(model.max_pass()).for_each(|tokens| assert!(follow(&model, sequence.as_mut(), tokens)));
        other.chunks(model.max_pass()).for_each(|tokens| assert!(follow(&model, old.as_mut(), tokens)));
        old.truncate(0);
        if !follow(&model, sequence.as_mut(), &text[end..end + 1]) {
            return Err(format!("{}: a sequence gets no memory", path.display()));
        }
        tally.compare(sequence.as_ref(), end + 1, &expected);
        tally.passes += 1;
        // A sequence without tokens does not take memory from the next one.
        let recomputed = sequence.cache_use().recomputed as usize;
        sequence.truncate(0);
        if recomputed < end - BLOCK {
            return Err(format!("{}: only {recomputed} of {end} tokens were taken", path.display()));
        }
    }
    Ok(tally)
}

/// Sequences and forks of a scope, and others of the same text. Returns an error if something is shared that must not
/// be, or is not shared that may be.
fn scopes(model: &OnnxModel, texts: &[Vec<i32>; 3]) -> Result<(), String> {
    let found = |scope: &str, tokens: &[i32]| {
        let mut sequence = start(model);
        sequence.set_scope(scope);
        follow(model, sequence.as_mut(), tokens);
        sequence.cache_use().found as usize
    };
    // A fork from within the first block, and one from behind it.
    for (text, len) in texts.iter().zip([5, BLOCK + 5]) {
        let mut parent = start(model);
        parent.set_scope("tenant");
        follow(model, parent.as_mut(), &text[..len]);
        let mut fork = model.fork(parent.as_ref(), &Arc::new(Cancel::default())).expect("memory");
        follow(model, fork.as_mut(), &text[len..2 * BLOCK + 5]);
        for (scope, wanted) in [("another", 0), ("", 0), ("tenant", 2 * BLOCK)] {
            let found = found(scope, &text[..2 * BLOCK + 9]);
            if found != wanted {
                return Err(format!("the scope {scope:?} finds {found} tokens of the scope \"tenant\", not {wanted}"));
            }
        }
    }
    Ok(())
}

/// `passes` is the number of passes over forks, with enough memory and with too little.
pub fn run(passes: usize) -> Result<Vec<Found>, String> {
    let texts = texts(96);
    let expected: Vec<Vec<Vec<f32>>> = {
        let alone = load(EXPORT, true)?;
        texts.iter().map(|text| rows(&alone, text)).collect()
    };
    let path = root().join("tests/exports").join(EXPORT);
    let model = load_at(&path, false, CacheSize::default(), None)?;
    scopes(&model, &texts)?;
    let mut tallies = vec![("forks", forks(&model, &texts, &expected, passes))];
    let about = model.describe();
    let number = |key: &str| about[key].as_u64().expect("a packed model") as usize;
    let little = CacheSize::Bytes(BLOCKS * number("cache_bytes") / number("cache_blocks"));
    let model = load_at(&path, false, little, None)?;
    let tally = forks(&model, &texts, &expected, passes);
    if tally.recomputed == 0 {
        return Err("no sequence was set back".into());
    }
    tallies.push(("forks without enough memory", tally));
    let demo: PathBuf = root().join("models/demo/small");
    tallies.push(("sequences whose memory is taken", taken(&demo)?));
    tallies.into_iter().map(|(name, tally)| tally.check(name).map(|tally| (name, tally))).collect()
}
