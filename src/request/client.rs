//! A request from its body to the end of its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::answer::{Head, Usage, Writer};
use super::body::Body;
use super::choice::{self, Choice, Interruption, News};
use super::options;
use super::terms::{Endpoint, Terms};
use super::turns::{Due, take_turns};
use crate::engine::Engine;
use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::model::Cancel;

/// How a step left a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It goes on.
    Open,
    /// All choices have ended.
    Done,
    /// It was cancelled.
    Cancelled,
}

/// Cancels a request from any thread.
pub struct Canceller {
    asked: AtomicBool,
    sessions: Vec<Arc<Cancel>>,
}

impl Canceller {
    /// Let the running or the next step end the request.
    pub fn cancel(&self) {
        self.asked.store(true, Ordering::Release);
        self.sessions.iter().for_each(|session| session.request());
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

/// A request. Used by one thread at a time.
pub struct ClientRequest {
    engine: Arc<Engine>,
    endpoint: Endpoint,
    head: Head,
    streams: bool,
    includes_usage: bool,
    token_ids: bool,
    token_origins: bool,
    log_probabilities: bool,
    top: usize,
    /// The tokens of each prompt.
    prompts: Vec<usize>,
    /// Those of the first prompt come first.
    choices: Vec<Choice>,
    canceller: Arc<Canceller>,
    end: Option<Result<Status>>,
    /// What is to be sent of the last step, once it is written.
    answer: Option<String>,
}

impl ClientRequest {
    /// Check a body, and make the sessions of its choices. Nothing is decoded yet.
    ///
    /// [`Error::NotFound`] if the body names another model.
    pub fn new(engine: &Arc<Engine>, body: &str, terms: &Terms) -> Result<Self> {
        engine.process().check()?;
        let mut body = Body::parse(body)?;
        let model = model(&body, terms)?;
        let mut options = options::options(&body, terms, engine)?;
        let prompts = options::prompts(&body, terms, engine)?;
        if let Some(tokens) = prompts.iter().map(Vec::len).find(|tokens| *tokens > terms.max_prompt_tokens) {
            return Err(Error::ContextFull(format!(
                "a prompt has {tokens} tokens, but this server takes at most {}",
                terms.max_prompt_tokens
            )));
        }
        let each = body.n.unwrap_or(1) as usize;
        if each == 0 || prompts.len().saturating_mul(each) > terms.max_choices {
            return Err(Error::InvalidArgument(format!(
                "n is {each}, and the number of prompts is {}; that must make 1 to {} choices",
                prompts.len(),
                terms.max_choices
            )));
        }
        let stops = options::stops(&mut body)?;
        let scope = body.cos.scope.as_deref().unwrap_or_default();
        let shows = body.skip_special_tokens == Some(false);
        let mut choices = Vec::with_capacity(prompts.len() * each);
        for (index, prompt) in prompts.iter().enumerate() {
            for _ in 0..each {
                let mut session = Session::new(engine, &options)?;
                options.seed = options.seed.wrapping_add(1);
                session.set_scope(scope)?;
                session.prompt(prompt)?;
                let stream = choice::stream(engine.text().ok(), prompt, &stops, shows)?;
                choices.push(Choice::new(index, session, stream));
            }
        }
        let streams = body.stream == Some(true);
        let prefix = if terms.endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
        let sessions = choices.iter().filter_map(Choice::session).map(|session| session.cancel().clone()).collect();
        Ok(ClientRequest {
            engine: engine.clone(),
            endpoint: terms.endpoint,
            head: Head {
                id: format!("{prefix}-{:016x}", terms.number),
                object: Head::object(terms.endpoint, streams),
                created: terms.created,
                model,
            },
            streams,
            includes_usage: body.stream_options.include_usage == Some(true),
            token_ids: body.return_token_ids == Some(true),
            token_origins: body.cos.token_origins == Some(true),
            log_probabilities: options.log_probabilities,
            top: options.alternatives.top,
            prompts: prompts.iter().map(Vec::len).collect(),
            choices,
            canceller: Arc::new(Canceller { asked: AtomicBool::new(false), sessions }),
            end: None,
            answer: None,
        })
    }

    /// Decode until a choice has news if the answer is streamed, and otherwise to the end. The first choice of a prompt
    /// goes ahead of the others, which then find the prompt computed.
    ///
    /// An error of one choice ends the request, and later steps return it again.
    pub fn step(&mut self) -> Result<Status> {
        self.begin();
        loop {
            self.look_for_cancel();
            let mut turns: Vec<_> = self.due().map(Due).collect();
            match &mut turns[..] {
                [Due(choice)] => choice.step(),
                _ => take_turns(&mut turns),
            }
            let status = self.end_step()?;
            let has_news = self.streams && self.choices.iter().any(|choice| choice.is_new);
            if status != Status::Open || has_news {
                return Ok(status);
            }
        }
    }

    /// How it stands.
    pub fn status(&self) -> Result<Status> {
        self.end.clone().unwrap_or(Ok(Status::Open))
    }

    /// The choices that go on now.
    pub(super) fn due(&mut self) -> impl Iterator<Item = &mut Choice> {
        let (is_over, mut ahead) = (self.end.is_some(), None);
        self.choices.iter_mut().filter(move |choice| {
            if is_over || !choice.is_open() {
                return false;
            }
            // Of open choices in a row that have decoded nothing, the first one computes the prompt.
            let is_fresh = choice.decoded == 0;
            let waits = is_fresh && ahead == Some(choice.prompt);
            if is_fresh {
                ahead = Some(choice.prompt);
            }
            !waits
        })
    }

    /// Begin a step: what was told is forgotten.
    pub(super) fn begin(&mut self) {
        // Nothing more is to be sent behind the end.
        self.answer = self.end.is_some().then(String::new);
        self.look_for_cancel();
        // What is not streamed is told at the end, and kept until then.
        if self.streams {
            self.choices.iter_mut().for_each(Choice::clear);
        }
    }

    fn look_for_cancel(&mut self) {
        if self.canceller.is_asked() && self.end.is_none() {
            self.end = Some(Ok(Status::Cancelled));
            // Others of the same step find the room.
            self.choices.iter_mut().for_each(|choice| choice.free(true));
        }
    }

    /// Take note of how a step went, and say so.
    pub(super) fn end_step(&mut self) -> Result<Status> {
        if self.end.is_none() {
            self.end = self.choices.iter_mut().find_map(|choice| choice.stop.take()).map(|stop| match stop {
                Interruption::Failed(error) => Err(error),
                Interruption::Cancelled => Ok(Status::Cancelled),
            });
            if self.end.is_none() && !self.choices.iter().any(Choice::is_open) {
                self.end = Some(Ok(Status::Done));
            }
        }
        let is_over = self.end.is_some();
        self.choices.iter_mut().for_each(|choice| choice.free(is_over));
        self.status()
    }

    /// The number of choices.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// What is to be told of a choice: what the last step brought if the answer is streamed, and all of it otherwise.
    /// `None` if the last step of a stream brought nothing.
    pub fn news(&self, choice: usize) -> Option<&News> {
        self.choices.get(choice).filter(|choice| choice.is_new || !self.streams).map(|choice| &choice.news)
    }

    /// Alternatives of each token.
    pub fn top(&self) -> usize {
        self.top
    }

    /// Whether the body asks for a stream.
    pub fn streams(&self) -> bool {
        self.streams
    }

    /// The tokens so far.
    pub fn usage(&self) -> Usage {
        let prompt_tokens = self.prompts.iter().sum();
        let completion_tokens = self.choices.iter().map(|choice| choice.decoded).sum();
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }

    /// Cancels it.
    pub fn canceller(&self) -> &Arc<Canceller> {
        &self.canceller
    }

    /// The engine that decodes it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What is to be sent of the last step: events if the answer is streamed, and otherwise a whole body at the end.
    pub fn answer(&mut self) -> &str {
        if self.answer.is_none() {
            let answer = if self.streams { self.events() } else { self.whole() };
            self.answer = Some(answer);
        }
        self.answer.as_deref().unwrap_or_default()
    }

    fn writer(&self) -> Writer<'_> {
        Writer {
            endpoint: self.endpoint,
            streams: self.streams,
            text: self.engine.text().ok().map(|text| &**text),
            log_probabilities: self.log_probabilities,
            top: self.top,
            models: self.engine.participants(),
            token_ids: self.token_ids,
            token_origins: self.token_origins,
        }
    }

    fn is_done(&self) -> bool {
        matches!(self.end, Some(Ok(Status::Done)))
    }

    fn whole(&self) -> String {
        if !self.is_done() {
            return String::new();
        }
        self.writer().write(&self.head, self.choices.iter().enumerate(), Some(Some(self.usage())))
    }

    fn events(&mut self) -> String {
        let (writer, mut events) = (self.writer(), String::new());
        let mut send = |event: &str| ["data: ", event, "\n\n"].into_iter().for_each(|part| events.push_str(part));
        let said: Vec<usize> = (0..self.choices.len()).filter(|&index| writer.says(&self.choices[index])).collect();
        for &index in &said {
            if self.endpoint == Endpoint::Chat && !self.choices[index].is_begun {
                send(&writer.write_role(&self.head, index, self.includes_usage.then_some(None)));
            }
            let usage = self.includes_usage.then_some(None);
            send(&writer.write(&self.head, std::iter::once((index, &self.choices[index])), usage));
        }
        if self.is_done() {
            if self.includes_usage {
                send(&writer.write(&self.head, std::iter::empty(), Some(Some(self.usage()))));
            }
            send("[DONE]");
        }
        let told: Vec<usize> = said.iter().map(|&index| writer.characters(&self.choices[index].news)).collect();
        for (index, characters) in said.into_iter().zip(told) {
            let choice = &mut self.choices[index];
            (choice.is_begun, choice.offset) = (true, choice.offset + characters);
        }
        events
    }
}

/// The name of the model that answers.
fn model(body: &Body, terms: &Terms) -> Result<String> {
    match (&terms.model, &body.model) {
        (Some(name), None) => Err(Error::InvalidArgument(format!("model is missing; this server has {name:?}"))),
        (Some(name), Some(asked)) if name != asked => {
            Err(Error::NotFound(format!("there is no model {asked:?}; this server has {name:?}")))
        }
        (_, asked) => Ok(asked.clone().unwrap_or_default()),
    }
}
