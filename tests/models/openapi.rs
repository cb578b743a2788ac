//! `docs/openapi.json` says of bodies what the library does.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use jsonschema::Validator;
use serde_json::{Value, json};

use cos::engine::Engine;
use cos::request::{ClientRequest, Endpoint, Terms};

use super::demo::engine;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn schemas() -> Value {
    let file: Value = serde_json::from_str(&read("docs/openapi.json")).unwrap();
    file["components"]["schemas"].clone()
}

/// The names of the members that a schema describes.
fn members(schema: &Value) -> BTreeSet<String> {
    schema["properties"].as_object().unwrap().keys().cloned().collect()
}

/// The members of a structure of `src/request/body.rs`, by the names of the protocol.
fn fields(source: &str, name: &str) -> BTreeSet<String> {
    let (_, rest) = source.split_once(&format!("pub struct {name} {{\n")).unwrap();
    let (inside, _) = rest.split_once("\n}\n").unwrap();
    let lines = inside.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'));
    lines.map(|(field, _)| if field == "kind" { "type" } else { field }.to_owned()).collect()
}

#[test]
fn every_member_of_a_body_is_described() {
    let (schemas, source) = (schemas(), read("src/request/body.rs"));
    let of_both = members(&schemas["DecodingOptions"]);
    let [completion, chat] = ["CompletionRequest", "ChatRequest"].map(|name| members(&schemas[name]["allOf"][1]));
    assert_eq!(fields(&source, "Body"), [of_both, completion, chat].into_iter().flatten().collect());
    let formats = schemas["ResponseFormat"]["oneOf"].as_array().unwrap();
    assert_eq!(fields(&source, "ResponseFormat"), formats.iter().flat_map(members).collect());
    for (name, schema) in [
        ("StructuredOutputs", &schemas["StructuredOutputs"]),
        ("StreamOptions", &schemas["DecodingOptions"]["properties"]["stream_options"]),
        ("Extension", &schemas["CosOptions"]),
        ("NamedSchema", &formats[2]["properties"]["json_schema"]),
    ] {
        assert_eq!(fields(&source, name), members(schema), "{name}");
    }
}

/// Members whose values are refused for what no schema of a single member says: they contradict others, the demo models
/// lack something, or what they hold cannot be compiled.
const DEPENDENT: [&str; 16] = [
    "model",
    "n",
    "best_of",
    "min_tokens",
    "xtc_probability",
    "xtc_threshold",
    "prompt",
    "tools",
    "documents",
    "chat_template_kwargs",
    "messages.content",
    "cos.targets",
    "cos.weights",
    "cos.proposal_lengths",
    "structured_outputs.json",
    "structured_outputs.grammar",
];

/// Lines of JSON. A macro for so many values would recurse too deep.
const VALUES: &str = r#"
    [null, true, false, {}, { "a": 1 }, [], [null], [{}]]
    [-2, -1, 0, 1, 2, 20, 21, 1000001, 2147483648, 4294967296, 0.5, 1.5, -1e31, 1e31, 1e39]
    ["", "a", "x*", "start: \"a\"", "demo", "auto", "none", "routed", "own", "batch", "user", "robot"]
    [[0], [-1], [0.5], [2147483648], [1, 2], [65, 1], [0.5, 0.5], [-1, 2], [1e39, 1], [[0]], [[]], [[-1]]]
    [["a"], [""], ["a", 1], [5], { "0": 1 }, { "0": 1e31 }, { "0": -1e39 }, { "0": "a" }]
    [{ "+1": 1 }, { "01": 1 }, { "-1": 1 }, { "strategy": "cos" }, { "include_usage": 1 }]
    [{ "type": "text" }, { "type": "xml" }, { "type": "json_object" }, { "type": "json_schema" }]
    [{ "type": "json_schema", "json_schema": {} }, [{ "type": "text", "text": "a" }], [{ "type": "text", "text": 1 }]]
    [[{ "type": "image_url" }], [{ "role": "user", "content": "a" }], [{ "role": "user", "content": 5 }]]"#;

fn values() -> Vec<Value> {
    let lines = VALUES.lines().filter(|line| !line.is_empty());
    let mut values: Vec<Value> = lines.flat_map(|line| serde_json::from_str::<Vec<Value>>(line).unwrap()).collect();
    values.extend([json!(vec!["a"; 65]), json!(vec!["a"; 1025]), json!(vec![[1]; 1025])]);
    values
}

/// A body with a value at the path of a member.
fn body(endpoint: Endpoint, path: &str, value: &Value) -> Value {
    let mut body = match endpoint {
        Endpoint::Completion => json!({ "model": "demo", "prompt": "a" }),
        Endpoint::Chat => {
            json!({ "model": "demo", "messages": [{ "role": "user", "content": "a" }], "logprobs": true })
        }
    };
    match path.split_once('.') {
        Some(("messages", member)) => body["messages"][0][member] = value.clone(),
        Some((outer, member)) => body[outer][member] = value.clone(),
        None => body[path] = value.clone(),
    }
    if path == "logprobs" || endpoint == Endpoint::Completion {
        body.as_object_mut().unwrap().remove("top_logprobs");
    }
    body
}

fn accepts(engine: &Arc<Engine>, endpoint: Endpoint, body: &Value) -> bool {
    let terms = Terms {
        endpoint,
        model: Some("demo".into()),
        number: 7,
        created: 1_700_000_000,
        max_choices: 32,
        max_prompt_tokens: usize::MAX,
        max_tokens: usize::MAX,
    };
    ClientRequest::new(engine, &body.to_string(), &terms).is_ok()
}

fn validator(schemas: &Value, name: &str) -> Validator {
    let root = json!({ "$ref": format!("#/components/schemas/{name}"), "components": { "schemas": schemas } });
    jsonschema::draft202012::new(&root).unwrap()
}

#[test]
fn values_are_refused_as_the_file_says() {
    let (engine, schemas, mut found) = (engine("engine.json"), schemas(), Vec::new());
    for (endpoint, name) in [(Endpoint::Completion, "CompletionRequest"), (Endpoint::Chat, "ChatRequest")] {
        let own = members(&schemas[name]["allOf"][1]);
        let mut paths: Vec<String> = members(&schemas["DecodingOptions"]).into_iter().chain(own).collect();
        for (outer, schema) in [("cos", "CosOptions"), ("structured_outputs", "StructuredOutputs")] {
            paths.extend(members(&schemas[schema]).iter().map(|member| format!("{outer}.{member}")));
        }
        paths.push("stream_options.include_usage".into());
        if endpoint == Endpoint::Chat {
            paths.extend(members(&schemas["Message"]).iter().map(|member| format!("messages.{member}")));
        }
        let validator = validator(&schemas, name);
        for path in paths {
            let (mut right, mut wrong) = (0, 0);
            for value in values() {
                let body = body(endpoint, &path, &value);
                let (is_right, is_accepted) = (validator.is_valid(&body), accepts(&engine, endpoint, &body));
                let depends = is_right && DEPENDENT.contains(&&*path);
                if is_right != is_accepted && !depends {
                    found.push(format!("{name}: {path} = {value:.200}: by the file {is_right}"));
                }
                right += usize::from(is_accepted);
                wrong += usize::from(!is_right);
            }
            if right == 0 || wrong == 0 {
                found.push(format!("{name}: {path}: {right} values are right, and {wrong} are wrong"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
