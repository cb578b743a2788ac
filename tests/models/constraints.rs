//! Constraints with the tokenizer of the demo models: every text parses and validates, under every strategy.

use std::sync::Arc;

use cos::config::Combine;
use cos::control::Controls;
use cos::decode::decoder::Finish;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::grammar::Language;
use cos::model::scripted::Scripted;
use cos::rows::Sampler;
use cos::text::Text;
use serde_json::{Value, json};

use super::demo::demo;
use crate::common::mix;

/// Random schemas of one run of the tests. `CONSTRAINT_SCHEMAS` sets another number.
const SCHEMAS: usize = 10_000;

/// Two models that write nonsense, with the tokens of the demo models. They like to end what they have begun.
fn nonsense() -> (Arc<Engine>, Arc<Text>) {
    let text = Arc::new(Text::load(&demo("base/tokenizer.json")).unwrap());
    let closers: Vec<usize> = ["\"", "}", "]", ",", "0"]
        .iter()
        .map(|piece| *text.encode(piece, false).unwrap().last().unwrap() as usize)
        .collect();
    let model = |model: u64| {
        let closers = closers.clone();
        let script = move |context: &[i32], row: &mut [f32]| {
            let last = &context[context.len().saturating_sub(3)..];
            let hash = last.iter().fold(context.len() as u64, |hash, &token| mix(hash ^ token as u64));
            let (shared, own) = (fastrand::Rng::with_seed(hash), fastrand::Rng::with_seed(mix(hash ^ (model + 1))));
            let (mut shared, mut own) = (shared, own);
            row.iter_mut().for_each(|logit| *logit = 3.0 * shared.f32() + own.f32());
            closers.iter().for_each(|&closer| row[closer] += 7.0);
            Ok(())
        };
        Participant::Model(Arc::new(Scripted::new(text.vocab_size(), script).with_context_length(4096)))
    };
    let participants = vec![model(0), model(1), Participant::LookUp("ngram".into())];
    let combine = Combine::Weighted { weights: vec![0.5, 0.5, 0.0] };
    let engine = Engine::new(participants, combine, vec![0], Some(text.clone())).unwrap();
    (Arc::new(engine), text)
}

/// A random schema whose values are short.
fn schema(rng: &mut fastrand::Rng, depth: usize) -> Value {
    let kinds = if depth == 0 { 7 } else { 11 };
    match rng.usize(..kinds) {
        0 => json!({ "type": "boolean" }),
        1 => json!({ "type": "null" }),
        2 => {
            let least = rng.i32(-20..100);
            json!({ "type": "integer", "minimum": least, "maximum": least + rng.i32(0..1000) })
        }
        3 => json!({ "type": "number", "minimum": 0, "maximum": rng.i32(1..100) }),
        4 => {
            let least = rng.usize(..3);
            json!({ "type": "string", "minLength": least, "maxLength": least + rng.usize(..8) })
        }
        5 => json!({ "enum": [word(rng), word(rng), rng.i32(..100), null_or(rng)] }),
        6 => match rng.usize(..3) {
            0 => json!({ "const": word(rng) }),
            1 => json!({ "type": "string", "pattern": "^[a-c]{1,3}-[0-9]{2}$" }),
            _ => {
                let format = ["date", "uuid", "ipv4", "time"][rng.usize(..4)];
                json!({ "type": "string", "format": format })
            }
        },
        7 | 8 => {
            let names: Vec<String> = (0..rng.usize(1..4)).map(|index| format!("{}{index}", word(rng))).collect();
            let properties = names.iter().map(|name| (name.clone(), schema(rng, depth - 1))).collect();
            let required: Vec<&String> = names.iter().filter(|_| rng.u32(..3) > 0).collect();
            let required = json!(required);
            json!({ "type": "object", "properties": Value::Object(properties), "required": required,
                    "additionalProperties": false })
        }
        9 => {
            let least = rng.usize(..2);
            json!({ "type": "array", "items": schema(rng, depth - 1), "minItems": least, "maxItems": least + 2 })
        }
        _ => json!({ "anyOf": [schema(rng, depth - 1), schema(rng, depth - 1)] }),
    }
}

fn word(rng: &mut fastrand::Rng) -> String {
    let letters = ["a", "Bc", "ü", "x y", "\"", "\\", "漢", "-"];
    (0..rng.usize(1..4)).map(|_| letters[rng.usize(..letters.len())]).collect()
}

fn null_or(rng: &mut fastrand::Rng) -> Value {
    if rng.bool() { Value::Null } else { json!(true) }
}

/// Decode a text under a constraint. Returns its text and how it ended.
fn decode(engine: &Arc<Engine>, constraint: (Language, &str), options: &Options) -> (String, State) {
    let controls = Controls {
        constraint: Some(engine.constraint(constraint.0, constraint.1, engine.stop_tokens()).unwrap()),
        ..options.controls.clone()
    };
    let mut session = Session::new(engine, &Options { controls, ..options.clone() }).unwrap();
    let text = engine.text().unwrap();
    session.prompt(&text.encode("Answer: ", true).unwrap()).unwrap();
    let mut tokens = Vec::new();
    loop {
        let (new, state) = session.step().unwrap_or_else(|error| panic!("{error}: {constraint:?} {options:?}"));
        tokens.extend_from_slice(new);
        if state != State::Open {
            tokens.retain(|token| !engine.stop_tokens().contains(token));
            return (text.decode(&tokens).unwrap(), state);
        }
    }
}

/// Every strategy, greedy and at several temperatures.
fn ways(seed: u64) -> Vec<Options> {
    let mut ways = Vec::new();
    for strategy in [Strategy::Standard, Strategy::Speculative, Strategy::Cos, Strategy::Auto] {
        for targets in [Targets::Combined, Targets::Routed] {
            for temperature in [0.0, 0.3, 1.0, 2.0] {
                if temperature == 0.0 && targets == Targets::Routed {
                    continue;
                }
                let sampler = Sampler::new(temperature, 0, 0.0, 0.0).unwrap();
                let targets = Some(targets);
                ways.push(Options { strategy, targets, sampler, seed, max_tokens: 400, ..Options::default() });
            }
        }
    }
    ways
}

#[test]
fn texts_of_random_schemas_validate() {
    let count = std::env::var("CONSTRAINT_SCHEMAS").map_or(SCHEMAS, |count| count.parse().unwrap());
    let (engine, _) = nonsense();
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut whole, mut refused) = (0, 0);
    for seed in 0..count as u64 {
        let schema = schema(&mut rng, 3);
        let source = schema.to_string();
        if let Err(error) = engine.constraint(Language::JsonSchema, &source, &[]) {
            assert_eq!(error.code(), 1, "{error}");
            refused += 1;
            continue;
        }
        let ways = ways(seed);
        let options = &ways[seed as usize % ways.len()];
        let (text, state) = decode(&engine, (Language::JsonSchema, &source), options);
        if state == State::Ended(Finish::MaxTokens) {
            continue; // nonsense need not end
        }
        assert!(matches!(state, State::Ended(Finish::Complete | Finish::StopToken)), "{state:?}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} of {schema}"));
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        assert!(validator.is_valid(&value), "{text} of {schema}: {options:?}");
        whole += 1;
    }
    println!("{whole} texts of {count} schemas validate; {refused} schemas were refused");
    assert!(refused * 50 <= count && whole * 10 >= count * 9, "{whole} of {count} ended, {refused} were refused");
}

#[test]
fn a_text_is_one_of_the_choices() {
    let (engine, _) = nonsense();
    let choices = ["yes", "no", "perhaps not", "né \"quoted\"\n", "yes, indeed", "\u{7f}\u{1f}"];
    let source = json!(choices).to_string();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..4 {
        for options in ways(seed) {
            let (text, state) = decode(&engine, (Language::Choices, &source), &options);
            assert!(matches!(state, State::Ended(Finish::Complete | Finish::StopToken)), "{state:?}");
            assert!(choices.contains(&&*text), "{text:?}");
            seen.insert(text);
        }
    }
    assert!(seen.len() >= 3, "{seen:?}");
}

#[test]
fn a_text_matches_the_expression_or_the_grammar() {
    let (engine, _) = nonsense();
    let lark = "start: \"sum(\" NUMBER (\",\" NUMBER){0,3} \")\"\nNUMBER: /[0-9]{1,3}/";
    for options in ways(3) {
        let (text, _) = decode(&engine, (Language::Regex, "[A-C]{2,5}: (one|two)!"), &options);
        let (letters, rest) = text.split_once(": ").unwrap();
        assert!(
            (2..=5).contains(&letters.len()) && letters.bytes().all(|byte| (b'A'..=b'C').contains(&byte)),
            "{text}"
        );
        assert!(["one!", "two!"].contains(&rest), "{text}");
        let (text, state) = decode(&engine, (Language::Lark, lark), &options);
        assert_eq!(state, State::Ended(Finish::Complete), "nothing can follow: {text}");
        let numbers: Vec<&str> = text.strip_prefix("sum(").unwrap().strip_suffix(')').unwrap().split(',').collect();
        assert!(
            (1..=4).contains(&numbers.len()) && numbers.iter().all(|number| number.parse::<u32>().is_ok()),
            "{text}"
        );
    }
}

/// What earlier texts leave to later ones, many of them and on several threads, changes no text.
#[test]
fn later_texts_follow_a_grammar_as_the_first_one_did() {
    let (engine, _) = nonsense();
    let schema = r#"{"type": "array", "minItems": 3, "items": {"type": "string", "pattern": "^[a-f ]{1,20}$"}}"#;
    for constraint in [(Language::JsonSchema, schema), (Language::Regex, "([a-c]{1,9} ){4}[0-9]{2,40}")] {
        let way = |seed| Options { strategy: Strategy::Cos, seed, max_tokens: 300, ..Options::default() };
        let first: Vec<(String, State)> = (0..6).map(|seed| decode(&engine, constraint, &way(seed))).collect();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for round in 0..5 {
                        let again = (0..6).map(|seed| decode(&engine, constraint, &way(seed)));
                        assert!(again.eq(first.iter().cloned()), "{constraint:?}, round {round}");
                    }
                });
            }
        });
    }
}

/// What a grammar forces costs no pass.
#[test]
fn forced_tokens_cost_no_pass() {
    let (engine, text) = nonsense();
    let source = r#"["The quick brown fox jumps over the lazy dog, and nobody knows why."]"#;
    let options = Options { strategy: Strategy::Standard, ..Options::default() };
    let controls = Controls {
        constraint: Some(engine.constraint(Language::Choices, source, &[0]).unwrap()),
        ..Controls::default()
    };
    let mut session = Session::new(&engine, &Options { controls, ..options }).unwrap();
    session.prompt(&text.encode("Say it: ", true).unwrap()).unwrap();
    let mut tokens = Vec::new();
    while session.step().map(|(new, state)| (tokens.extend_from_slice(new), state)).unwrap().1 == State::Open {}
    assert_eq!(text.decode(&tokens).unwrap(), "The quick brown fox jumps over the lazy dog, and nobody knows why.");
    assert!(session.stats().counters.forwards <= 8, "{:?} for {} tokens", session.stats().counters, tokens.len());
}

#[test]
fn constraints_that_cannot_be_used_are_refused() {
    let (engine, _) = nonsense();
    for (language, source, part) in [
        (Language::JsonSchema, "{", "EOF"),
        (Language::JsonSchema, r#"{"type": "strange"}"#, "strange"),
        (Language::JsonSchema, r#"{"type": "string", "minLength": 3, "maxLength": 1}"#, ""),
        (Language::Regex, "a(", ""),
        (Language::Lark, "start: undefined", "undefined"),
        (Language::Lark, "start: q \"!\"\nq[max_tokens=3]: /[a-z]*/", "use suffix= or a quantifier"),
        (Language::Lark, "start: \"!\" q\nq[stop=\"x\"]: /[a-z]*/", "use suffix= or a quantifier"),
        (Language::Choices, "[]", "a string or more"),
        (Language::Choices, "{}", "a string or more"),
        (Language::Choices, r#"["a", 1]"#, "choice 1 is 1"),
        (Language::Choices, r#"[""]"#, "choice 0 is empty"),
    ] {
        let error = engine.constraint(language, source, &[]).expect_err(source);
        let message = error.to_string();
        assert_eq!(error.code(), 1, "{message}");
        assert!(message.contains("constraint is not a") && message.contains(part), "{message}");
    }
}

/// A constraint that nothing can follow ends the text; stop tokens that may not come yet do not.
#[test]
fn a_minimum_length_ends_a_complete_text() {
    let (engine, _) = nonsense();
    let controls = Controls { min_tokens: 30, ..Controls::default() };
    let options = Options { controls, max_tokens: 40, ..Options::default() };
    let (text, state) = decode(&engine, (Language::Regex, "[a-z]{2,4}"), &options);
    assert_eq!(state, State::Ended(Finish::Complete));
    assert_eq!(text.len(), 4, "it goes on as long as it can: {text}");
}

/// What earlier texts have left makes later ones faster, and changes none of them.
#[test]
fn earlier_texts_change_no_later_one() {
    let (engine, text) = nonsense();
    let (alone, _) = nonsense();
    let tokens = text.vocab_size();
    let mut rng = fastrand::Rng::with_seed(11);
    for (language, source) in [
        (Language::Regex, "(a|b|c)*d[0-9]{2,4}( [a-z]+)*"),
        (Language::JsonSchema, r#"{"type": "array", "items": {"anyOf": [{"type": "number"}, {"enum": ["ab", "b"]}]}}"#),
        (Language::Choices, r#"["apple", "apples", "app", "banana split"]"#),
        (Language::Lark, "start: \"a\" b* \"c\"\nb: /[x-z]+/ | \"(\" start \")\""),
        (Language::Lark, "start: q \"!\"\nq[suffix=\"END\"]: /(.|\\n)*/"),
        (Language::Lark, "start: q \"!\"\nq[lazy]: /[a-z ]*END/"),
    ] {
        let [constraint, fresh] = [&engine, &alone].map(|engine| engine.constraint(language, source, &[0]).unwrap());
        for _ in 0..60 {
            let mut followers = [constraint.start(), fresh.start()];
            let mut length = 0;
            for _ in 0..rng.usize(1..40) {
                let masks = followers.each_mut().map(|follower| {
                    let mut mask = vec![0; tokens.div_ceil(32)];
                    follower.mask(&mut mask).unwrap();
                    (mask, follower.may_end(), follower.is_complete())
                });
                assert_eq!(masks[0], masks[1], "{source}");
                let allowed: Vec<usize> =
                    (1..tokens).filter(|token| masks[0].0[token / 32] >> (token % 32) & 1 == 1).collect();
                let Some(token) = rng.choice(allowed) else { break };
                followers.iter_mut().for_each(|follower| follower.push(token as i32).unwrap());
                length += 1;
                let back = rng.usize(..5).min(length) * rng.usize(..2);
                followers.iter_mut().for_each(|follower| follower.pop(back).unwrap());
                length -= back;
            }
            // Nothing of this text is left to the engine that is compared with.
            let [_, fresh] = followers;
            std::mem::forget(fresh);
        }
    }
}
