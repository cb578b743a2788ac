//! Text on its way out, held back while it may become a stop string.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use crate::error::{Error, Result};

/// Most bytes of all stop strings together; looking for them takes some 40 bytes for each.
const STOPS: usize = 1 << 24;

/// The end of a text, of which it is not certain yet whether it is given out.
///
/// Special tokens make no text, but a stop string may be the name of one, or have it within. So their names are held
/// among the text, and stop strings are looked for with and without them.
#[derive(Default)]
pub struct Held {
    /// Without any, nothing is held.
    stops: Option<Stops>,
    stopped: bool,
    text: String,
    /// Where names are in the text, in ascending order.
    names: Vec<Range<usize>>,
    /// Of each name that came, whether a stop string has it within.
    expected: HashMap<String, bool>,
}

impl Held {
    /// Look for these strings, none of which is empty, from now on.
    pub fn set_stops(&mut self, stops: Vec<String>) -> Result<()> {
        self.stops = if stops.is_empty() { None } else { Some(Stops::new(stops)?) };
        self.expected.clear();
        Ok(())
    }

    /// Whether a stop string has ended the text.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a special token matters, because its name is part of a stop string.
    pub fn expects(&mut self, name: &str) -> bool {
        let Some(stops) = &self.stops else { return false };
        if let Some(&expected) = self.expected.get(name) {
            return expected;
        }
        let expected = stops.sorted.iter().any(|stop| stop.contains(name));
        self.expected.insert(name.to_owned(), expected);
        expected
    }

    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub fn push_name(&mut self, name: &str) {
        let start = self.text.len();
        self.text.push_str(name);
        self.names.push(start..self.text.len());
    }

    /// Move what is certain to `out`.
    ///
    /// The text ends before the stop string that is complete first, and before the longest of those complete at once.
    /// So it does not matter in what pieces it came.
    pub fn give(&mut self, out: &mut String) {
        let found = self.stops.as_ref().and_then(|stops| self.find(stops));
        let certain = match (found, &self.stops) {
            _ if self.stopped => 0,
            (Some((_, start)), _) => start,
            (None, Some(stops)) => self.beginning(stops),
            (None, None) => self.text.len(),
        };
        out.push_str(&self.visible(certain));
        self.stopped |= found.is_some();
        self.forget(if self.stopped { self.text.len() } else { certain });
    }

    /// Move the rest to `out`: nothing follows, so no stop string can become of it.
    pub fn give_all(&mut self, out: &mut String) {
        self.give(out);
        out.push_str(&self.visible(self.text.len()));
        self.forget(self.text.len());
    }

    /// Begin a new text.
    pub fn restart(&mut self) {
        self.stopped = false;
    }

    fn forget(&mut self, bytes: usize) {
        self.text.drain(..bytes);
        self.names.retain(|name| name.end > bytes);
        for name in &mut self.names {
            *name = name.start.saturating_sub(bytes)..name.end - bytes;
        }
    }

    /// The text up to there without names.
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

    /// The first place that so many bytes of text without names are before.
    fn place(&self, visible: usize) -> usize {
        self.names.iter().fold(visible, |at, name| if name.start < at { at + name.len() } else { at })
    }

    /// End and start of the stop string that is complete first, in the text with or without names.
    fn find(&self, stops: &Stops) -> Option<(usize, usize)> {
        let visible = self.visible(self.text.len());
        let plain = stops.find(&visible, |_| true).map(|(end, start)| (self.place(end), self.place(start)));
        if self.names.is_empty() {
            return plain;
        }
        let named = stops.find(&self.text, |(end, start)| !self.cuts_name(start) && !self.cuts_name(end));
        plain.into_iter().chain(named).min()
    }

    fn cuts_name(&self, at: usize) -> bool {
        let next = self.names.partition_point(|name| name.end <= at);
        self.names.get(next).is_some_and(|name| name.start < at)
    }

    /// Where at the end a stop string may begin that is not complete, in the text with or without names.
    fn beginning(&self, stops: &Stops) -> usize {
        let visible = self.visible(self.text.len());
        let plain = stops.beginning(&visible, |_| true).map(|start| self.place(start));
        let named = stops.beginning(&self.text, |start| !self.cuts_name(start));
        plain.into_iter().chain(named).min().unwrap_or(self.text.len())
    }
}

/// Stop strings, however many, all looked for at once.
struct Stops {
    /// In order, so that those with the same beginning follow each other.
    sorted: Vec<String>,
    automaton: AhoCorasick,
}

impl Stops {
    fn new(mut sorted: Vec<String>) -> Result<Self> {
        let bytes: usize = sorted.iter().map(String::len).sum();
        if bytes > STOPS {
            return Err(Error::InvalidArgument(format!(
                "the stop strings have {bytes} bytes together, and the limit is {STOPS}; leave some out"
            )));
        }
        sorted.sort_unstable();
        // A DFA would be faster, but takes up to 1 KiB for each byte.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let failed = |error| Error::InvalidArgument(format!("the stop strings cannot be looked for: {error}"));
        let automaton = AhoCorasick::builder().kind(kind).build(&sorted).map_err(failed)?;
        Ok(Stops { sorted, automaton })
    }

    /// End and start of the one that is complete first, of those that fit; of several at once, the longest.
    fn find(&self, text: &str, fits: impl Fn((usize, usize)) -> bool) -> Option<(usize, usize)> {
        // They come in the order of their ends.
        let all = self.automaton.find_overlapping_iter(text).map(|found| (found.end(), found.start()));
        let mut all = all.filter(|&place| fits(place));
        let first = all.next()?;
        all.take_while(|&(end, _)| end == first.0).fold(first, Ord::min).into()
    }

    /// The first place, of those that fit, from which to the end a text is the beginning of one, but not all of it.
    fn beginning(&self, text: &str, fits: impl Fn(usize) -> bool) -> Option<usize> {
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

    /// What may come: characters and names of special tokens, two of which are of characters too.
    const EVENTS: [&str; 6] = ["a", "b", "é", "<a>", "ab", "é"];
    const NAMES: std::ops::Range<usize> = 3..6;

    /// The text before the stop string that is complete first, the longest of those; found event by event.
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
        fn it_does_not_matter_in_what_pieces_text_comes(
            events in prop::collection::vec((0..EVENTS.len(), any::<bool>()), 0..24),
            stops in prop::collection::vec("[abé]{1,4}|[abé]{0,2}<a>[abé]{0,2}|>|<", 0..4),
        ) {
            let mut held = Held::default();
            held.set_stops(stops.clone()).unwrap();
            let mut out = String::new();
            for &(event, give) in &events {
                if NAMES.contains(&event) { held.push_name(EVENTS[event]) } else { held.push(EVENTS[event]) }
                if give {
                    held.give(&mut out);
                }
            }
            held.give_all(&mut out);
            let events: Vec<usize> = events.into_iter().map(|(event, _)| event).collect();
            let before = expected(&events, &stops);
            prop_assert_eq!(held.stopped(), before.is_some());
            let whole = events.iter().filter(|event| !NAMES.contains(event)).map(|&event| EVENTS[event]).collect();
            prop_assert_eq!(out, before.unwrap_or(whole));
        }
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut held = Held::default();
        held.set_stops(vec!["ab<a>".into()]).unwrap();
        let mut out = String::new();
        held.push("xa");
        held.give(&mut out);
        assert_eq!(out, "x");
        held.push("b");
        held.push_name("<b>");
        held.push("c");
        held.give(&mut out);
        assert_eq!(out, "xabc");
    }

    /// One by one, this would be hundreds of millions of searches.
    #[test]
    fn many_stop_strings_are_looked_for_at_once() {
        let mut held = Held::default();
        held.set_stops((0..20_000).map(|number| format!("ab{number}c")).collect()).unwrap();
        let mut out = String::new();
        for _ in 0..20_000 {
            held.push("ab1");
            held.give(&mut out);
        }
        assert_eq!(out.len(), 3 * 19_999, "the last one may become a stop string");
        held.push("9999c");
        held.give(&mut out);
        assert!(out.len() == 3 * 19_999 && held.stopped());
    }

    #[test]
    fn stop_strings_beyond_all_measure_are_refused() {
        let mut held = Held::default();
        let half = "a".repeat(STOPS / 2);
        let error = held.set_stops(vec![half.clone(), half, "a".into()]).unwrap_err();
        assert!(error.to_string().contains("16777217 bytes together, and the limit is 16777216"), "{error}");
    }
}
