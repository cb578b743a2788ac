//! A choice: one text of a request.

use std::sync::Arc;

use crate::decode::decoder::{Finish, LogProbabilities, Origin};
use crate::engine::session::{Session, State};
use crate::error::{Error, Result};
use crate::text::TextStream;

/// Why a text has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The decoder ended it.
    Decoder(Finish),
    /// A stop string came.
    StopString,
}

impl Ending {
    /// The finish_reason of the protocol.
    pub fn reason(self) -> &'static str {
        match self {
            Ending::StopString | Ending::Decoder(Finish::StopToken | Finish::Complete) => "stop",
            Ending::Decoder(Finish::MaxTokens | Finish::ContextFull) => "length",
        }
    }
}

/// What is to be told of a choice.
#[derive(Debug, Default)]
pub struct News {
    /// The text that is complete. It ends before a stop string, and may lag behind the tokens.
    pub text: String,
    /// The tokens. Those of a stop string are among them.
    pub tokens: Vec<i32>,
    /// Theirs, as far as the request asked for them.
    pub log_probabilities: LogProbabilities,
    /// How they came about.
    pub origins: Vec<Origin>,
    /// Why the text has ended, if it has.
    pub ending: Option<Ending>,
}

/// How a turn of a choice went, if it did not just add tokens.
#[derive(Debug)]
pub enum Interruption {
    Failed(Error),
    Cancelled,
}

/// One text.
pub struct Choice {
    /// The index of its prompt.
    pub prompt: usize,
    /// `None` after the step in which the text has ended, so that its memory is free.
    session: Option<Session>,
    /// `None` if the models have no tokenizer.
    stream: Option<TextStream>,
    /// What was decoded since the last [`Choice::clear`].
    pub news: News,
    /// Whether the last turn brought any.
    pub is_new: bool,
    /// Why it stopped without an ending.
    pub stop: Option<Interruption>,
    /// Tokens decoded so far.
    pub decoded: usize,
    /// Characters of the tokens that were told before `news`, as far as offsets are wanted.
    pub offset: usize,
    /// Whether an event has had it.
    pub is_begun: bool,
}

impl Choice {
    pub fn new(prompt: usize, session: Session, stream: Option<TextStream>) -> Self {
        Choice {
            prompt,
            session: Some(session),
            stream,
            news: News::default(),
            is_new: false,
            stop: None,
            decoded: 0,
            offset: 0,
            is_begun: false,
        }
    }

    /// Whether it goes on.
    pub fn is_open(&self) -> bool {
        self.session.is_some() && self.news.ending.is_none()
    }

    /// Its session, while it goes on.
    pub fn session_mut(&mut self) -> Option<&mut Session> {
        self.session.as_mut()
    }

    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Free the session if the text has ended, or in any case.
    pub fn free(&mut self, in_any_case: bool) {
        if in_any_case || self.news.ending.is_some() {
            self.session = None;
        }
    }

    /// Forget what was told.
    pub fn clear(&mut self) {
        self.is_new = false;
        self.news.text.clear();
        self.news.tokens.clear();
        self.news.log_probabilities.clear();
        self.news.origins.clear();
    }

    /// Take a step alone. So a session waits where one of many would come back without news.
    pub fn step(&mut self) {
        if let Some(session) = &mut self.session {
            let result = session.step().map(|(_, state)| state);
            self.take(result);
        }
    }

    /// Take what a round of its session has brought.
    pub fn take(&mut self, result: Result<State>) {
        self.is_new = true;
        let stop = match result.and_then(|state| self.add(state)) {
            Ok(State::Cancelled) => Interruption::Cancelled,
            Ok(State::Open | State::Ended(_)) => return,
            Err(error) => Interruption::Failed(error),
        };
        self.stop = Some(stop);
    }

    fn add(&mut self, state: State) -> Result<State> {
        let Some(session) = &self.session else { return Ok(state) };
        let News { text, tokens, log_probabilities, origins, ending } = &mut self.news;
        tokens.extend_from_slice(session.tokens());
        log_probabilities.append(session.log_probabilities());
        origins.extend_from_slice(session.origins());
        self.decoded += session.tokens().len();
        *ending = match state {
            State::Ended(finish) => Some(Ending::Decoder(finish)),
            State::Open | State::Cancelled => None,
        };
        if let Some(stream) = &mut self.stream {
            text.push_str(stream.push(session.tokens())?);
            if stream.stopped() {
                *ending = Some(Ending::StopString);
            }
            if ending.is_some() {
                text.push_str(stream.finish()?);
                // The rest may have had the stop string.
                if stream.stopped() {
                    *ending = Some(Ending::StopString);
                }
            }
        }
        Ok(state)
    }
}

/// A stream of text behind a prompt, if there is a tokenizer.
pub fn stream(
    text: Option<&Arc<crate::text::Text>>,
    prompt: &[i32],
    stops: &[String],
    shows: bool,
) -> Result<Option<TextStream>> {
    let Some(text) = text else {
        return match stops {
            [] => Ok(None),
            _ => Err(Error::Unsupported("stop strings need a tokenizer.json beside a model".into())),
        };
    };
    let mut stream = TextStream::new(text.clone())?;
    stream.show_special(shows)?;
    stream.prompt(prompt)?;
    stream.set_stops(stops.to_vec())?;
    Ok(Some(stream))
}
