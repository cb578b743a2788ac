//! Requests of OpenAI's protocol, decoded by the demo models.

use std::sync::Arc;

use serde_json::{Value, json};

use cos::config::{Config, FullCache, ModelConfig};
use cos::decode::decoder::Finish;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::error::{Error, Result};
use cos::request::{ClientRequest, Ending, Endpoint, Status, Terms, step_many};
use cos::rows::Sampler;

use super::demo::{demo, engine};
use crate::common::one_thread;

const PROMPT: &str = "Question: How many legs do three cats have?\nAnswer:";

fn terms(endpoint: Endpoint) -> Terms {
    Terms {
        endpoint,
        model: Some("demo".into()),
        number: 7,
        created: 1_700_000_000,
        max_choices: 8,
        max_prompt_tokens: 500,
        max_tokens: usize::MAX,
    }
}

/// A request with these members. It samples by a strategy that repeats a text.
fn start(engine: &Arc<Engine>, endpoint: Endpoint, members: Value) -> Result<ClientRequest> {
    let mut body = json!({ "model": "demo", "seed": 5, "cos": { "strategy": "cos" } });
    match endpoint {
        Endpoint::Completion => body["prompt"] = PROMPT.into(),
        Endpoint::Chat => body["messages"] = json!([{ "role": "user", "content": "How many legs has a cat?" }]),
    }
    for (name, value) in members.as_object().unwrap() {
        body[name] = value.clone();
    }
    ClientRequest::new(engine, &body.to_string(), &terms(endpoint))
}

fn finish(mut request: ClientRequest) -> String {
    let mut sent = String::new();
    loop {
        let status = request.step().unwrap();
        sent += request.answer();
        assert_eq!(request.answer().len(), request.answer().len(), "it is written once");
        if status != Status::Open {
            assert_eq!(status, Status::Done);
            return sent;
        }
    }
}

fn whole(engine: &Arc<Engine>, endpoint: Endpoint, members: Value) -> Value {
    serde_json::from_str(&finish(start(engine, endpoint, members).unwrap())).unwrap()
}

/// The events of a stream, without the last one.
fn events(engine: &Arc<Engine>, endpoint: Endpoint, mut members: Value) -> Vec<Value> {
    members["stream"] = true.into();
    let sent = finish(start(engine, endpoint, members).unwrap());
    let mut events: Vec<&str> =
        sent.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// The text of a session with the seed, and how it ended.
fn decoded(engine: &Arc<Engine>, prompt: &str, seed: u64, max_tokens: usize) -> (Vec<i32>, Finish) {
    let sampler = Sampler::new(1.0, 0, 1.0, 0.0).unwrap();
    let options = Options { strategy: Strategy::Cos, sampler, seed, max_tokens, ..Options::default() };
    let mut session = Session::new(engine, &options).unwrap();
    session.prompt(&engine.text().unwrap().encode(prompt, true).unwrap()).unwrap();
    let mut tokens = Vec::new();
    loop {
        let (new, state) = session.step().unwrap();
        tokens.extend_from_slice(new);
        if let State::Ended(finish) = state {
            return (tokens, finish);
        }
    }
}

#[test]
fn a_completion_is_the_text_of_a_session() {
    let engine = engine("engine.json");
    let answer = whole(&engine, Endpoint::Completion, json!({ "max_tokens": 20, "return_token_ids": true }));
    let (tokens, ending) = decoded(&engine, PROMPT, 5, 20);
    let choice = &answer["choices"][0];
    assert_eq!(choice["token_ids"], json!(tokens));
    assert_eq!(choice["finish_reason"], Ending::Decoder(ending).reason());
    assert_eq!(choice["text"], engine.text().unwrap().decode(&tokens).unwrap());
    let prompt = engine.text().unwrap().encode(PROMPT, true).unwrap().len();
    let expected = json!({
        "id": "cmpl-0000000000000007", "object": "text_completion", "created": 1_700_000_000, "model": "demo",
        "usage": { "prompt_tokens": prompt, "completion_tokens": tokens.len(),
                   "total_tokens": prompt + tokens.len() },
        "choices": [{ "index": 0, "text": choice["text"], "logprobs": null, "token_ids": tokens,
                      "finish_reason": choice["finish_reason"] }],
    });
    assert_eq!(answer, expected);
}

#[test]
fn origins_say_who_proposed_each_token() {
    let engine = engine("engine.json");
    let members = json!({ "max_tokens": 40, "cos": { "strategy": "cos", "token_origins": true } });
    let answer = whole(&engine, Endpoint::Completion, members.clone());
    let choice = &answer["choices"][0];
    let origins = choice["token_origins"].as_array().unwrap();
    assert_eq!(origins.len(), 40);
    let bytes = origins.iter().flat_map(|origin| origin["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), choice["text"].as_str().unwrap());
    let names: Vec<&str> = engine.participants().iter().map(|participant| participant.name()).collect();
    for kind in ["accepted", "replaced"] {
        let mut of_kind = origins.iter().filter(|origin| origin["origin"] == kind).peekable();
        assert!(of_kind.peek().is_some(), "{kind}");
        assert!(of_kind.all(|origin| names.contains(&origin["model"].as_str().unwrap())));
    }
    let events = events(&engine, Endpoint::Completion, members);
    let told = events.iter().flat_map(|event| event["choices"][0]["token_origins"].as_array().unwrap().clone());
    assert_eq!(&told.collect::<Vec<_>>(), origins);

    // A constraint forces all but the first token of each choice.
    let forced = json!({ "structured_outputs": { "choice": [" aaaa bbbb", " cccc dddd"] },
                         "cos": { "token_origins": true } });
    let answer = whole(&engine, Endpoint::Completion, forced);
    let origins = answer["choices"][0]["token_origins"].as_array().unwrap();
    assert_eq!(origins.last().unwrap()["origin"], "forced", "{answer}");
    assert!(origins.last().unwrap()["model"].is_null());
}

#[test]
fn the_pieces_of_a_stream_are_the_whole_text() {
    let engine = engine("engine.json");
    let members = json!({ "max_tokens": 30, "n": 2, "stream_options": { "include_usage": true } });
    for (endpoint, content) in [(Endpoint::Completion, "/text"), (Endpoint::Chat, "/delta/content")] {
        let answer = whole(&engine, endpoint, members.clone());
        let mut events = events(&engine, endpoint, members.clone());
        let usage = events.pop().unwrap();
        assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &answer["usage"]));
        for index in 0..2 {
            let choices = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
            let choices: Vec<&Value> = choices.collect();
            let text: String =
                choices.iter().map(|choice| choice.pointer(content).unwrap().as_str().unwrap()).collect();
            let expected = &answer["choices"][index];
            let whole =
                expected.pointer(if endpoint == Endpoint::Chat { "/message/content" } else { "/text" }).unwrap();
            assert_eq!(whole, &text);
            let (last, others) = choices.split_last().unwrap();
            assert_eq!(last["finish_reason"], expected["finish_reason"]);
            assert!(!others.is_empty() && others.iter().all(|choice| choice["finish_reason"].is_null()));
            let roles: Vec<_> = choices.iter().map(|choice| choice["delta"]["role"].as_str()).collect();
            assert_eq!(roles[0], (endpoint == Endpoint::Chat).then_some("assistant"));
            assert!(roles[1..].iter().all(Option::is_none));
        }
    }
}

#[test]
fn each_choice_of_each_prompt_has_a_text_of_its_own() {
    let engine = engine("engine.json");
    let prompts = [PROMPT, "The recipe asks for two cups of flour, and"];
    let members = json!({ "prompt": prompts, "n": 3, "max_tokens": 12, "return_token_ids": true });
    let answer = whole(&engine, Endpoint::Completion, members);
    for index in 0..6 {
        let (tokens, _) = decoded(&engine, prompts[index / 3], 5 + index as u64, 12);
        let choice = &answer["choices"][index];
        assert_eq!((&choice["index"], &choice["token_ids"]), (&json!(index), &json!(tokens)));
    }
    let tokens: Vec<Vec<i32>> =
        prompts.iter().map(|prompt| engine.text().unwrap().encode(prompt, true).unwrap()).collect();
    for members in [json!({ "prompt": tokens }), json!({ "prompt": tokens[1] })] {
        let count = if members["prompt"][0].is_array() { 2 } else { 1 };
        assert_eq!(whole(&engine, Endpoint::Completion, members)["choices"].as_array().unwrap().len(), count);
    }
}

#[test]
fn a_stop_string_ends_a_text() {
    let engine = engine("engine.json");
    let members = |stop: Value| json!({ "max_tokens": 60, "temperature": 0, "stop": stop });
    let text = whole(&engine, Endpoint::Completion, members(Value::Null))["choices"][0]["text"].clone();
    let text = text.as_str().unwrap();
    let stop: String = text.chars().skip(9).take(4).collect();
    for given in [json!(stop), json!(["never comes", stop])] {
        let answer = whole(&engine, Endpoint::Completion, members(given));
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], text.split(&stop).next().unwrap());
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[test]
fn log_probabilities_are_those_of_the_protocol() {
    let engine = engine("engine.json");
    let text = engine.text().unwrap();
    let members = json!({ "max_tokens": 12, "logprobs": 3, "return_token_ids": true });
    let choice = &whole(&engine, Endpoint::Completion, members.clone())["choices"][0];
    let (tokens, logprobs) = (choice["token_ids"].as_array().unwrap(), &choice["logprobs"]);
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[name].as_array().unwrap().len(), tokens.len(), "{name}");
    }
    let texts: Vec<&str> = logprobs["tokens"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(texts.concat(), choice["text"].as_str().unwrap());
    for (index, token) in texts.iter().enumerate() {
        assert_eq!(logprobs["top_logprobs"][index][token], logprobs["token_logprobs"][index]);
        assert_eq!(logprobs["text_offset"][index], texts[..index].concat().chars().count());
    }
    let events = events(&engine, Endpoint::Completion, members);
    let streamed = events.iter().flat_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array().unwrap());
    assert_eq!(&Value::from_iter(streamed.cloned()), &logprobs["text_offset"]);

    let members = json!({ "max_tokens": 12, "logprobs": true, "top_logprobs": 2,
                          "cos": { "strategy": "cos", "model_log_probabilities": true } });
    let choice = &whole(&engine, Endpoint::Chat, members)["choices"][0];
    for entry in choice["logprobs"]["content"].as_array().unwrap() {
        let bytes: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).unwrap();
        assert_eq!(entry["token"], *String::from_utf8_lossy(&bytes));
        assert!(
            entry["logprob"].as_f64().unwrap() <= 0.0
                && !text.encode(entry["token"].as_str().unwrap(), false).unwrap().is_empty()
        );
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(entry["model_logprobs"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn formats_constrain_texts() {
    let engine = engine("engine.json");
    let schema = json!({ "type": "object", "properties": { "legs": { "type": "integer", "maximum": 99 } },
                         "required": ["legs"], "additionalProperties": false });
    let asked = [
        json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } }),
        json!({ "structured_outputs": { "json": schema } }),
        json!({ "structured_outputs": { "json": schema.to_string() } }),
    ];
    for mut members in asked {
        members["max_completion_tokens"] = 60.into();
        let answer = whole(&engine, Endpoint::Chat, members);
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(content).unwrap_or_else(|_| panic!("{answer}"));
        assert!(value["legs"].is_i64());
    }
    for (outputs, matches) in [
        (json!({ "regex": "[ab]{4}" }), (|text| text.len() == 4) as fn(&str) -> bool),
        (json!({ "choice": ["yes", "no"] }), |text| ["yes", "no"].contains(&text)),
        (json!({ "grammar": "start: \"x\" \"y\"" }), |text| text == "xy"),
    ] {
        let answer = whole(&engine, Endpoint::Completion, json!({ "structured_outputs": outputs }));
        let choice = &answer["choices"][0];
        assert!(matches(choice["text"].as_str().unwrap()) && choice["finish_reason"] == "stop", "{answer}");
    }
}

#[test]
fn messages_of_clients_are_rendered() {
    let engine = engine("engine.json");
    let tokens = |content: Value| {
        let members = json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 1 });
        whole(&engine, Endpoint::Chat, members)["usage"]["prompt_tokens"].clone()
    };
    let parts = json!([{ "type": "text", "text": "one" }, { "type": "text", "text": "two" }]);
    assert_eq!(tokens(parts), tokens("one\ntwo".into()));
}

/// The error of a request with these members, which says so.
fn refused(engine: &Arc<Engine>, endpoint: Endpoint, members: Value, says: &str) -> Error {
    let error = start(engine, endpoint, members.clone()).err();
    let error = error.unwrap_or_else(|| panic!("{members} is accepted"));
    assert!(error.to_string().contains(says), "{members}: {error}");
    error
}

#[test]
fn wrong_completions_are_refused_by_name() {
    let engine = engine("engine.json");
    for (members, says) in [
        (json!({ "max_tokens": -1 }), "max_tokens: invalid value"),
        (json!({ "max_tokens": 1.5 }), "max_tokens: invalid type"),
        (json!({ "max_tokens": "7" }), "max_tokens: invalid type"),
        (json!({ "temperature": true }), "temperature: invalid type"),
        (json!({ "temperature": -1 }), "temperature is -1"),
        (json!({ "top_p": 1.5 }), "top_p is 1.5"),
        (json!({ "top_k": -2 }), "top_k is -2"),
        (json!({ "prompt": 7 }), "prompt: "),
        (json!({ "prompt": null }), "prompt is missing"),
        (json!({ "prompt": [] }), "prompt 0 has no tokens"),
        (json!({ "prompt": ["a", 7] }), "a string, an array of tokens"),
        (json!({ "prompt": [99999] }), "99999"),
        (json!({ "n": 0 }), "n is 0"),
        (json!({ "n": 9 }), "n is 9"),
        (json!({ "n": 4, "prompt": ["a", "b", "c"] }), "number of prompts is 3"),
        (json!({ "best_of": 2 }), "best_of is not supported"),
        (json!({ "echo": true }), "echo is not supported"),
        (json!({ "suffix": "x" }), "suffix is not supported"),
        (json!({ "stop": "" }), "stop string 0 is empty"),
        (json!({ "stop": [1] }), "stop: "),
        (json!({ "stop": vec!["a"; 65] }), "number of stop strings is 65"),
        (json!({ "stop": "a".repeat(16385) }), "16385"),
        (json!({ "structured_outputs": { "choice": vec!["a"; 1025] } }), "number of choices is 1025"),
        (json!({ "cos": { "banned_tokens": vec![[1]; 1025] } }), "number of cos.banned_tokens is 1025"),
        (json!({ "seed": 1.5 }), "seed is 1.5"),
        (json!({ "seed": "7" }), "seed: "),
        (json!({ "logprobs": 21 }), "logprobs is 21"),
        (json!({ "logprobs": true }), "logprobs must be a number"),
        (json!({ "logit_bias": { "a": 1 } }), "logit_bias has the key \"a\""),
        (json!({ "logit_bias": { "+5": 1 } }), "logit_bias has the key \"+5\""),
        (json!({ "logit_bias": { "99999": 1 } }), "logit_bias holds 99999"),
        (json!({ "logit_bias": { "5": -1e39 } }), "logit_bias.5: number out of range"),
        (json!({ "dry_base": 0.5 }), "dry_base is 0.5"),
        (json!({ "dry_allowed_length": 0 }), "dry_allowed_length is 0"),
        (json!({ "stop_token_ids": [-1] }), "stop_token_ids holds -1"),
        (json!({ "min_tokens": 20 }), "min_tokens is 20"),
        (json!({ "response_format": { "type": "xml" } }), "response_format: type: unknown variant"),
        (json!({ "response_format": { "type": "json_schema" } }), "response_format has no json_schema"),
        (json!({ "response_format": [] }), "response_format: it must be a JSON object"),
        (json!({ "structured_outputs": { "regex": "a", "choice": ["a"] } }), "several constraints"),
        (json!({ "structured_outputs": { "regex": "(" } }), "regular expression"),
        (json!({ "structured_outputs": { "rgx": "a" } }), "unknown field `rgx`"),
        (json!({ "cos": { "stratgy": "cos" } }), "unknown field `stratgy`"),
        (json!({ "cos": { "strategy": "best" } }), "cos: strategy: unknown variant `best`"),
        (json!({ "cos": { "weights": [1] } }), "cos.weights has 1 numbers"),
        (json!({ "cos": { "banned_tokens": [[]] } }), "banned"),
        (json!({ "stream": "yes" }), "stream: invalid type"),
        (json!({ "stream_options": [] }), "stream_options: it must be"),
        (json!({ "model": null }), "model is missing"),
    ] {
        let error = refused(&engine, Endpoint::Completion, members, says);
        assert!(matches!(error, Error::InvalidArgument(_) | Error::Unsupported(_)), "{error:?}");
    }
}

#[test]
fn wrong_chats_are_refused_by_name() {
    let engine = engine("engine.json");
    for (members, says) in [
        (json!({ "messages": null }), "messages is missing"),
        (json!({ "messages": [] }), "no message"),
        (json!({ "messages": [{ "role": "<|im_start|>", "content": "x" }] }), "the role"),
        (json!({ "messages": [{ "content": "x" }] }), "the role"),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }), "content that is no text"),
        (json!({ "messages": [{ "role": "user", "content": 5 }] }), "messages[0] with content of the type number"),
        (json!({ "messages": [{ "role": "user", "tool_calls": {} }] }), "tool_calls that are no array of objects"),
        (json!({ "messages": [{ "role": "user", "tool_calls": [5] }] }), "tool_calls that are no array of objects"),
        (json!({ "logprobs": 3 }), "logprobs must be true or false"),
        (json!({ "top_logprobs": 3 }), "top_logprobs needs logprobs"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "chat_template_kwargs": { "messages": [] } }), "chat_template_kwargs has \"messages\""),
        (json!({ "chat_template_kwargs": { "zzz": 1 } }), "zzz"),
    ] {
        refused(&engine, Endpoint::Chat, members, says);
    }
}

#[test]
fn what_is_no_request_of_this_server_is_refused() {
    let engine = engine("engine.json");
    let error = refused(&engine, Endpoint::Completion, json!({ "model": "other" }), "there is no model \"other\"");
    assert!(matches!(error, Error::NotFound(_)));
    for (prompt, says) in [
        (json!(vec![1; 501]), "501 tokens"),
        (json!("a b ".repeat(900)), "1801 tokens"),
        (json!("a".repeat(1 << 22)), "4194304 bytes"),
    ] {
        let error = refused(&engine, Endpoint::Completion, json!({ "prompt": prompt }), says);
        assert!(matches!(error, Error::ContextFull(_)));
    }
    for body in ["", "{", "7", "[]", "{} {}", "{\"model\": \"demo\", \"model\": \"demo\"}", "\u{0}"] {
        assert!(ClientRequest::new(&engine, body, &terms(Endpoint::Completion)).is_err(), "{body}");
    }
    // What nobody reads may be as deep as it likes; what is read overflows no stack.
    let deep = format!("{}1{}", "[".repeat(9999), "]".repeat(9999));
    for (member, is_fine) in [("x", true), ("tools", false), ("messages", false), ("response_format", false)] {
        let messages = r#"[{"role": "user", "content": "a"}]"#;
        let body = format!(r#"{{"model": "demo", "messages": {messages}, "{member}": {deep}}}"#);
        let body = if member == "messages" { format!(r#"{{"model": "demo", "messages": {deep}}}"#) } else { body };
        assert_eq!(ClientRequest::new(&engine, &body, &terms(Endpoint::Chat)).is_ok(), is_fine, "{member}");
    }
}

#[test]
fn unknown_members_and_values_that_change_nothing_are_fine() {
    let engine = engine("engine.json");
    let members = json!({ "user": "me", "metadata": { "a": [] }, "best_of": 1, "echo": false, "suffix": "", "n": 1,
        "top_k": -1, "seed": -1, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0, "stop": null,
        "response_format": { "type": "text" }, "stream": null, "cos": null, "max_tokens": 2 });
    assert_eq!(whole(&engine, Endpoint::Completion, members.clone())["usage"]["completion_tokens"], 2);
    let mut chat = members;
    chat["tools"] = json!([]);
    chat["tool_choice"] = "auto".into();
    assert_eq!(whole(&engine, Endpoint::Chat, chat)["usage"]["completion_tokens"], 2);
}

/// A default gives way to the limit of the server, and what a body asks for does not.
#[test]
fn a_server_limits_the_tokens_of_a_choice() {
    let engine = engine("engine.json");
    let start = |endpoint, members: Value| {
        let mut body = json!({ "model": "demo", "ignore_eos": true, "prompt": PROMPT,
            "messages": [{ "role": "user", "content": "How many legs has a cat?" }] });
        members.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        ClientRequest::new(&engine, &body.to_string(), &Terms { max_tokens: 5, ..terms(endpoint) })
    };
    for endpoint in [Endpoint::Completion, Endpoint::Chat] {
        for (members, tokens) in [(json!({}), 5), (json!({ "max_tokens": 0 }), 5), (json!({ "max_tokens": 3 }), 3)] {
            let mut request = start(endpoint, members).unwrap();
            assert_eq!(request.step().unwrap(), Status::Done);
            assert_eq!(request.usage().completion_tokens, tokens);
        }
        for (members, says) in [
            (json!({ "max_tokens": 6 }), "max_tokens is 6, but this server decodes at most 5"),
            (json!({ "min_tokens": 6 }), "min_tokens is 6, but max_tokens is 5"),
        ] {
            assert!(start(endpoint, members).err().unwrap().to_string().contains(says), "{says}");
        }
    }
}

#[test]
fn one_thread_drives_many_requests() {
    let engine = engine("engine.json");
    let members =
        |seed: usize| json!({ "seed": seed, "n": 1 + seed % 3, "max_tokens": 5 + seed, "return_token_ids": true });
    let alone: Vec<Value> = (0..6).map(|seed| whole(&engine, Endpoint::Completion, members(seed))).collect();
    let mut requests: Vec<(usize, ClientRequest)> =
        (0..6).map(|seed| (seed, start(&engine, Endpoint::Completion, members(seed)).unwrap())).collect();
    let mut answers = vec![Value::Null; 6];
    let mut rounds = 0;
    while !requests.is_empty() {
        let mut open: Vec<&mut ClientRequest> = requests.iter_mut().map(|(_, request)| request).collect();
        let mut done = Vec::new();
        step_many(&mut open, |_, status| done.push(status.unwrap() == Status::Done));
        for ((seed, request), _) in requests.iter_mut().zip(&done).filter(|(_, done)| **done) {
            answers[*seed] = serde_json::from_str(request.answer()).unwrap();
        }
        let mut done = done.into_iter();
        requests.retain(|_| !done.next().unwrap());
        rounds += 1;
    }
    for (answer, alone) in answers.iter().zip(&alone) {
        assert_eq!(answer["usage"], alone["usage"]);
    }
    assert!(rounds < 60, "{rounds} rounds for {} choices", 1 + 2 + 3 + 1 + 2 + 3);
}

#[test]
fn a_request_can_be_cancelled() {
    let engine = engine("engine.json");
    for before in [true, false] {
        let members = json!({ "n": 2, "max_tokens": 500, "stream": true });
        let mut request = start(&engine, Endpoint::Completion, members).unwrap();
        if !before {
            assert_eq!(request.step().unwrap(), Status::Open);
        }
        request.canceller().cancel();
        for _ in 0..2 {
            assert_eq!(request.step().unwrap(), Status::Cancelled);
            assert!(request.news(0).is_none() && request.answer().is_empty());
        }
    }
    let mut request = start(&engine, Endpoint::Completion, json!({ "max_tokens": 2000 })).unwrap();
    let canceller = request.canceller().clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            canceller.cancel();
        });
        while request.step().unwrap() == Status::Open {}
    });
    assert_eq!(request.step().unwrap(), Status::Cancelled);
}

/// A request that was cancelled between two steps takes no room from others in the next one.
#[test]
fn a_cancelled_request_leaves_its_room_at_once() {
    one_thread();
    let mut config = Config::open(&demo("engine.json")).unwrap();
    config.when_full = FullCache::Refuse;
    for model in &mut config.models {
        let ModelConfig::Onnx(export) = model else { panic!("an export was expected") };
        (export.context_length, export.cache_bytes) = (Some(512), Some(4 << 20));
    }
    let engine = Arc::new(Engine::load(&config).unwrap());
    let one = |token: i32| {
        let members = json!({ "prompt": vec![token; 400], "max_tokens": 100, "ignore_eos": true, "stream": true });
        start(&engine, Endpoint::Completion, members).unwrap()
    };
    let (mut first, mut second) = (one(300), one(301));
    for _ in 0..20 {
        step_many(&mut [&mut first], |_, status| assert_eq!(status.unwrap(), Status::Open));
    }
    // There is no room for both.
    step_many(&mut [&mut second], |_, status| assert!(status.is_err()));
    first.canceller().cancel();
    let mut third = one(302);
    let mut statuses = Vec::new();
    step_many(&mut [&mut first, &mut third], |_, status| statuses.push(status.unwrap()));
    assert_eq!(statuses, [Status::Cancelled, Status::Open]);
}

/// Choices that end without a token hold up no other.
#[test]
fn choices_may_end_at_once() {
    let engine = engine("engine.json");
    let context = engine.models().map(|model| model.context_length()).min().unwrap();
    for members in [json!({ "structured_outputs": { "regex": "" } }), json!({ "prompt": vec![300; context] })] {
        let mut members = members;
        members["n"] = 3.into();
        let terms = Terms { max_prompt_tokens: usize::MAX, ..terms(Endpoint::Completion) };
        let mut body = json!({ "model": "demo", "prompt": PROMPT });
        members.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let mut request = ClientRequest::new(&engine, &body.to_string(), &terms).unwrap();
        assert_eq!(request.step().unwrap(), Status::Done);
        assert_eq!(request.usage().completion_tokens, 0);
    }
}

/// Offsets count characters that begin in a token, also where text is held back.
#[test]
fn offsets_are_those_of_tokens() {
    let engine = engine("engine.json");
    let text = whole(&engine, Endpoint::Completion, json!({ "max_tokens": 20 }))["choices"][0]["text"].clone();
    let stop = format!("{}no", &text.as_str().unwrap()[8..30]);
    let members = json!({ "max_tokens": 20, "logprobs": 0, "stop": stop });
    let whole = whole(&engine, Endpoint::Completion, members.clone());
    let events = events(&engine, Endpoint::Completion, members);
    let streamed = events.iter().flat_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array().unwrap());
    assert_eq!(Value::from_iter(streamed.cloned()), whole["choices"][0]["logprobs"]["text_offset"]);
    let forced = json!({ "max_tokens": 20, "logprobs": 0, "structured_outputs": { "regex": "(é|漢){3}" } });
    let answer = super::requests::whole(&engine, Endpoint::Completion, forced);
    let choice = &answer["choices"][0];
    let last = choice["logprobs"]["text_offset"].as_array().unwrap().last().unwrap().as_u64().unwrap();
    assert!(choice["text"].as_str().unwrap().chars().count() == 3 && last <= 3, "{answer}");
}

/// What is not streamed is told of all choices at the end, also of those that ended long before.
#[test]
fn choices_are_told_when_they_are_to_be() {
    let engine = engine("engine.json");
    let members = |streams: bool| json!({ "n": 3, "max_tokens": 40, "temperature": 1.5, "stream": streams });
    let mut whole = start(&engine, Endpoint::Completion, members(false)).unwrap();
    assert_eq!(whole.status().unwrap(), Status::Open);
    assert_eq!((whole.usage().prompt_tokens > 5, whole.usage().completion_tokens), (true, 0));
    let mut many = start(&engine, Endpoint::Completion, members(false)).unwrap();
    while {
        let mut open = false;
        step_many(&mut [&mut many], |_, status| open = status.unwrap() == Status::Open);
        open
    } {}
    assert_eq!(whole.step().unwrap(), Status::Done, "it needs one step");
    let mut streamed = start(&engine, Endpoint::Completion, members(true)).unwrap();
    let mut tokens = vec![Vec::new(); 3];
    while {
        let status = streamed.step().unwrap();
        for (index, tokens) in tokens.iter_mut().enumerate() {
            tokens.extend(streamed.news(index).map(|news| news.tokens.clone()).unwrap_or_default());
        }
        status == Status::Open
    } {}
    for (index, tokens) in tokens.iter().enumerate() {
        for request in [&whole, &many] {
            let news = request.news(index).unwrap();
            assert!(!tokens.is_empty() && news.ending.is_some());
            assert_eq!(&news.tokens, tokens);
        }
    }
    assert!(streamed.answer().ends_with("data: [DONE]\n\n") && !whole.answer().is_empty());
    for mut request in [whole, streamed] {
        assert_eq!(request.step().unwrap(), Status::Done);
        assert_eq!(request.answer(), "", "behind the end");
    }
}
