//! What a thread does for its sessions while their passes run.

use std::sync::OnceLock;
use std::thread;

use crate::decode::chance::CounterRng;
use crate::decode::decoder::Beside;
use crate::process::processors;

/// Sessions with a grammar that are worth a thread: their masks take longer than a thread takes to start.
const OF_THREAD: usize = 8;

/// Most threads that make masks, the calling one included.
const MOST_THREADS: usize = 8;

/// Make the edits of the rows of all sessions. If many sessions have a grammar, several threads make their masks: one
/// thread would take longer for that than a GPU for the pass. They end before this returns.
pub fn work(working: &mut [Beside<'_, CounterRng>]) {
    working.sort_unstable_by_key(|beside| !beside.takes_long());
    let (long, others) = working.split_at_mut(working.partition_point(Beside::takes_long));
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let most = (*PROCESSORS.get_or_init(processors)).min(MOST_THREADS);
    let threads = (long.len() / OF_THREAD).clamp(1, most);
    thread::scope(|scope| {
        let mut parts = long.chunks_mut(long.len().div_ceil(threads).max(1));
        let own = parts.next();
        for part in parts {
            // If there is no thread for them, they are made where they are needed.
            _ = thread::Builder::new().spawn_scoped(scope, || part.iter_mut().for_each(Beside::work));
        }
        own.into_iter().flatten().chain(others).for_each(Beside::work);
    });
}
