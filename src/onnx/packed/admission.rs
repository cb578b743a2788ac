//! Who gets blocks when there are not enough.
//!
//! First go blocks that are only kept for others, and then those of the session that was started last. It is *set
//! back*: its tokens stay, and its next pass computes them anew. Nobody takes blocks of a session that was started
//! earlier, unless that one rests. So the oldest session always gets what it needs, and one that waits does so for
//! older ones.

use std::time::{Duration, Instant};

use super::block::BlockId;
use super::holding::HoldingId;
use super::pool::Blocks;

/// A session that has asked for no pass of the model for so long may lose its blocks to any other one. One that has
/// ended may at once.
const REST: Duration = Duration::from_secs(1);

impl Blocks {
    /// Reserve the blocks of the tokens up to index `end`, of which `next` come next. What others have computed of
    /// `next` is taken over. Returns false if there are not enough blocks.
    pub fn admit(&mut self, id: HoldingId, next: &[i32], end: usize, now: Instant) -> bool {
        let comes_in = self.of(id).is_empty();
        self.reuse(id, next);
        let missing = self.missing(id, end);
        if missing > 0 && !self.make_room(id, missing, comes_in, now) {
            return false;
        }
        self.touch(id, now);
        self.reserve(id, end)
    }

    /// Make so many blocks available, if that is possible.
    fn make_room(&mut self, id: HoldingId, missing: usize, comes_in: bool, now: Instant) -> bool {
        // One that comes in leaves a block for each that was there before, so that it is not set back at once.
        let stays = |other: &HoldingId| *other != id && !self.of(*other).is_empty() && !self.may_lose(*other, id, now);
        let spare = if comes_in { self.all().filter(stays).count() } else { 0 };
        let wanted = missing + spare;
        if wanted <= self.available() {
            return true;
        }
        if wanted > self.available() + self.obtainable(id, now) {
            return false;
        }
        while wanted > self.available() {
            let victims = self.all().filter(|&other| self.may_lose(other, id, now));
            let Some(victim) = victims.max_by_key(|&other| (self.age(other), other)) else { return false };
            self.set_back(victim);
        }
        true
    }

    /// How many blocks become available if all lose theirs that may. A block that another one shares stays.
    fn obtainable(&self, id: HoldingId, now: Instant) -> usize {
        let losers = self.all().filter(|&other| self.may_lose(other, id, now));
        let mut blocks: Vec<BlockId> = losers.flat_map(|loser| self.of(loser)).copied().collect();
        blocks.sort_unstable_by_key(|block| block.0);
        blocks.chunk_by(|a, b| a == b).filter(|users| users.len() == self.users(users[0])).count()
    }

    /// Whether a sequence may lose its blocks to another one.
    fn may_lose(&self, id: HoldingId, to: HoldingId, now: Instant) -> bool {
        let is_younger = self.age(id) > self.age(to);
        // One that has ended, or that was never admitted and has only found its blocks.
        let rests = || self.used(id).is_none_or(|used| now.saturating_duration_since(used) >= REST);
        id != to && !self.is_running(id) && !self.of(id).is_empty() && (is_younger || rests())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::packed::pool::{Chain, Pool};

    const SIZE: usize = 4;

    fn start(blocks: &mut Blocks, age: u64) -> HoldingId {
        blocks.open(Chain::EMPTY, age)
    }

    /// Admit a sequence of so many tokens, none of which others have computed.
    fn admit(blocks: &mut Blocks, id: HoldingId, end: usize, now: Instant) -> bool {
        let admitted = blocks.admit(id, &[], end, now);
        if admitted {
            blocks.ran(id, end);
        }
        admitted
    }

    #[test]
    fn the_youngest_is_set_back_and_the_oldest_gets_all() {
        let (pool, now) = (Pool::new(SIZE, 6), Instant::now());
        let mut blocks = pool.lock();
        let [old, middle, young] = [0, 1, 2].map(|age| start(&mut blocks, age));
        assert!(admit(&mut blocks, middle, 8, now) && admit(&mut blocks, old, 8, now));
        assert!(!admit(&mut blocks, young, 4, now), "it leaves a block for each of the others");
        assert!(admit(&mut blocks, middle, 12, now));
        assert!(!admit(&mut blocks, young, 4, now));
        assert!(admit(&mut blocks, old, 12, now));
        assert!(!admit(&mut blocks, middle, 16, now), "it waits for the older one");
        assert_eq!((blocks.len(old), blocks.len(middle)), (12, 12), "and keeps what it has");
        assert!(admit(&mut blocks, middle, 12, now), "what it has it may use");
        assert!(admit(&mut blocks, old, 13, now));
        assert_eq!((blocks.len(old), blocks.len(middle)), (13, 0), "set back");
        assert!(admit(&mut blocks, old, 24, now), "all");
        assert!(!admit(&mut blocks, young, 1, now) && !admit(&mut blocks, middle, 1, now));
        blocks.close(old);
        assert!(admit(&mut blocks, young, 8, now) && admit(&mut blocks, middle, 20, now));
        assert_eq!(blocks.len(young), 0);
    }

    #[test]
    fn a_session_that_rests_loses_its_blocks_to_younger_ones() {
        let (pool, now) = (Pool::new(SIZE, 4), Instant::now());
        let mut blocks = pool.lock();
        let [old, young] = [0, 1].map(|age| start(&mut blocks, age));
        assert!(admit(&mut blocks, old, 16, now));
        assert!(!admit(&mut blocks, young, 4, now + REST / 2));
        assert!(blocks.admit(old, &[], 16, now + REST / 2));
        assert!(!admit(&mut blocks, young, 4, now + REST), "it has run since");
        blocks.run(old);
        assert!(!admit(&mut blocks, young, 4, now + 2 * REST), "its pass is running");
        blocks.ran(old, 16);
        assert!(admit(&mut blocks, young, 4, now + 2 * REST));
        assert_eq!(blocks.len(old), 0);
    }

    #[test]
    fn a_session_that_has_ended_loses_its_blocks_at_once() {
        let (pool, now) = (Pool::new(SIZE, 4), Instant::now());
        let mut blocks = pool.lock();
        let [old, young] = [0, 1].map(|age| start(&mut blocks, age));
        assert!(admit(&mut blocks, old, 16, now) && !admit(&mut blocks, young, 4, now));
        blocks.rest(old);
        assert!(admit(&mut blocks, young, 4, now));
        assert_eq!(blocks.len(old), 0);
        assert!(admit(&mut blocks, old, 16, now), "it is the older one again");
        assert_eq!(blocks.len(young), 0);
    }

    #[test]
    fn one_that_was_set_back_finds_what_was_kept() {
        let (pool, now) = (Pool::new(SIZE, 6), Instant::now());
        let mut blocks = pool.lock();
        let tokens: Vec<i32> = (0..16).collect();
        let [old, young] = [0, 1].map(|age| start(&mut blocks, age));
        assert!(admit(&mut blocks, young, 16, now));
        blocks.publish_first(young, &tokens);
        assert!(admit(&mut blocks, old, 12, now), "two blocks were free");
        assert_eq!((blocks.len(young), blocks.available()), (0, 3));
        blocks.close(old);
        assert!(blocks.admit(young, &tokens, 17, now));
        assert_eq!(blocks.len(young), 12, "the last of its blocks was taken");
    }

    #[test]
    fn one_that_waits_does_not_keep_what_it_has_found() {
        let (pool, now) = (Pool::new(SIZE, 4), Instant::now());
        let mut blocks = pool.lock();
        let tokens: Vec<i32> = (0..8).collect();
        let [first, old, middle, young] = [0, 1, 2, 3].map(|age| start(&mut blocks, age));
        assert!(admit(&mut blocks, first, 8, now));
        blocks.publish_first(first, &tokens);
        blocks.close(first);
        assert!(admit(&mut blocks, old, 8, now));
        assert!(!blocks.admit(middle, &tokens, 17, now), "it needs three more");
        assert_eq!(blocks.len(middle), 8);
        assert!(admit(&mut blocks, young, 4, now));
        assert_eq!(blocks.len(middle), 0);
    }

    #[test]
    fn nobody_is_set_back_in_vain() {
        let (pool, now) = (Pool::new(SIZE, 4), Instant::now());
        let mut blocks = pool.lock();
        let [old, middle, young] = [0, 1, 2].map(|age| start(&mut blocks, age));
        assert!(admit(&mut blocks, young, 4, now) && admit(&mut blocks, old, 12, now));
        assert!(!admit(&mut blocks, middle, 8, now));
        assert_eq!(blocks.len(young), 4);
    }

    #[test]
    fn a_fork_is_not_set_back_for_blocks_that_others_share() {
        let (pool, now) = (Pool::new(SIZE, 8), Instant::now());
        let mut blocks = pool.lock();
        let [old, parent] = [0, 1].map(|age| start(&mut blocks, age));
        assert!(admit(&mut blocks, old, 8, now) && admit(&mut blocks, parent, 16, now));
        let fork = blocks.fork(parent, 2);
        assert!(admit(&mut blocks, fork, 20, now));
        assert!(!admit(&mut blocks, parent, 32, now), "the fork has one block that its parent lacks");
        assert_eq!(blocks.len(fork), 20);
        assert!(admit(&mut blocks, old, 28, now), "together they have five");
        assert_eq!((blocks.len(parent), blocks.len(fork)), (0, 0));
    }
}
