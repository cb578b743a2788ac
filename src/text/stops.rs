//! Finds stop strings in a stream of text, and holds back text that may become one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use crate::error::{Error, Result};

/// Most bytes of all stop strings together. The search takes about 40 bytes of memory for each byte.
const MAX_STOP_BYTES: usize = 1 << 24;

/// Holds back the end of a text as long as it may become a stop string.
///
/// Special tokens give no text, but a stop string may be or contain the name of one. So the held text includes their
/// names, and the search runs twice: on the text with names, and on the visible text without them.
#[derive(Default)]
pub struct StopFilter {
    /// `None`: nothing is held back.
    stops: Option<StopStrings>,
    stopped: bool,
    /// The held text, with the names of special tokens.
    text: String,
    /// The byte ranges of names in `text`, in ascending order.
    names: Vec<Range<usize>>,
    /// A cache: for each name that came, whether a stop string contains it.
    expected: HashMap<String, bool>,
}

impl StopFilter {
    /// Replace the stop strings. None of them may be empty.
    pub fn set_stops(&mut self, stops: Vec<String>) -> Result<()> {
        self.stops = if stops.is_empty() { None } else { Some(StopStrings::new(stops)?) };
        self.expected.clear();
        Ok(())
    }

    /// Whether a stop string has ended the text.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether the name of a special token is part of a stop string.
    pub fn expects(&mut self, name: &str) -> bool {
        let Some(stops) = &self.stops else { return false };
        if let Some(&expected) = self.expected.get(name) {
            return expected;
        }
        let expected = stops.sorted.iter().any(|stop| stop.contains(name));
        self.expected.insert(name.to_owned(), expected);
        expected
    }

    /// Append text.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Append the name of a special token, which is never given out.
    pub fn push_name(&mut self, name: &str) {
        let start = self.text.len();
        self.text.push_str(name);
        self.names.push(start..self.text.len());
    }

    /// Move the text that cannot become a stop string to `out`.
    ///
    /// The text ends before the stop string that is complete first. If several are complete at the same place, it ends
    /// before the longest one. So the result does not depend on how the text was cut into pieces.
    pub fn release(&mut self, out: &mut String) {
        let found = self.stops.as_ref().and_then(|stops| self.find(stops));
        let certain = match (found, &self.stops) {
            _ if self.stopped => 0,
            (Some((_, start)), _) => start,
            (None, Some(stops)) => self.partial(stops),
            (None, None) => self.text.len(),
        };
        out.push_str(&self.visible(certain));
        self.stopped |= found.is_some();
        self.forget(if self.stopped { self.text.len() } else { certain });
    }

    /// Move the rest to `out`: no text follows, so it cannot become a stop string any more.
    pub fn release_all(&mut self, out: &mut String) {
        self.release(out);
        out.push_str(&self.visible(self.text.len()));
        self.forget(self.text.len());
    }

    /// Begin a new text.
    pub fn restart(&mut self) {
        self.stopped = false;
    }

    /// Remove the first bytes of the held text.
    fn forget(&mut self, bytes: usize) {
        self.text.drain(..bytes);
        self.names.retain(|name| name.end > bytes);
        for name in &mut self.names {
            *name = name.start.saturating_sub(bytes)..name.end - bytes;
        }
    }

    /// The text before `end`, without names.
    fn visible(&self, end: usize) -> Cow<'_, str> {
        if self.names.is_empty() {
            return Cow::Borrowed(&self.text[..end]);
        }
        let (mut out, mut at) = (String::new(), 0);
        for name in self.names.iter().filter(|name| name.start < end) {
            out.push_str(&self.text[at..name.start]);
            at = name.end;
        }
        out.push_str(self.text.get(at..end).unwrap_or_default());
        Cow::Owned(out)
    }

    /// Converts an offset in the visible text to the first such offset in the text with names.
    fn with_names(&self, visible: usize) -> usize {
        self.names.iter().fold(visible, |at, name| if name.start < at { at + name.len() } else { at })
    }

    /// End and start of the stop string that is complete first, in the text with or without names.
    fn find(&self, stops: &StopStrings) -> Option<(usize, usize)> {
        let visible = self.visible(self.text.len());
        let plain = stops.find(&visible, |_| true).map(|(end, start)| (self.with_names(end), self.with_names(start)));
        if self.names.is_empty() {
            return plain;
        }
        let named = stops.find(&self.text, |(end, start)| !self.cuts_name(start) && !self.cuts_name(end));
        plain.into_iter().chain(named).min()
    }

    /// Whether an offset is within a name.
    fn cuts_name(&self, at: usize) -> bool {
        let next = self.names.partition_point(|name| name.end <= at);
        self.names.get(next).is_some_and(|name| name.start < at)
    }

    /// Where an incomplete stop string at the end begins, in the text with or without names.
    fn partial(&self, stops: &StopStrings) -> usize {
        let visible = self.visible(self.text.len());
        let plain = stops.partial(&visible, |_| true).map(|start| self.with_names(start));
        let named = stops.partial(&self.text, |start| !self.cuts_name(start));
        plain.into_iter().chain(named).min().unwrap_or(self.text.len())
    }
}

/// Stop strings, and an automaton that searches for all of them at once.
struct StopStrings {
    /// Sorted, so that strings with the same beginning are neighbours.
    sorted: Vec<String>,
    automaton: AhoCorasick,
}

impl StopStrings {
    fn new(mut sorted: Vec<String>) -> Result<Self> {
        let bytes: usize = sorted.iter().map(String::len).sum();
        if bytes > MAX_STOP_BYTES {
            return Err(Error::InvalidArgument(format!(
                "the stop strings have {bytes} bytes together, and the limit is {MAX_STOP_BYTES}; leave some out"
            )));
        }
        sorted.sort_unstable();
        // A DFA would be faster, but takes up to 1 KiB of memory for each byte.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let failed = |error| Error::InvalidArgument(format!("the stop strings cannot be compiled: {error}"));
        let automaton = AhoCorasick::builder().kind(kind).build(&sorted).map_err(failed)?;
        Ok(StopStrings { sorted, automaton })
    }

    /// End and start of the match that ends first, among those that `fits` accepts. If several end there, the longest.
    fn find(&self, text: &str, fits: impl Fn((usize, usize)) -> bool) -> Option<(usize, usize)> {
        // Matches come in the order of their ends.
        let all = self.automaton.find_overlapping_iter(text).map(|found| (found.end(), found.start()));
        let mut all = all.filter(|&place| fits(place));
        let first = all.next()?;
        all.take_while(|&(end, _)| end == first.0).fold(first, Ord::min).into()
    }

    /// The first offset from which the text, to its end, is the beginning of a stop string but not a whole one, among
    /// the offsets that `fits` accepts.
    fn partial(&self, text: &str, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let begins = |rest: &str| {
            let behind = self.sorted.partition_point(|stop| stop.as_str() <= rest);
            self.sorted.get(behind).is_some_and(|stop| stop.starts_with(rest))
        };
        let longest = self.automaton.max_pattern_len();
        let starts = text.char_indices().map(|(at, _)| at).skip_while(|at| at + longest <= text.len());
        starts.filter(|&at| fits(at)).find(|&at| begins(&text[at..]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Characters, and names of special tokens. Two of the names consist of the same characters.
    const EVENTS: [&str; 6] = ["a", "b", "é", "<a>", "ab", "é"];
    const NAMES: std::ops::Range<usize> = 3..6;

    /// The text before the stop string that is complete first, or before the longest of them. A naive oracle.
    fn expected(events: &[usize], stops: &[String]) -> Option<String> {
        let visible = |events: &[usize]| -> String {
            events.iter().filter(|event| !NAMES.contains(event)).map(|&event| EVENTS[event]).collect()
        };
        (1..=events.len()).find_map(|end| {
            let complete = (0..end).find(|&start| {
                let part = &events[start..end];
                let named: String = part.iter().map(|&event| EVENTS[event]).collect();
                let at_its_ends = |event: &usize| !NAMES.contains(event);
                let plain = (part.first().is_some_and(at_its_ends) && part.last().is_some_and(at_its_ends))
                    .then(|| visible(part));
                stops.iter().any(|stop| *stop == named || Some(stop) == plain.as_ref())
            })?;
            Some(visible(&events[..complete]))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_result_does_not_depend_on_the_pieces(
            events in prop::collection::vec((0..EVENTS.len(), any::<bool>()), 0..24),
            stops in prop::collection::vec("[abé]{1,4}|[abé]{0,2}<a>[abé]{0,2}|>|<", 0..4),
        ) {
            let mut filter = StopFilter::default();
            filter.set_stops(stops.clone()).unwrap();
            let mut out = String::new();
            for &(event, release) in &events {
                if NAMES.contains(&event) { filter.push_name(EVENTS[event]) } else { filter.push(EVENTS[event]) }
                if release {
                    filter.release(&mut out);
                }
            }
            filter.release_all(&mut out);
            let events: Vec<usize> = events.into_iter().map(|(event, _)| event).collect();
            let before = expected(&events, &stops);
            prop_assert_eq!(filter.stopped(), before.is_some());
            let whole = events.iter().filter(|event| !NAMES.contains(event)).map(|&event| EVENTS[event]).collect();
            prop_assert_eq!(out, before.unwrap_or(whole));
        }
    }

    #[test]
    fn only_possible_stop_strings_are_held_back() {
        let mut filter = StopFilter::default();
        filter.set_stops(vec!["ab<a>".into()]).unwrap();
        let mut out = String::new();
        filter.push("xa");
        filter.release(&mut out);
        assert_eq!(out, "x");
        filter.push("b");
        filter.push_name("<b>");
        filter.push("c");
        filter.release(&mut out);
        assert_eq!(out, "xabc");
    }

    /// A search for each string would be hundreds of millions of searches.
    #[test]
    fn many_stop_strings_are_searched_at_once() {
        let mut filter = StopFilter::default();
        filter.set_stops((0..20_000).map(|number| format!("ab{number}c")).collect()).unwrap();
        let mut out = String::new();
        for _ in 0..20_000 {
            filter.push("ab1");
            filter.release(&mut out);
        }
        assert_eq!(out.len(), 3 * 19_999, "the last piece may become a stop string");
        filter.push("9999c");
        filter.release(&mut out);
        assert!(out.len() == 3 * 19_999 && filter.stopped());
    }

    #[test]
    fn too_long_stop_strings_are_refused() {
        let mut filter = StopFilter::default();
        let half = "a".repeat(MAX_STOP_BYTES / 2);
        let error = filter.set_stops(vec![half.clone(), half, "a".into()]).unwrap_err();
        assert!(error.to_string().contains("16777217 bytes together, and the limit is 16777216"), "{error}");
    }
}
