//! Follows one text through a grammar.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use parking_lot::Mutex;

use crate::control::Constraint;
use crate::error::{Error, Result};

/// Most followers of all grammars that are kept for later texts.
const MOST_KEPT: usize = 128;

/// Most tokens that a follower remembers something of. What it remembers grows with them.
const MOST_FOLLOWED: usize = 4096;

/// Most work of llguidance's lexer that a follower remembers, in its own unit. That is two megabytes at most.
pub const MOST_WORK: u64 = 50_000;

/// Whether tokens can be taken back from a matcher at its start. `end` is the token that stands for the end.
pub fn goes_back(fresh: &Matcher, end: u32) -> bool {
    let mut trial = fresh.deep_clone();
    let token = trial.compute_mask().ok().and_then(|mask| mask.iter().find(|token| *token != end));
    token.is_none_or(|token| trial.consume_token(token).is_err() || trial.rollback(1).is_ok())
}

/// A matcher, and how much it remembers.
#[derive(Clone)]
struct Automaton {
    matcher: Matcher,
    /// Tokens of the present text.
    length: usize,
    /// Tokens of all texts.
    followed: usize,
    /// What the lexer has done for them.
    work: u64,
}

impl Automaton {
    /// Go back to the start of the grammar, to follow another text. An error if it must not: it remembers too much.
    fn restart(&mut self) -> Result<(), ()> {
        if self.followed > MOST_FOLLOWED || self.work > MOST_WORK || self.matcher.is_error() {
            return Err(());
        }
        // Not `Matcher::reset`, which trusts its own count of tokens.
        self.matcher.rollback(std::mem::take(&mut self.length)).map_err(drop)
    }
}

/// A grammar that was compiled, and what earlier texts have left.
pub struct Compiled {
    fresh: Matcher,
    /// At the start of the grammar. What they have computed is not computed again, which saves a third of the time of a
    /// mask.
    kept: Mutex<Vec<Automaton>>,
    /// The number of all that are kept, of all grammars of the engine.
    count: Arc<AtomicUsize>,
}

impl Compiled {
    /// At its start. `count` is that of all grammars of an engine.
    pub fn new(fresh: Matcher, count: &Arc<AtomicUsize>) -> Self {
        Compiled { fresh, kept: Mutex::default(), count: count.clone() }
    }

    fn start(&self) -> Automaton {
        let kept = self.kept.lock().pop();
        self.count.fetch_sub(usize::from(kept.is_some()), Ordering::Relaxed);
        // A deep copy, so that sessions on several threads do not wait for each other.
        let fresh = || Automaton { matcher: self.fresh.deep_clone(), length: 0, followed: 0, work: 0 };
        kept.unwrap_or_else(fresh)
    }

    fn keep(&self, automaton: &mut Automaton) {
        if automaton.restart().is_err() {
            return;
        }
        if self.count.fetch_add(1, Ordering::Relaxed) < MOST_KEPT {
            // A copy that shares what the matcher remembers, and is soon alone with it.
            self.kept.lock().push(automaton.clone());
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
    automaton: Automaton,
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
        Follower {
            automaton: fresh.start(),
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
        self.fresh.keep(&mut self.automaton);
    }
}

impl Constraint for Follower {
    fn reset(&mut self) -> Result<()> {
        self.behind = 0;
        if self.automaton.restart().is_err() {
            self.automaton = self.fresh.start();
        }
        Ok(())
    }

    fn push(&mut self, token: i32) -> Result<()> {
        let token = token as u32;
        if self.behind > 0 || self.stop_tokens.contains(&token) {
            self.behind += 1;
            return Ok(());
        }
        self.automaton.followed += 1;
        self.automaton.matcher.consume_token(token).map_err(failed)?;
        self.automaton.length += 1;
        Ok(())
    }

    fn pop(&mut self, tokens: usize) -> Result<()> {
        let behind = tokens.min(self.behind);
        self.behind -= behind;
        self.automaton.matcher.rollback(tokens - behind).map_err(failed)?;
        self.automaton.length -= tokens - behind;
        Ok(())
    }

    fn forced(&mut self) -> Result<Option<i32>> {
        if self.behind > 0 || self.automaton.matcher.is_stopped() {
            return Ok(None);
        }
        let forced = self.automaton.matcher.compute_ff_tokens();
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
            let allowed: SimpleVob = self.automaton.matcher.compute_mask().map_err(failed)?;
            self.automaton.work += self.automaton.matcher.last_step_stats().map_or(0, |stats| stats.lexer_cost);
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
        self.automaton.matcher.is_stopped() && !self.automaton.matcher.is_error()
    }
}

#[cold]
fn failed(error: impl std::fmt::Display) -> Error {
    let why = error.to_string();
    Error::Numeric(format!("the constraint cannot go on: {}", why.trim().replace("<non-verbose/>", "").trim()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use llguidance::ParserFactory;
    use llguidance::api::TopLevelGrammar;

    use super::*;
    use crate::grammar::trie::TokenTrie;
    use crate::text::Text;

    /// Follows random texts, and returns how many automata are kept then.
    fn kept(expression: &str, texts: usize) -> usize {
        let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/base/tokenizer.json");
        let text = Arc::new(Text::load(&text).unwrap());
        let (tokens, mut rng) = (text.vocab_size(), fastrand::Rng::with_seed(3));
        let factory = ParserFactory::new_simple(&TokenTrie::new(&text, tokens).unwrap().into_env()).unwrap();
        let end = factory.tok_env().eos_token();
        let matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_regex(expression)));
        let compiled = Arc::new(Compiled::new(matcher, &Arc::default()));
        let mut followers: Vec<Follower> = (0..texts).map(|_| Follower::new(&compiled, &[].into(), end)).collect();
        let mut mask = vec![0; tokens.div_ceil(32)];
        for follower in &mut followers {
            for _ in 0..300 {
                follower.mask(&mut mask).unwrap();
                let allowed: Vec<usize> =
                    (0..tokens).filter(|token| mask[token / 32] >> (token % 32) & 1 == 1).collect();
                follower.push(allowed[rng.usize(..allowed.len())] as i32).unwrap();
            }
        }
        drop(followers);
        assert_eq!(compiled.kept.lock().len(), compiled.count.load(Ordering::Relaxed));
        compiled.count.load(Ordering::Relaxed)
    }

    #[test]
    fn what_remembers_little_is_kept() {
        assert_eq!(kept("[a-z ]+", 3), 3);
        assert_eq!(kept("[a-z ]+", MOST_KEPT + 2), MOST_KEPT);
        assert_eq!(kept("(.|\n)*[a-k](.|\n){40}", 2), 0);
    }
}
