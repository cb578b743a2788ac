//! Text on its way out, held back while it may become a stop string.

use std::borrow::Cow;
use std::ops::Range;

/// The end of a text, of which it is not certain yet whether it is given out.
///
/// Special tokens make no text, but a stop string may be the name of one, or have it within. So their names are held
/// among the text, and stop strings are looked for with and without them.
#[derive(Default)]
pub struct Held {
    stops: Vec<String>,
    stopped: bool,
    text: String,
    /// Where names are in the text, in ascending order.
    names: Vec<Range<usize>>,
}

impl Held {
    /// Look for these strings, none of which is empty, from now on.
    pub fn set_stops(&mut self, stops: Vec<String>) {
        self.stops = stops;
    }

    /// Whether a stop string has ended the text.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a special token matters, because its name is part of a stop string.
    pub fn expects(&self, name: &str) -> bool {
        self.stops.iter().any(|stop| stop.contains(name))
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
        let visible = self.visible(self.text.len());
        let found =
            self.stops.iter().flat_map(|stop| [self.find(stop, &visible), self.find_named(stop)]).flatten().min();
        let certain = match found {
            _ if self.stopped => 0,
            Some((_, start)) => start,
            None => self.stops.iter().map(|stop| self.beginning(stop, &visible)).min().unwrap_or(self.text.len()),
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

    /// End and start of a stop string in the text without names.
    fn find(&self, stop: &str, visible: &str) -> Option<(usize, usize)> {
        let start = visible.find(stop)?;
        Some((self.place(start + stop.len()), self.place(start)))
    }

    /// End and start of a stop string in the text with names, none of which is cut.
    fn find_named(&self, stop: &str) -> Option<(usize, usize)> {
        let first = self.names.first()?.start.saturating_sub(stop.len());
        let starts = self.text.char_indices().map(|(at, _)| at).skip_while(|&at| at < first);
        let mut found = starts.filter(|&at| self.text[at..].starts_with(stop)).map(|at| (at + stop.len(), at));
        found.find(|&(end, start)| !self.cuts_name(start) && !self.cuts_name(end))
    }

    fn cuts_name(&self, at: usize) -> bool {
        self.names.iter().any(|name| name.start < at && at < name.end)
    }

    /// Where at the end a stop string may begin that is not complete.
    fn beginning(&self, stop: &str, visible: &str) -> usize {
        let length = beginnings(stop, visible).next().unwrap_or(0);
        let plain = self.place(visible.len() - length);
        let mut starts = beginnings(stop, &self.text).map(|length| self.text.len() - length);
        let named = if self.names.is_empty() { None } else { starts.find(|&at| !self.cuts_name(at)) };
        named.map_or(plain, |named| named.min(plain))
    }
}

/// How many bytes at the end of a text, most first, are the beginning of a stop string but not all of it.
fn beginnings(stop: &str, text: &str) -> impl Iterator<Item = usize> {
    // One byte less than all of it at most, and no more than the text has.
    let most = stop.floor_char_boundary(text.len().min(stop.len() - 1));
    let ends = stop[..most].char_indices().map(|(at, c)| at + c.len_utf8()).rev();
    ends.filter(move |&length| text.ends_with(&stop[..length]))
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
            held.set_stops(stops.clone());
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
        held.set_stops(vec!["ab<a>".into()]);
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
}
