//! Which passes are worth running before anybody waits for them.
//!
//! A GPU plans and captures a pass of a new size, which takes many times as long as the pass. The size is made of the
//! tokens, the rows that are wanted, and the longest sequence. Sessions of any strategy meet few sizes most of the
//! time: those of short drafts, and those of all sessions together.

use std::ops::RangeInclusive;

/// A company of so many sessions is rehearsed in all contexts, a larger one in the longest two.
pub const SMALL_COMPANY: usize = 4;

/// Contexts: none, and the longest ones.
const LONGEST: usize = 3;

/// Tokens of passes of a few sessions, times the tokens of each of them: the more sessions, the shorter their drafts.
const SHORT: usize = 16;

/// Most tokens of a part that is no chunk of a prompt.
const NARROW: usize = 16;

/// Most tokens of a chunk of a prompt, and least beside other sessions.
const CHUNK: usize = 256;
const LEAST_CHUNK: usize = 64;

/// The least context. A GPU's block of the cache has up to 256 tokens, and tables are padded to powers of two.
const LEAST_CONTEXT: usize = 160;

/// A pass that nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsal {
    /// Tokens of each sequence.
    pub widths: Vec<usize>,
    /// Tokens of the first sequence before the pass. The others have none.
    pub context: usize,
    /// Whether the rows of all tokens are wanted, as where a draft is verified.
    verifies: bool,
}

impl Rehearsal {
    /// Tokens of the pass.
    pub fn tokens(&self) -> usize {
        self.widths.iter().sum()
    }

    /// Rows that are wanted of a sequence with so many tokens in the pass, the last ones.
    pub fn rows(&self, width: usize) -> usize {
        if self.verifies && width <= NARROW { width } else { 1 }
    }

    /// Rows that are wanted of all sequences.
    pub fn all_rows(&self) -> usize {
        self.widths.iter().map(|&width| self.rows(width)).sum()
    }
}

/// Passes for up to so many sessions with texts of up to so many tokens. The most useful come first.
pub fn rehearsals(sessions: usize, tokens: usize) -> Vec<Rehearsal> {
    let longer = std::iter::successors(Some(LEAST_CONTEXT), |context| Some(2 * context));
    let longer: Vec<usize> = longer.take_while(|&context| context < tokens).collect();
    let longest = &longer[longer.len().saturating_sub(LONGEST)..];
    let contexts: Vec<usize> = [&[0], longest].concat();
    let (others, many) = contexts.split_at(contexts.len().saturating_sub(2));
    let shorter = &others[others.len().saturating_sub(1)..];
    let mut programme = Programme(Vec::new());
    for &context in &contexts {
        programme.of_few(sessions.min(SMALL_COMPANY), context);
    }
    for width in sizes(NARROW + 1..=CHUNK) {
        programme.add(Kind::Prompt, width, vec![width], 0, false);
    }
    if sessions > SMALL_COMPANY {
        many.iter().for_each(|&context| programme.of_many(sessions, context));
        shorter.iter().for_each(|&context| programme.standard(Kind::Shorter, sessions, context));
    }
    programme.0.sort_by_key(|(kind, rank, _)| (*kind, *rank)); // stable
    programme.0.into_iter().map(|(_, _, rehearsal)| rehearsal).collect()
}

/// What a pass is part of, the most useful first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A few sessions, with short drafts.
    Few,
    /// Many sessions without drafts.
    Standard,
    /// Many sessions with drafts of one token.
    Drafts,
    /// A prompt beside many sessions.
    PromptBeside,
    /// Many sessions without drafts, in a shorter context.
    Shorter,
    Prompt,
    /// Models of many sessions catch up: they read several tokens, of which only the last row is wanted.
    Behind,
    /// One session with a longer draft.
    Alone,
    /// Longer drafts than these.
    Long,
}

/// Rehearsals, each with its kind and its rank within that.
struct Programme(Vec<(Kind, usize, Rehearsal)>);

impl Programme {
    fn add(&mut self, kind: Kind, rank: usize, widths: Vec<usize>, context: usize, verifies: bool) {
        self.0.push((kind, rank, Rehearsal { widths, context, verifies }));
    }

    fn of_few(&mut self, sessions: usize, context: usize) {
        for width in 1..=4 {
            for tokens in sizes(width..=width * sessions) {
                let kind = if tokens * width <= SHORT { Kind::Few } else { Kind::Long };
                self.add(kind, tokens * width, shares(tokens, width), context, true);
            }
        }
        for sessions in 1..=sessions {
            self.add(Kind::Few, 4 * sessions, vec![2; sessions], context, false);
        }
        for width in [3, 4] {
            self.add(Kind::Few, 4 * width, vec![width], context, false);
        }
        for width in [6, 8] {
            self.add(Kind::Alone, width, vec![width], context, true);
            self.add(Kind::Alone, width, vec![width], context, false);
        }
        for width in [12, 16] {
            self.add(Kind::Long, width, vec![width], context, true);
        }
    }

    fn standard(&mut self, kind: Kind, sessions: usize, context: usize) {
        for tokens in sizes(SMALL_COMPANY + 1..=sessions) {
            self.add(kind, tokens, shares(tokens, 1), context, true);
        }
    }

    fn of_many(&mut self, sessions: usize, context: usize) {
        self.standard(Kind::Standard, sessions, context);
        for tokens in sizes(2 * SMALL_COMPANY + 1..=2 * sessions) {
            self.add(Kind::Drafts, tokens, shares(tokens, 2), context, true);
        }
        for company in sizes(SMALL_COMPANY + 1..=sessions).filter(|&size| rows(size) == size || size == sessions) {
            self.add(Kind::Behind, 2 * company, vec![2; company], context, false);
            for width in [3, 4] {
                self.add(Kind::Long, company * width, vec![width; company], context, true);
            }
        }
        for company in [sessions - sessions / 4, sessions] {
            for width in [1, 2] {
                let others = width * (company - 1);
                for tokens in sizes(LEAST_CHUNK + others..=CHUNK) {
                    let mut widths = vec![width; company - 1];
                    widths.push(tokens - others);
                    self.add(Kind::PromptBeside, width * tokens, widths, context, true);
                }
            }
        }
    }
}

/// Sequences of `width` tokens, and one with what is left.
fn shares(tokens: usize, width: usize) -> Vec<usize> {
    let rest = tokens % width;
    let mut widths = vec![width; tokens / width];
    widths.extend((rest > 0).then_some(rest));
    widths
}

/// The numbers that a GPU pads tokens to, and the last one of the range: 1, 2, 3, 4, 6, 8, then four from a power of
/// two to the next.
fn sizes(range: RangeInclusive<usize>) -> impl Iterator<Item = usize> {
    let (least, most) = (*range.start(), *range.end());
    let padded = move |size: &usize| match size {
        ..=8 => rows(*size) == *size,
        _ => size.is_multiple_of(1 << (size.ilog2() - 2)),
    };
    (least..=most).filter(move |size| padded(size) || *size == most)
}

/// The number that a GPU pads rows to: 1, 2, 3, 4, 6, 8, then two from a power of two to the next.
fn rows(count: usize) -> usize {
    if count <= 2 { count } else { count.next_multiple_of(1 << (count.ilog2() - 1)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn small_companies_come_first_and_no_pass_is_rehearsed_twice() {
        for sessions in [1, 2, 4, 5, 16, 37, 256, 1024] {
            let all = rehearsals(sessions, 1024);
            assert_eq!((&all[0].widths[..], all[0].context), (&[1][..], 0));
            assert!(all.iter().all(|each| (1..=sessions.max(1)).contains(&each.widths.len())), "{sessions}");
            if let Some(first) = all.iter().position(|each| each.widths.len() > SMALL_COMPANY) {
                let is_short = |each: &Rehearsal| each.tokens() <= SHORT;
                assert!(first > 60 && all[..first].iter().all(is_short), "{sessions}: a few sessions come first");
            }
            assert!(all.len() <= 410, "{sessions}: {}", all.len());
            for (index, each) in all.iter().enumerate() {
                assert!(!all[..index].contains(each), "{sessions}: {each:?}");
            }
            for context in [0, 160, 320, 640] {
                let of = |widths: &[usize]| all.iter().any(|each| each.widths == widths && each.context == context);
                assert!(of(&[1]) && of(&[3]) && of(&[16]), "{sessions}, {context}");
            }
            let most = all.iter().map(|each| each.widths.len()).max();
            assert_eq!(most, Some(sessions));
        }
        let long = rehearsals(64, 8192);
        let contexts: BTreeSet<usize> = long.iter().map(|each| each.context).collect();
        assert_eq!((contexts, long.len()), (BTreeSet::from([0, 1280, 2560, 5120]), rehearsals(64, 1024).len()));
        assert_eq!(rehearsals(1, 1).iter().map(|each| each.context).max(), Some(0));
    }

    #[test]
    fn rows_are_those_of_drafts_and_the_last_ones() {
        let each = |widths: &[usize], verifies| Rehearsal { widths: widths.to_vec(), context: 0, verifies };
        assert_eq!(each(&[3, 3, 2], true).all_rows(), 8);
        assert_eq!(each(&[3, 3, 2], false).all_rows(), 3);
        assert_eq!(each(&[1, 1, 100], true).all_rows(), 3);
        assert_eq!(shares(7, 3), [3, 3, 1]);
        assert_eq!(sizes(1..=23).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 23]);
    }
}
