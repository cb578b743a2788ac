//! Tests of chat: what transformers renders and encodes, requests that are refused, and templates that do harm.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::tests::{changed, load};
use super::*;

#[derive(Deserialize)]
struct Vectors {
    special: BTreeMap<String, String>,
    templates: BTreeMap<String, Template>,
    tokenizers: BTreeMap<String, Value>,
    cases: Vec<Case>,
    tokens: Vec<TokenCase>,
}

#[derive(Deserialize)]
struct Template {
    template: String,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    /// As it is in the file, because the order of keys counts.
    request: Box<serde_json::value::RawValue>,
    generation: bool,
    text: Option<String>,
}

#[derive(Deserialize)]
struct TokenCase {
    tokenizer: String,
    template: String,
    request: Box<serde_json::value::RawValue>,
    tokens: Option<Vec<i32>>,
}

fn vectors() -> Vectors {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/chat.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The clock of the vectors.
fn now(format: &str) -> Option<String> {
    match format {
        "%d %b %Y" => Some("04 Jul 2026".into()),
        "%Y-%m-%d" => Some("2026-07-04".into()),
        _ => None,
    }
}

fn chat_of(templates: &[(&str, &str)], tokens: &BTreeMap<String, String>) -> Chat {
    let templates = templates.iter().map(|(name, source)| (name.to_string(), source.to_string())).collect();
    let tokens = tokens.iter().map(|(name, token)| (name.clone(), token.clone())).collect();
    Chat::new(&ChatFiles { templates, tokens, control: None }, now).0
}

fn chat(template: &str) -> Chat {
    chat_of(&[("default", template)], &BTreeMap::new())
}

#[test]
fn messages_are_rendered_as_transformers_does() {
    let vectors = vectors();
    assert!(vectors.templates.len() >= 15 && vectors.cases.len() > 150);
    for Case { template, request, generation, text } in &vectors.cases {
        let chat = chat_of(&[("default", &vectors.templates[template].template)], &vectors.special);
        match (chat.render(request.get(), *generation), text) {
            (Ok(rendered), Some(text)) => assert_eq!(&rendered, text, "{template}: {request}"),
            (Err(error), None) => assert_eq!(error.code(), 1, "{error}"),
            // What the template does not read is refused here, and has no effect in transformers.
            (Err(error), Some(_)) => {
                assert!(error.to_string().contains("does not read"), "{template}: {request}: {error}")
            }
            (Ok(rendered), None) => panic!("{template}: {request}: {rendered}"),
        }
    }
}

#[test]
fn messages_are_encoded_as_transformers_does() {
    let vectors = vectors();
    let tokenizer = |description: &Value| {
        let added = description["added"].as_array();
        let added = added.map(|added| {
            changed(|file| {
                let vocabulary = file["model"]["vocab"].as_object().unwrap();
                let size = vocabulary.values().filter_map(Value::as_u64).max().unwrap() + 1;
                for (id, token) in (size..).zip(added) {
                    let token = json!({ "id": id, "content": token[0], "special": token[1], "single_word": false,
                                        "lstrip": false, "rstrip": false, "normalized": false });
                    file["added_tokens"].as_array_mut().unwrap().push(token);
                }
            })
        });
        load(added.as_ref().unwrap_or(&description["file"]))
    };
    let special =
        [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.to_owned(), token.to_owned()));
    let special = BTreeMap::from(special);
    let tokenizers: BTreeMap<_, _> = vectors.tokenizers.iter().map(|(name, each)| (name, tokenizer(each))).collect();
    for TokenCase { tokenizer, template, request, tokens } in &vectors.tokens {
        let text = &tokenizers[tokenizer];
        let chat = chat_of(&[("default", &vectors.templates[template].template)], &special);
        let encoded = chat.encode(text, request.get(), true);
        assert_eq!(encoded.as_ref().ok(), tokens.as_ref(), "{tokenizer}, {template}: {request}: {encoded:?}");
        let Ok(encoded) = encoded else { continue };
        if request.get().contains("漢字") {
            let rendered = chat.render(request.get(), true).unwrap();
            assert_eq!(encoded, text.encode(&rendered, false).unwrap(), "without control tokens in messages");
        }
    }
}

#[test]
fn control_tokens_that_cannot_be_text_are_refused() {
    let special = json!({ "id": 1, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true });
    let text =
        load(&json!({ "version": "1.0", "added_tokens": [special], "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": { "a": 0, "<end>": 1, "?": 2 }, "unk_token": "?" } }));
    let chat = chat("{% for message in messages %}{{ message.content }} <end>{% endfor %}");
    assert_eq!(chat.encode(&text, r#"[{"content": "a"}]"#, false).unwrap(), [0, 1]);
    let error = chat.encode(&text, r#"[{"content": "a <end>"}]"#, false).unwrap_err().to_string();
    assert!(error.contains("\"<end>\"") && error.contains("remove it"), "{error}");
    let error = text.encode_plain("a <end>", false).unwrap_err().to_string();
    assert!(error.contains("\"<end>\"") && error.contains("remove it"), "{error}");
    assert_eq!(text.encode_plain("a x", false).unwrap(), [0, 2]);
}

#[test]
fn requests_are_checked() {
    let chat =
        chat("{{ messages[0].role }}{{ x }}{% if tools %}{{ raise_exception('no tools') }}{% endif %}{{ y.z.w }}");
    for (request, says) in [
        ("", "messages_json is not JSON: EOF"),
        ("[1, 2", "is not JSON: EOF"),
        ("7", "is JSON of the type number; pass an array of messages"),
        ("{}", "has no \"messages\""),
        (r#"{"messages": null}"#, "has no \"messages\""),
        ("[]", "has no message; pass at least one"),
        (r#"["a"]"#, "has messages[0] of the type string; pass an object"),
        (r#"[[{"role": "user"}]]"#, "has messages[0] of the type sequence"),
        (r#"{"messages": "a"}"#, "has \"messages\" that are no array"),
        (r#"{"messages": [{}], "tools": [7]}"#, "has tools[0] of the type number"),
        (r#"{"messages": [{}], "tools": [{}]}"#, "refuses them: no tools"),
        (
            r#"{"messages": [{}], "documents": [{}]}"#,
            "has \"documents\", which the chat template \"default\" does not read",
        ),
        (r#"{"messages": [{}], "zzz": 1}"#, "has \"zzz\", which the chat template"),
        (r#"{"messages": [{}], "role_": 1}"#, "has \"role_\", which the chat template"),
        (r#"{"messages": [{}], "add_generation_prompt": true}"#, "is an argument of the call"),
        (r#"{"messages": [{}], "tokenize": true}"#, "a parameter of transformers"),
        (
            r#"{"messages": [{}], "template": "rag"}"#,
            "no chat template \"rag\"; let \"template\" of the chat be one of default",
        ),
        (r#"{"messages": [{}], "template": 1}"#, "has a \"template\" that is no string"),
        (r#"{"messages": [{}], "x": 1}"#, "does not render the messages: undefined value (line 1)"),
        (&format!("{}1{}", "[".repeat(200), "]".repeat(200)), "recursion limit"),
    ] {
        let error = chat.render(request, false).unwrap_err();
        assert!(error.code() == 1 && error.to_string().contains(says), "{request}: {error}");
    }
}

#[test]
fn a_template_is_chosen_as_transformers_does() {
    let show = "{{ tools }}{{ documents }}";
    let templates =
        [("default", format!("default {show}")), ("tool_use", format!("tool {show}")), ("rag", "rag".into())];
    let templates = templates.each_ref().map(|(name, source)| (*name, &**source));
    let chat = chat_of(&templates, &BTreeMap::new());
    let render = |request: &str| chat.render(request, false).unwrap();
    assert_eq!(render("[{}]"), "default NoneNone");
    assert_eq!(render(r#"{"messages": [{}], "tools": [{}]}"#), "tool [{}]None");
    assert_eq!(render(r#"{"messages": [{}], "tools": []}"#), "tool []None");
    assert_eq!(render(r#"{"messages": [{}], "tools": [{}], "template": "default"}"#), "default [{}]None");
    assert_eq!(render(r#"{"messages": [{}], "template": "rag"}"#), "rag");
    let chat = chat_of(&templates[1..], &BTreeMap::new());
    assert_eq!(chat.names().collect::<Vec<_>>(), ["rag", "tool_use"]);
    let error = chat.render("[{}]", false).unwrap_err().to_string();
    assert!(error.contains("no chat template \"default\"") && error.contains("rag, tool_use"), "{error}");
}

#[test]
fn variables_of_a_request_replace_special_tokens() {
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let chat = chat_of(&[("default", "{{ bos_token }}{{ add_generation_prompt }}{{ pad_token }}")], &tokens);
    assert_eq!(chat.render("[{}]", true).unwrap(), "<s>True");
    assert_eq!(chat.render(r#"{"messages": [{}], "bos_token": "x"}"#, false).unwrap(), "xFalse");
}

#[test]
fn a_template_that_cannot_be_used_is_named() {
    let templates =
        BTreeMap::from([("default".to_owned(), "a\n{% if %}".to_owned()), ("rag".to_owned(), "b".to_owned())]);
    let (chat, warnings) = Chat::new(&ChatFiles { templates, ..ChatFiles::default() }, now);
    assert!(
        warnings.len() == 1 && warnings[0].contains("\"default\"") && warnings[0].contains("line 2"),
        "{warnings:?}"
    );
    let error = chat.render("[{}]", false).unwrap_err();
    assert!(error.code() == 8 && error.to_string().contains("line 2"), "{error}");
    assert_eq!(chat.render(r#"{"messages": [{}], "template": "rag"}"#, false).unwrap(), "b");
}

#[test]
fn rendering_ends() {
    for (template, says) in [
        ("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", "too many steps"),
        (
            "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "too many steps",
        ),
        (
            "{% set s = namespace(x=1) %}{% for i in range(99) %}{% set s.x = [s.x, s.x] %}{% endfor %}{{ s|tojson }}",
            "too many steps",
        ),
        ("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns|tojson }}", "nests too deep"),
        ("{% macro r(x) %}{{ r(x) }}{% endmacro %}{{ r(0) }}", "recursion limit"),
        ("{{ range(10 ** 12)|list }}", "too many elements"),
        ("{{ strftime_now('%q') }}", "no time as \"%q\""),
    ] {
        let error = chat(template).render("[{}]", false).unwrap_err().to_string();
        assert!(error.contains(says), "{template}: {error}");
    }
}

/// The compiler calls itself for each operator.
#[test]
fn long_templates_are_compiled() {
    let most = template::MAX_TEMPLATE / 4;
    for (name, template) in [
        ("signs", format!("{{{{ {}1 }}}}", "-".repeat(most))),
        ("filters", format!("{{{{ 'a'{} }}}}", "|e".repeat(most / 2))),
        ("branches", format!("{{% if 0 %}}{}{{% endif %}}", "{%elif 0%}".repeat(most / 10))),
        ("too long", "x".repeat(template::MAX_TEMPLATE + 1)),
        ("brackets", format!("{{{{ {}1{} }}}}", "[".repeat(most / 2), "]".repeat(most / 2))),
    ] {
        let templates = BTreeMap::from([("default".to_owned(), template)]);
        let (_, warnings) = Chat::new(&ChatFiles { templates, ..ChatFiles::default() }, now);
        assert_eq!(warnings.len(), usize::from(["brackets", "too long"].contains(&name)), "{name}: {warnings:?}");
    }
}

#[test]
fn templates_are_found_as_transformers_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, content: &str| std::fs::write(path(name), content).unwrap();
    let names = |config: &Value| {
        let source = ChatFiles::beside(&path("tokenizer.json"), config).unwrap();
        source.templates.into_iter().map(|(name, template)| format!("{name}:{template}")).collect::<Vec<_>>()
    };
    let (one, none) = (json!({ "chat_template": "config" }), json!({}));
    let list = json!({ "chat_template": [{ "name": "default", "template": "a" }, { "name": "rag", "template": "b" }] });
    assert_eq!(names(&none), [] as [String; 0]);
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(names(&none), ["default:json"]);
    assert_eq!(names(&one), ["default:config"]);
    assert_eq!(names(&list), ["default:a", "rag:b"]);
    std::fs::create_dir(path("additional_chat_templates")).unwrap();
    write("additional_chat_templates/notes.txt", "x");
    assert_eq!(names(&one), ["default:config"]);
    write("additional_chat_templates/tool_use.jinja", "{{ tools }}");
    assert_eq!(names(&one), ["tool_use:{{ tools }}"], "files replace the configuration");
    write("chat_template.jinja", "{{ file }}");
    assert_eq!(names(&list), ["default:{{ file }}", "tool_use:{{ tools }}"]);
}

#[test]
fn special_tokens_are_variables() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    let tokens = |config: Value| ChatFiles::beside(&tokenizer, &config).unwrap().tokens;
    let pair = |name: &str, token: &str| (name.to_owned(), token.to_owned());
    let config = json!({ "bos_token": { "content": "<s>" }, "eos_token": null, "add_bos_token": true,
                         "image_token": "<i>", "extra_special_tokens": { "audio": "<a>" } });
    assert_eq!(tokens(config.clone()), [pair("audio", "<a>"), pair("bos_token", "<s>"), pair("image_token", "<i>")]);
    std::fs::write(folder.path().join("special_tokens_map.json"), r#"{"bos_token": "<b>", "pad_token": "<p>"}"#)
        .unwrap();
    assert_eq!(tokens(json!({ "bos_token": "<s>" })), [pair("bos_token", "<b>"), pair("pad_token", "<p>")]);
    assert_eq!(tokens(json!({ "bos_token": "<s>", "added_tokens_decoder": {} })), [pair("bos_token", "<s>")]);
    let control =
        ChatFiles::beside(Path::new("none/tokenizer.json"), &json!({ "chat_control_tokens": ["<x>"] })).unwrap();
    assert_eq!(control.control, Some(vec!["<x>".to_owned()]));
}
