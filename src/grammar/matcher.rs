//! Follows one text through a grammar.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use parking_lot::Mutex;

use crate::control::Constraint;
use crate::error::{Error, Result};

/// Most followers of all grammars that are kept for later texts. Each may remember a megabyte.
const MOST_KEPT: usize = 128;

/// Most tokens that a follower remembers something of. What it remembers grows with them.
const MOST_FOLLOWED: usize = 4096;

/// A grammar that was compiled, and what earlier texts have left.
pub struct Compiled {
    fresh: Matcher,
    /// At the start of the grammar, each with the number of tokens that it has followed. What they have computed is not
    /// computed again, which saves a third of the time of a mask.
    kept: Mutex<Vec<(Matcher, usize)>>,
    /// The number of all that are kept, of all grammars of the engine.
    count: Arc<AtomicUsize>,
}

impl Compiled {
    /// At its start. `count` is that of all grammars of an engine.
    pub fn new(fresh: Matcher, count: &Arc<AtomicUsize>) -> Self {
        Compiled { fresh, kept: Mutex::default(), count: count.clone() }
    }

    fn start(&self) -> (Matcher, usize) {
        let kept = self.kept.lock().pop();
        self.count.fetch_sub(usize::from(kept.is_some()), Ordering::Relaxed);
        // A deep copy, so that sessions on several threads do not wait for each other.
        kept.unwrap_or_else(|| (self.fresh.deep_clone(), 0))
    }

    fn keep(&self, matcher: &mut Matcher, followed: usize) {
        if followed > MOST_FOLLOWED || matcher.is_error() || matcher.reset().is_err() {
            return;
        }
        if self.count.fetch_add(1, Ordering::Relaxed) < MOST_KEPT {
            // A copy that shares what the matcher remembers, and is soon alone with it.
            self.kept.lock().push((matcher.clone(), followed));
        } else {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        self.count.fetch_sub(self.kept.get_mut().len(), Ordering::Relaxed);
    }
}

/// Follows a text through a grammar. A stop token ends the text and is no part of it.
pub struct Follower {
    matcher: Matcher,
    /// Tokens that the matcher has followed.
    followed: usize,
    stop_tokens: Arc<[u32]>,
    /// The state at the start, to begin anew.
    fresh: Arc<Compiled>,
    /// Tokens behind the end of the text: the stop token, and what was proposed behind it.
    behind: usize,
    /// The token of llguidance that stands for the end.
    end: u32,
    /// Whether the text may end, as of the last mask.
    may_end: bool,
}

impl Follower {
    /// At the start of a grammar. `end` is the token of llguidance that stands for the end of the text.
    pub fn new(fresh: &Arc<Compiled>, stop_tokens: &Arc<[u32]>, end: u32) -> Self {
        let (matcher, followed) = fresh.start();
        Follower {
            matcher,
            followed,
            stop_tokens: stop_tokens.clone(),
            fresh: fresh.clone(),
            behind: 0,
            end,
            may_end: false,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.fresh.keep(&mut self.matcher, self.followed);
    }
}

impl Constraint for Follower {
    fn reset(&mut self) -> Result<()> {
        self.behind = 0;
        if self.followed > MOST_FOLLOWED || self.matcher.is_error() || self.matcher.reset().is_err() {
            (self.matcher, self.followed) = self.fresh.start();
        }
        Ok(())
    }

    fn push(&mut self, token: i32) -> Result<()> {
        let token = token as u32;
        if self.behind > 0 || self.stop_tokens.contains(&token) {
            self.behind += 1;
            return Ok(());
        }
        self.followed += 1;
        self.matcher.consume_token(token).map_err(failed)
    }

    fn pop(&mut self, tokens: usize) -> Result<()> {
        let behind = tokens.min(self.behind);
        self.behind -= behind;
        self.matcher.rollback(tokens - behind).map_err(failed)
    }

    fn forced(&mut self) -> Result<Option<i32>> {
        if self.behind > 0 || self.matcher.is_stopped() {
            return Ok(None);
        }
        let forced = self.matcher.compute_ff_tokens();
        let token = forced.first().filter(|token| **token < self.end && !self.stop_tokens.contains(token));
        Ok(token.map(|&token| token as i32))
    }

    fn mask(&mut self, mask: &mut [u32]) -> Result<()> {
        mask.fill(0);
        self.may_end = self.behind > 0 || self.is_complete();
        if self.behind > 0 {
            return Ok(());
        }
        if !self.may_end {
            let allowed: SimpleVob = self.matcher.compute_mask().map_err(failed)?;
            self.may_end = allowed.is_allowed(self.end);
            let words = mask.len().min(allowed.as_slice().len());
            mask[..words].copy_from_slice(&allowed.as_slice()[..words]);
        }
        let bits = || self.stop_tokens.iter().map(|&token| (token as usize / 32, 1 << (token % 32)));
        bits().for_each(|(word, bit)| mask[word] &= !bit);
        // Where nothing can follow, the text ends without a stop token.
        if self.may_end && mask.iter().any(|&word| word != 0) {
            bits().for_each(|(word, bit)| mask[word] |= bit);
        }
        Ok(())
    }

    fn calls_back(&self) -> bool {
        false
    }

    fn may_end(&self) -> bool {
        self.may_end
    }

    fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

#[cold]
fn failed(error: impl std::fmt::Display) -> Error {
    let why = error.to_string();
    Error::Numeric(format!("the constraint cannot go on: {}", why.trim().replace("<non-verbose/>", "").trim()))
}
