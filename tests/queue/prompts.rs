//! Long prompts beside sessions that decode.

use std::sync::{Arc, Mutex};

use cos::config::Combine;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::model::scripted::Scripted;

/// Most tokens of a pass over one sequence.
const MAX_PASS: usize = 64;

/// By pass: the tokens of each of its sequences.
type Widths = Arc<Mutex<Vec<Vec<usize>>>>;

/// An engine of one model, and the widths of its passes.
fn engine() -> (Arc<Engine>, Widths) {
    let widths = Widths::default();
    let seen = widths.clone();
    let script = |context: &[i32], row: &mut [f32]| {
        row.fill(0.0);
        row[context.iter().sum::<i32>() as usize % 4] = 1.0;
        Ok(())
    };
    let hook = move |batch: &[usize]| {
        seen.lock().unwrap().push(batch.to_vec());
        Ok(())
    };
    let model = Scripted::new(4, script).with_max_pass(MAX_PASS).with_batches(2 * MAX_PASS).with_batch_hook(hook);
    let combine = Combine::Weighted { weights: vec![1.0] };
    (Arc::new(Engine::new(vec![Arc::new(model.with_name("a"))], combine, Vec::new(), None).unwrap()), widths)
}

fn session(engine: &Arc<Engine>, prompt: usize) -> Session {
    let options = Options { strategy: Strategy::Standard, max_tokens: 40, ..Options::default() };
    let mut session = Session::new(engine, &options).unwrap();
    session.prompt(&vec![1; prompt]).unwrap();
    session
}

/// Many prompts hold up a session that decodes no more than one does, and they all end.
#[test]
fn prompts_share_the_passes_of_those_who_decode() {
    let (engine, widths) = engine();
    let mut sessions: Vec<Session> =
        std::iter::once(4).chain([300; 8]).map(|prompt| session(&engine, prompt)).collect();
    let mut tokens = 0;
    for call in 0..39 {
        widths.lock().unwrap().clear();
        step_many(&mut sessions, |session: &mut Session, state| {
            assert_eq!(state.unwrap(), State::Open);
            tokens += usize::from(session.decoder().prompt_end() == 4);
        });
        let passes = widths.lock().unwrap();
        assert_eq!(passes.len(), 1, "a call is one pass: {passes:?}");
        assert!(passes[0].iter().filter(|&&width| width > 16).sum::<usize>() <= MAX_PASS, "{passes:?}");
        assert_eq!(tokens, call + 1, "the one that decodes has a token in each call");
    }
    // Nobody waits for ever: 8 prompts of 300 tokens need 40 such passes.
    for _ in 0..3 {
        step_many(&mut sessions, |_, state| assert!(state.is_ok()));
    }
    assert!(sessions.iter().all(|session| session.stats().counters.tokens > 0), "all prompts have ended");
}

/// Threads that come with prompts leave room for each other as well.
#[test]
fn prompts_of_threads_share_passes() {
    let (engine, widths) = engine();
    std::thread::scope(|scope| {
        for prompt in [4, 4, 300, 300, 300, 300] {
            let mut session = session(&engine, prompt);
            scope.spawn(move || while session.step().unwrap().1 == State::Open {});
        }
    });
    for pass in widths.lock().unwrap().iter() {
        assert!(pass.iter().filter(|&&width| width > 16).sum::<usize>() <= MAX_PASS, "{pass:?}");
    }
}
