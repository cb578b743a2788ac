//! Which passes are worth running before anybody waits for them.
//!
//! A GPU plans and captures a pass of a new size, which takes many times as long as the pass. The size is made of the
//! tokens, the rows that are wanted, and the longest sequence. Sessions of any strategy meet few sizes most of the
//! time: those of short drafts, and those of all sessions together.

use std::ops::RangeInclusive;

use super::graphs::{padded, padded_rows};

/// Most sessions of a small company.
pub const SMALL_COMPANY: usize = 4;

/// Contexts, each of them an eighth of the one before. Graphs for long contexts serve shorter ones too, and take little
/// longer. No context comes last: if there is no memory for others, it has graphs of its own.
const CONTEXTS: usize = 3;

/// Tokens of passes of a few sessions, times the tokens of each of them: the more sessions, the shorter their drafts.
const SHORT: usize = 16;

/// Most tokens of a part that is no chunk of a prompt.
const NARROW: usize = 16;

/// Most tokens of a chunk of a prompt, least beside other sessions, and most such chunks of a pass.
const CHUNK: usize = 256;
const LEAST_CHUNK: usize = 64;
const MOST_CHUNKS: usize = 4;

/// The least context but none. A GPU's block of the cache has up to 256 tokens, and tables are padded to powers of two.
const LEAST_CONTEXT: usize = 160;

/// A pass that nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsal {
    /// Tokens of each sequence.
    pub widths: Vec<usize>,
    /// Tokens of the first sequence before the pass. The others have none.
    pub context: usize,
    wanted: Wanted,
    kind: Kind,
}

/// The rows that are wanted of sequences, but of chunks of prompts only the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Those of all tokens: drafts are verified.
    All,
    /// The last ones: a model catches up.
    Last,
    /// Those of all tokens of the first sequence, which learns from them, and the last ones of the others.
    AllOfFirst,
}

impl Rehearsal {
    /// Tokens of the pass.
    pub fn tokens(&self) -> usize {
        self.widths.iter().sum()
    }

    /// How many rows are wanted of a sequence of the pass, the last ones.
    pub fn rows(&self, sequence: usize) -> usize {
        let all = self.wanted == Wanted::All || self.wanted == Wanted::AllOfFirst && sequence == 0;
        if all && self.widths[sequence] <= NARROW { self.widths[sequence] } else { 1 }
    }

    /// Whether most sessions need it.
    pub fn is_common(&self) -> bool {
        self.kind <= Kind::Few
    }

    /// Rows that are wanted of all sequences.
    pub fn all_rows(&self) -> usize {
        (0..self.widths.len()).map(|sequence| self.rows(sequence)).sum()
    }
}

/// Passes for up to so many sessions with texts of up to so many tokens. The most useful come first.
pub fn rehearsals(sessions: usize, tokens: usize) -> Vec<Rehearsal> {
    let longer = std::iter::successors(Some(LEAST_CONTEXT), |context| Some(2 * context));
    let longer: Vec<usize> = longer.take_while(|&context| context < tokens).collect();
    let contexts = longer.into_iter().rev().step_by(3).take(CONTEXTS).chain([0]);
    let mut programme = Programme(Vec::new());
    for context in contexts {
        programme.of_few(sessions.min(SMALL_COMPANY), context);
        if sessions > SMALL_COMPANY {
            programme.of_many(sessions, context);
        }
    }
    for width in sizes(NARROW + 1..=CHUNK) {
        programme.add(Kind::Prompt, width, vec![width], 0, Wanted::Last);
    }
    programme.0.sort_by_key(|(rank, rehearsal)| (rehearsal.kind, *rank)); // stable
    programme.0.into_iter().map(|(_, rehearsal)| rehearsal).collect()
}

/// What a pass is part of, the most useful first. Small passes come before larger ones whose graphs serve them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Sessions without drafts.
    Standard,
    /// A few sessions, with short drafts.
    Few,
    /// Many sessions with drafts of one token.
    Drafts,
    /// A prompt beside many sessions.
    PromptBeside,
    Prompt,
    /// Several prompts beside many sessions.
    PromptsBeside,
    /// Models of many sessions catch up: they read several tokens, of which only the last row is wanted.
    Behind,
    FarBehind,
    /// One session with a longer draft.
    Alone,
    /// Longer drafts than these.
    Long,
}

/// Rehearsals, each with its rank within those of its kind.
struct Programme(Vec<(usize, Rehearsal)>);

impl Programme {
    fn add(&mut self, kind: Kind, rank: usize, widths: Vec<usize>, context: usize, wanted: Wanted) {
        self.0.push((rank, Rehearsal { widths, context, wanted, kind }));
    }

    fn of_few(&mut self, sessions: usize, context: usize) {
        for width in 1..=4 {
            for tokens in sizes(width..=width * sessions) {
                let kind = match tokens * width {
                    _ if width == 1 => Kind::Standard,
                    ..=SHORT => Kind::Few,
                    _ => Kind::Long,
                };
                self.add(kind, tokens * width, shares(tokens, width), context, Wanted::All);
            }
        }
        for sessions in 1..=sessions {
            self.add(Kind::Few, 4 * sessions, vec![2; sessions], context, Wanted::Last);
        }
        for width in [3, 4] {
            self.add(Kind::Few, 4 * width, vec![width], context, Wanted::Last);
        }
        for width in [6, 8] {
            self.add(Kind::Alone, width, vec![width], context, Wanted::All);
            self.add(Kind::Alone, width, vec![width], context, Wanted::Last);
        }
        for width in [12, 16] {
            self.add(Kind::Long, width, vec![width], context, Wanted::All);
        }
    }

    /// So many chunks of prompts beside sequences of `width` tokens.
    fn prompts_beside(&mut self, company: usize, (width, chunks): (usize, usize), context: usize) {
        let Some(others) = company.checked_sub(chunks).filter(|&others| chunks == 1 || others >= chunks) else {
            return;
        };
        let full = width * others + (chunks - 1) * CHUNK;
        let kind = if chunks == 1 { Kind::PromptBeside } else { Kind::PromptsBeside };
        // A graph of several chunks serves passes of fewer tokens too.
        let least = if chunks == 1 { LEAST_CHUNK } else { CHUNK };
        for tokens in sizes(full + least..=full + CHUNK) {
            let mut widths = vec![width; others];
            widths.resize(company - 1, CHUNK);
            widths.push(tokens - full);
            self.add(kind, width * tokens, widths, context, Wanted::All);
        }
    }

    fn of_many(&mut self, sessions: usize, context: usize) {
        for tokens in row_sizes(SMALL_COMPANY + 1..=sessions) {
            self.add(Kind::Standard, tokens, shares(tokens, 1), context, Wanted::All);
        }
        for tokens in row_sizes(2 * SMALL_COMPANY + 1..=2 * sessions) {
            self.add(Kind::Drafts, tokens, shares(tokens, 2), context, Wanted::All);
        }
        for company in row_sizes(SMALL_COMPANY + 1..=sessions) {
            self.add(Kind::Behind, 2 * company, vec![2; company], context, Wanted::AllOfFirst);
            for width in [4, 8] {
                self.add(Kind::FarBehind, company * width, vec![width; company], context, Wanted::AllOfFirst);
            }
            for width in [4, 8] {
                self.add(Kind::Long, company * width, vec![width; company], context, Wanted::All);
            }
        }
        for company in [sessions - sessions / 4, sessions] {
            for width in [1, 2] {
                // A graph of several prompts beside all sessions serves fewer sessions too.
                let most = if company == sessions { MOST_CHUNKS } else { 1 };
                (1..=most).for_each(|chunks| self.prompts_beside(company, (width, chunks), context));
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

/// The numbers that a GPU pads tokens to, and the last one of the range.
fn sizes(range: RangeInclusive<usize>) -> impl Iterator<Item = usize> {
    let most = *range.end();
    range.filter(move |&size| padded(size) == size || size == most)
}

/// The numbers that a GPU pads rows to, and the last one of the range.
fn row_sizes(range: RangeInclusive<usize>) -> impl Iterator<Item = usize> {
    let most = *range.end();
    range.filter(move |&size| padded_rows(size) == size || size == most)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::graphs::{MOST_GRAPHS, PassSize, SizeLimits};

    #[test]
    fn common_passes_come_first_and_none_is_rehearsed_twice() {
        for sessions in [1, 2, 4, 5, 16, 37, 256, 1024] {
            let all = rehearsals(sessions, 1024);
            assert_eq!((&all[0].widths[..], all[0].context), (&[1][..], 640));
            assert!(all.iter().all(|each| (1..=sessions.max(1)).contains(&each.widths.len())), "{sessions}");
            let common = all.iter().take_while(|each| each.is_common());
            assert!(common.clone().all(|each| each.widths.len() <= SMALL_COMPANY || each.widths[0] == 1), "{sessions}");
            let count = common.count();
            assert!((8..72).contains(&count) && all[count..].iter().all(|each| !each.is_common()), "{sessions}");
            // Prompts are rehearsed beside 1,024 sessions too.
            assert!(all.len() <= 336, "{sessions}: {}", all.len());
            for (index, each) in all.iter().enumerate() {
                assert!(!all[..index].contains(each), "{sessions}: {each:?}");
            }
            for context in [0, 640] {
                let of = |widths: &[usize]| all.iter().any(|each| each.widths == widths && each.context == context);
                assert!(of(&[1]) && of(&[3]) && of(&[16]), "{sessions}, {context}");
            }
            let most = all.iter().map(|each| each.widths.len()).max();
            assert_eq!(most, Some(sessions));
        }
        let long = rehearsals(64, 8192);
        let contexts: BTreeSet<usize> = long.iter().map(|each| each.context).collect();
        assert_eq!(contexts, BTreeSet::from([0, 640, 5120]));
        assert_eq!(rehearsals(1, 1).iter().map(|each| each.context).max(), Some(0));
    }

    #[test]
    fn rows_are_those_of_drafts_and_the_last_ones() {
        let each =
            |widths: &[usize], wanted| Rehearsal { widths: widths.to_vec(), context: 0, wanted, kind: Kind::Few };
        assert_eq!(each(&[3, 3, 2], Wanted::All).all_rows(), 8);
        assert_eq!(each(&[3, 3, 2], Wanted::Last).all_rows(), 3);
        assert_eq!(each(&[3, 3, 2], Wanted::AllOfFirst).all_rows(), 5);
        assert_eq!(each(&[1, 1, 100], Wanted::All).all_rows(), 3);
        assert_eq!(shares(7, 3), [3, 3, 1]);
        assert_eq!(sizes(1..=23).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 23]);
        assert_eq!(row_sizes(1..=23).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 12, 16, 23]);
    }

    /// The size of a pass, by the new tokens of each sequence, those of the first one before, and how many rows are
    /// wanted of each.
    fn size(widths: &[usize], context: usize, rows: impl Fn(usize) -> usize) -> PassSize {
        let all: Vec<usize> = (0..widths.len()).map(rows).collect();
        let pass = PassSize {
            tokens: widths.iter().sum(),
            rows: all.iter().sum(),
            blocks: (context + widths[0]).div_ceil(128),
            widest: widths.iter().copied().max().unwrap(),
            kept: all.into_iter().max().unwrap(),
            filters: false,
        };
        pass.padded(SizeLimits { tokens: usize::MAX, blocks: 32 })
    }

    /// An engine that is prepared has graphs for what its sessions need.
    #[test]
    fn rehearsals_have_graphs_for_sessions() {
        for sessions in [1, 16, 37, 64, 256] {
            let mut graphs = Vec::new();
            for each in rehearsals(sessions, 1024) {
                let size = size(&each.widths, each.context, |sequence| each.rows(sequence));
                let is_served = graphs.iter().any(|graph: &PassSize| graph.serves(size));
                if !is_served && size.is_captured() && graphs.len() < MOST_GRAPHS - MOST_GRAPHS / 8 {
                    graphs.push(size);
                }
            }
            println!("{sessions} sessions: {} graphs", graphs.len());
            let has_graph = |size: PassSize| graphs.iter().any(|graph| graph.serves(size));
            for context in [0, 50, 150, 300, 400, 800, 1000] {
                for company in 1..=sessions {
                    assert!(has_graph(size(&vec![1; company], context, |_| 1)), "{company}, {context}");
                    let draft = size(&vec![2; company], context, |_| 2);
                    assert!(has_graph(draft), "{company} of {sessions} drafts, {context}");
                    for width in 1..=8 {
                        // One of them learns.
                        let behind = size(&vec![width; company], context, |each| if each == 0 { width } else { 1 });
                        assert!(has_graph(behind), "{company} of {sessions} are {width} behind, {context}");
                    }
                }
                for (width, chunk, chunks) in
                    [(1, 64, 1), (1, 130, 1), (1, 256, 1), (2, 64, 1), (1, 130, 4), (1, 130, 7), (2, 256, 3)]
                {
                    let mut widths = vec![width; sessions - sessions / 8];
                    if sessions < 16 || context + chunk > 1024 {
                        continue;
                    }
                    widths[..chunks].fill(chunk);
                    let size = size(&widths, context, |each| if each < chunks { 1 } else { width });
                    assert!(has_graph(size), "{chunks} of {chunk} beside {sessions} of {width}, {context}");
                }
                for widths in [&[1][..], &[2], &[3], &[4], &[1, 1], &[2, 1], &[2, 2, 1], &[1; 4], &[2; 4]] {
                    let size = size(widths, context, |each| widths[each]);
                    assert!(widths.len() > sessions || has_graph(size), "{widths:?}, {context}");
                }
            }
        }
    }
}
