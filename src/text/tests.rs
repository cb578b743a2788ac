//! Tests of tokenizers and text streams.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

pub fn demo() -> Arc<Text> {
    Arc::new(Text::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/base/tokenizer.json"))).unwrap())
}

pub fn load(file: &Value) -> Arc<Text> {
    Arc::new(Text::parse(Path::new("tokenizer.json"), &file.to_string()).unwrap())
}

#[test]
fn there_and_back() {
    let text = demo();
    for sample in ["Question: What is 2+2?\nAnswer:", "  spaces ", "äöü – 漢字 🙂", ""] {
        let tokens = text.encode(sample, true).unwrap();
        assert_eq!(text.decode(&tokens).unwrap(), sample);
    }
}

#[test]
fn streams_cut_at_characters_only() {
    let text = demo();
    let sample = "Größe 🙂 漢字, done";
    let tokens = text.encode(sample, true).unwrap();
    assert!(tokens.len() > sample.chars().count() - 8, "bytes must be tokens of their own for this test");
    let mut stream = TextStream::new(text).unwrap();
    let mut pieces = Vec::new();
    for &token in &tokens {
        pieces.push(stream.push(&[token]).unwrap().to_owned());
    }
    assert!(pieces.iter().any(String::is_empty), "an unfinished character is held back");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert_eq!(pieces.concat() + stream.finish().unwrap(), sample);
}

#[test]
fn invalid_bytes_do_not_stop_the_stream() {
    let text = demo();
    let byte = text.encode("漢", true).unwrap()[0];
    let mut stream = TextStream::new(text.clone()).unwrap();
    let mut out = String::new();
    for _ in 0..40 {
        out.push_str(stream.push(&[byte]).unwrap());
    }
    assert!(out.contains('\u{fffd}'), "{out:?}");
    out.push_str(stream.push(&text.encode(" and on", true).unwrap()).unwrap());
    out.push_str(stream.finish().unwrap());
    assert!(out.ends_with(" and on"), "{out:?}");
}

#[test]
fn unfinished_text_comes_out_at_the_end() {
    let text = demo();
    let tokens = text.encode("ok漢", true).unwrap();
    let mut stream = TextStream::new(text).unwrap();
    let mut out = stream.push(&tokens[..tokens.len() - 1]).unwrap().to_owned();
    out.push_str(stream.finish().unwrap());
    assert_eq!(out, "ok\u{fffd}");
}

/// The text of a stream for tokens in pieces of `size`, and whether a stop string ended it.
fn streamed(stream: &mut TextStream, tokens: &[i32], size: usize) -> (String, bool) {
    let mut out = String::new();
    for piece in tokens.chunks(size) {
        out.push_str(stream.push(piece).unwrap());
    }
    out.push_str(stream.finish().unwrap());
    (out, stream.stopped())
}

#[test]
fn text_ends_before_the_first_stop_string() {
    let text = demo();
    let sample = "Größe: one two three 🙂 漢字, two three four";
    let tokens = text.encode(sample, true).unwrap();
    let mut stream = TextStream::new(text).unwrap();
    for (stops, wanted) in [
        (vec![], None),
        (vec!["two"], Some("Größe: one ")),
        (vec!["three", "two"], Some("Größe: one ")),
        (vec!["two three four"], Some("Größe: one two three 🙂 漢字, ")),
        // The string that is complete first counts, even if another one begins before it; then the longest one.
        (vec!["two three 🙂", "three"], Some("Größe: one two ")),
        (vec!["o", "two", "wo"], Some("Größe: ")),
        (vec!["wo", "two"], Some("Größe: one ")),
        (vec!["öß"], Some("Gr")),
        (vec!["🙂 漢"], Some("Größe: one two three ")),
        (vec!["G"], Some("")),
        // Held back as the beginning of a stop string, and given out later.
        (vec!["four!"], None),
        (vec!["two three five", "r four"], None),
    ] {
        for size in [1, 2, 3, tokens.len()] {
            stream.set_stops(stops.iter().map(ToString::to_string).collect()).unwrap();
            let (out, stopped) = streamed(&mut stream, &tokens, size);
            assert_eq!(out, wanted.unwrap_or(sample), "{stops:?} by {size}");
            assert_eq!(stopped, wanted.is_some(), "{stops:?} by {size}");
        }
    }
}

#[test]
fn only_possible_stop_strings_are_held_back() {
    let text = demo();
    let tokens = text.encode("one two", true).unwrap();
    let mut stream = TextStream::new(text.clone()).unwrap();
    stream.set_stops(vec!["two, three".into()]).unwrap();
    assert_eq!(stream.push(&tokens).unwrap(), "one ");
    assert_eq!(stream.push(&text.encode(" or", false).unwrap()).unwrap(), "two or");
    assert_eq!(stream.set_stops(vec!["fine".into(), String::new()]).unwrap_err().code(), 1);
    assert_eq!(stream.push(&text.encode(" two", false).unwrap()).unwrap(), " ", "the previous stop strings stay");
}

#[test]
fn a_stop_string_may_be_a_replacement_character() {
    let text = demo();
    let tokens = text.encode("ok漢", true).unwrap();
    let mut stream = TextStream::new(text).unwrap();
    stream.set_stops(vec!["\u{fffd}".into()]).unwrap();
    assert_eq!(streamed(&mut stream, &tokens[..tokens.len() - 1], 1), ("ok".into(), true), "found at the end only");
    assert_eq!(streamed(&mut stream, &tokens, 1), ("ok漢".into(), false), "a new text starts");
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let text = demo();
    assert_eq!(text.decode(&[-1]).unwrap_err().code(), 1);
    assert_eq!(text.decode(&[4096]).unwrap_err().code(), 1);
    assert_eq!(TextStream::new(text).unwrap().push(&[5, -1]).unwrap_err().code(), 1);
}

/// The `tokenizer.json` of the demo after a change.
pub fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let file =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/base/tokenizer.json")).unwrap();
    let mut file = serde_json::from_str(&file).unwrap();
    change(&mut file);
    file
}

/// A sentencepiece tokenizer in the layout of Llama 2.
fn llama2() -> Arc<Text> {
    let pieces =
        ["<unk>", "<s>", "</s>", "▁The", "▁answer", "▁is", "▁twelve", "▁cats", "<0x0A>", "<0xF0>", "<0x9F>", ""];
    let vocab: serde_json::Map<_, _> =
        pieces.iter().zip(0..).map(|(piece, id)| (piece.to_string(), json!(id))).collect();
    let special = |id: usize| {
        json!({ "id": id, "content": pieces[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let spaces = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
    let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
    let decoders = json!([spaces, { "type": "ByteFallback" }, { "type": "Fuse" }, strip]);
    load(&json!({
        "version": "1.0", "added_tokens": [special(1), special(2)],
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true }
    }))
}

/// The text of a new stream behind a prompt, if one is set.
fn behind(prompt: Option<&[i32]>, tokens: &[i32]) -> String {
    let mut stream = TextStream::new(llama2()).unwrap();
    if let Some(prompt) = prompt {
        stream.prompt(prompt).unwrap();
    }
    streamed(&mut stream, tokens, 1).0
}

#[test]
fn the_space_before_a_word_is_not_lost() {
    let (prompt, text) = ([1, 3, 4, 5], [6, 7]);
    assert_eq!(llama2().decode(&prompt).unwrap(), "The answer is");
    assert_eq!(behind(None, &text), " twelve cats");
    assert_eq!(behind(Some(&prompt), &text), " twelve cats");
    assert_eq!(behind(Some(&[]), &text), "twelve cats", "the start of a text");
    assert_eq!(behind(Some(&[1]), &text), "twelve cats", "a prompt without text");
    for no_text in [2, 11] {
        let tokens = [[7].as_slice(), &[no_text; 40], &[5, 7]].concat();
        assert_eq!(behind(Some(&[]), &tokens), "cats is cats", "token {no_text}");
    }
}

#[test]
fn normalized_special_tokens_give_no_text() {
    let text = load(&changed(|file| {
        file["normalizer"] = json!({ "type": "Prepend", "prepend": "▁" });
        file["added_tokens"][0]["normalized"] = json!(true);
    }));
    let mut stream = TextStream::new(text.clone()).unwrap();
    stream.set_stops(vec!["<|endoftext|>".into()]).unwrap();
    let tokens = [&demo().encode("ok", false).unwrap()[..], &[0]].concat();
    assert_eq!(text.decode(&tokens).unwrap(), "ok");
    assert_eq!(streamed(&mut stream, &tokens, 1), ("ok".into(), true));
}

#[test]
fn characters_beside_invalid_bytes_stay() {
    let tokens = [7, 8, 9, 10, 5, 7];
    assert_eq!(llama2().decode(&tokens).unwrap(), "cats\n\u{fffd}\u{fffd} is cats");
    assert_eq!(behind(Some(&[]), &tokens), "cats\n\u{fffd}\u{fffd} is cats");
    let invalid = [[7].as_slice(), &[9; 9], &[5, 7]].concat();
    assert_eq!(behind(Some(&[]), &invalid), format!("cats{} is cats", "\u{fffd}".repeat(9)));
}

#[test]
fn a_prompt_is_set_before_the_text() {
    let mut stream = TextStream::new(llama2()).unwrap();
    assert_eq!(stream.push(&[7]).unwrap(), " cats");
    assert_eq!(stream.prompt(&[3]).unwrap_err().code(), 1);
    assert_eq!(stream.push(&[7]).unwrap(), " cats", "nothing changed");
    assert_eq!(stream.finish().unwrap(), "");
    stream.prompt(&[]).unwrap();
    assert_eq!(stream.prompt(&[99]).unwrap_err().code(), 1);
    assert_eq!(stream.push(&[7]).unwrap(), "cats");
}

#[test]
fn an_unknown_prompt_ends_with_a_word() {
    let vocab = json!({ "<unk>": 0, "cats</w>": 1, "and</w>": 2 });
    let text = load(&json!({
        "version": "1.0", "added_tokens": [], "decoder": { "type": "BPEDecoder", "suffix": "</w>" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" }
    }));
    assert_eq!(streamed(&mut TextStream::new(text).unwrap(), &[2, 1], 1).0, " and cats");
}

#[test]
fn a_special_token_ends_the_text() {
    for (stop, tokens, wanted) in [
        ("</s>", vec![7, 2, 5], Some(" cats")),
        ("cats</s>", vec![5, 7, 2, 5], Some(" is ")),
        ("</s> is", vec![7, 2, 5, 7], Some(" cats")),
        ("</s>", vec![7, 9, 2, 5], Some(" cats\u{fffd}")),
        ("</s>", vec![7, 1, 5], None),
        // A part of a name does not match.
        ("s>", vec![7, 2, 5], None),
        // A special token that is not part of a stop string does not interrupt one.
        ("cats is", vec![7, 2, 5], Some(" ")),
    ] {
        for size in [1, 2, tokens.len()] {
            let mut stream = TextStream::new(llama2()).unwrap();
            stream.set_stops(vec![stop.into()]).unwrap();
            let (text, stopped) = streamed(&mut stream, &tokens, size);
            assert_eq!(stopped, wanted.is_some(), "{stop:?} by {size}");
            assert_eq!(text, wanted.unwrap_or(" cats is"), "{stop:?} by {size}");
        }
    }
}

/// The numbers are from Python's tokenizers 0.23.3. With `fancy-regex`, the library gave up within such a long run.
#[test]
fn a_million_spaces_are_tokenized_like_a_few() {
    let ids = demo().encode(&(" ".repeat(1_000_000) + "x"), true).unwrap();
    assert_eq!(ids.len(), 62_502);
    assert!(ids[..62_499].iter().all(|&id| id == 987), "16 spaces each");
    assert_eq!(ids[62_499..], [263, 282, 482]);
}

#[test]
fn a_text_has_only_tokens_of_the_models() {
    let mut text = Text::parse(Path::new("tokenizer.json"), &changed(|_| ()).to_string()).unwrap();
    assert_eq!(text.encode(" ".repeat(16).as_str(), true).unwrap(), [987]);
    text.limit_vocabulary(987);
    let error = text.encode(" ".repeat(16).as_str(), true).unwrap_err();
    assert_eq!(error.code(), 1);
    assert!(error.to_string().contains("token 987 (\"ĠĠĠĠĠĠĠĠĠĠĠĠĠĠĠĠ\")"), "{error}");
    assert!(error.to_string().contains("0 to 986"), "{error}");
}

#[test]
fn only_numbers_in_use_are_compared() {
    let huge = |id: u32| load(&changed(|file| file["model"]["vocab"]["Ġx!"] = json!(id)));
    assert_eq!(huge(u32::MAX - 1).first_difference(&huge(u32::MAX - 1)), None);
    let (id, own, others) = huge(5000).first_difference(&demo()).unwrap();
    assert_eq!((id, own.as_deref(), others), (5000, Some("Ġx!"), None));
}

/// The message that refuses a changed `tokenizer.json`.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let error = Text::parse(Path::new("folder/tokenizer.json"), &changed(change).to_string()).err().unwrap();
    assert_eq!(error.code(), 3, "{error}");
    assert!(error.to_string().contains("folder/tokenizer.json"), "{error}");
    error.to_string()
}

#[test]
fn files_that_make_the_library_panic_are_refused() {
    let empty = refused(|file| {
        file["model"]["vocab"] = json!({});
        file["model"]["merges"] = json!([]);
        file["added_tokens"] = json!([]);
    });
    assert!(empty.contains("no tokens"), "{empty}");
    let merge = refused(|file| file["model"]["merges"] = json!([["Ġ", "Ġthe"]]));
    assert!(merge.contains("\"ĠĠthe\""), "{merge}");
    // A trial text finds this one: a table of replacements with an offset outside of the table.
    let table = refused(|file| {
        file["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": "EAAAAP////////////////////8=" });
    });
    assert!(table.contains("the tokenizers library fails on it"), "{table}");
    let space = refused(|file| {
        let tokens = file["added_tokens"].as_array_mut().unwrap();
        let mut token = tokens[0].clone();
        token["content"] = json!("  ");
        token["lstrip"] = json!(true);
        token["special"] = json!(false);
        tokens.push(token);
    });
    assert!(space.contains("takes the spaces before it"), "{space}");
}

/// The decoder of the library panics on these settings, although they have a meaning.
#[test]
fn ends_are_stripped_of_pieces_of_any_length() {
    let strip = |start: usize, stop: usize| {
        load(&changed(|file| {
            file["decoder"] = json!({ "type": "Strip", "content": "a", "start": start, "stop": stop })
        }))
    };
    let a = demo().encode("a", true).unwrap();
    assert_eq!(strip(0, 2).decode(&a).unwrap(), "");
    assert_eq!(strip(1, 1).decode(&a).unwrap(), "");
    assert_eq!(strip(0, 0).decode(&a).unwrap(), "a");
}

/// Some models mark special tokens in `tokenizer_config.json` only. Transformers uses these marks, and so do we.
#[test]
fn special_tokens_of_the_configuration_count() {
    let end = json!({ "id": 1, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": false });
    let vocab = json!({ "a": 0, "<|im_end|>": 1, "<tool>": 2, "<unk>": 3 });
    let plain = json!({ "version": "1.0", "added_tokens": [end],
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" } });
    let text = |config: Value| {
        let mut text = Text::parse(Path::new("tokenizer.json"), &plain.to_string()).unwrap();
        let warnings = text.configure(Path::new("tokenizer.json"), &config).unwrap();
        (text, warnings)
    };
    let (before, _) = text(json!({}));
    assert_eq!(before.decode(&[1]).unwrap(), "<|im_end|>", "text by tokenizer.json alone");
    assert_eq!(before.encode("a<tool>", false).unwrap(), [3]);
    for config in [
        json!({ "eos_token": "<|im_end|>" }),
        json!({ "eos_token": { "content": "<|im_end|>", "normalized": true } }),
        json!({ "additional_special_tokens": ["<|im_end|>"] }),
        json!({ "extra_special_tokens": { "end": "<|im_end|>" } }),
        json!({ "added_tokens_decoder": { "1": { "content": "<|im_end|>", "special": true } } }),
    ] {
        let (text, warnings) = text(config.clone());
        assert_eq!((text.decode(&[1]).unwrap().as_str(), warnings), ("", Vec::new()), "{config}");
        let token = &text.tokenizer.get_added_vocabulary().get_added_tokens_decoder()[&1];
        assert!(token.special && !token.normalized, "the other settings are those of tokenizer.json: {token:?}");
    }
    let (text, warnings) = text(json!({ "additional_special_tokens": ["<tool>", "<no>"], "pad_token": null }));
    assert_eq!(text.encode("a<tool>", false).unwrap(), [0, 2], "encode finds it in a text");
    assert!(warnings.len() == 1 && warnings[0].contains("the special tokens <no>, which"), "{warnings:?}");
}

#[test]
fn settings_for_whole_texts_give_warnings() {
    let config = json!({ "clean_up_tokenization_spaces": true });
    let mut demo = Text::parse(Path::new("tokenizer.json"), &changed(|_| ()).to_string()).unwrap();
    assert_eq!(demo.configure(Path::new(""), &config).unwrap(), [] as [String; 0], "not for BPE");
    let words = json!({ "version": "1.0", "added_tokens": [],
        "model": { "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Fuse" }, { "type": "Replace", "pattern": { "String": " ." }, "content": "." } ] } });
    let mut words = Text::parse(Path::new("tokenizer.json"), &words.to_string()).unwrap();
    let warnings = words.configure(Path::new(""), &config).unwrap();
    assert!(warnings.len() == 2 && warnings[0].contains("clean_up"), "{warnings:?}");
    assert!(warnings[1].contains("Replace behind Fuse"), "{warnings:?}");
}

/// A whole character belongs to the prompt. A character that may still be completed belongs to the text.
#[test]
fn a_prompt_may_end_within_a_character() {
    let demo_bytes = |bytes: &[u8]| {
        let whole = demo().encode("\u{fffd}🙂", false).unwrap();
        // EF BF BD F0 9F 99 82, each a token of its own
        assert_eq!(whole.len(), 7, "bytes must be tokens of their own for this test");
        bytes
            .iter()
            .map(|byte| whole[[0xEF, 0xBF, 0xBD, 0xF0, 0x9F, 0x99, 0x82].iter().position(|b| b == byte).unwrap()])
            .collect::<Vec<i32>>()
    };
    for (prompt, text, given) in [
        (&[0xEF, 0xBF, 0xBD][..], &[][..], ""),
        (&[0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD], &[0xF0, 0x9F, 0x99, 0x82], "🙂"),
        (&[0xBD], &[0xF0, 0x9F, 0x99, 0x82], "🙂"),
        (&[0xEF, 0xBF, 0xBD, 0xF0, 0x9F], &[0x99, 0x82], "🙂"),
        (&[0xEF, 0xBF, 0xBD, 0xF0], &[0x9F, 0x99, 0x82], "🙂"),
        (&[0xEF, 0xBF, 0xBD, 0xF0, 0x9F, 0x99], &[0xEF], "\u{fffd}\u{fffd}"),
    ] {
        let mut stream = TextStream::new(demo()).unwrap();
        stream.prompt(&demo_bytes(prompt)).unwrap();
        assert_eq!(streamed(&mut stream, &demo_bytes(text), 1).0, given, "{prompt:x?}");
    }
}

#[test]
fn start_and_end_tokens_that_are_not_added_give_warnings() {
    let token = json!({ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let tokenizer = |single: &[&Value]| {
        load(&changed(|file| {
            file["post_processor"]["single"] = json!(single);
            file["post_processor"]["special_tokens"] =
                json!({ "<|endoftext|>": { "id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"] } });
        }))
    };
    let (none, start, both) = (tokenizer(&[&text]), tokenizer(&[&token, &text]), tokenizer(&[&token, &text, &token]));
    for bos in [json!("<s>"), json!({ "content": "<s>", "lstrip": false })] {
        let config = json!({ "add_bos_token": true, "add_eos_token": false, "bos_token": bos });
        let warnings = none.unmet_settings(&config);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("asks for the start token \"<s>\" (add_bos_token)"), "{warnings:?}");
        assert_eq!(start.unmet_settings(&config), [] as [String; 0]);
        assert_eq!(both.unmet_settings(&config).len(), 1, "an end token that the configuration does not ask for");
    }
    let config = json!({ "add_bos_token": false, "add_eos_token": true, "eos_token": null });
    assert!(start.unmet_settings(&config)[0].contains("asks for no start token"));
    assert!(start.unmet_settings(&config)[1].contains("asks for the end token (add_eos_token)"));
    assert_eq!(none.unmet_settings(&json!({})), [] as [String; 0]);
    assert_eq!(both.unmet_settings(&Value::Null), [] as [String; 0]);
    // Only the post-processor decides, as in transformers 5, so the token is not added twice.
    assert_eq!(start.encode("a", true).unwrap().iter().filter(|&&id| id == 0).count(), 1);
}

/// The demo's tokenizer with control tokens.
fn with_control_tokens() -> Text {
    let added = changed(|file| {
        for (id, name) in (4096..).zip(["<|im_start|>", "<|im_end|>"]) {
            file["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            }));
        }
        file["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": 4098, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false
        }));
    });
    Text::parse(Path::new("tokenizer.json"), &added.to_string()).unwrap()
}

#[test]
fn special_tokens_can_be_plain_text() {
    let text = with_control_tokens();
    let sample = "a<|im_end|> <tool>b";
    let (parsed, plain) = (text.encode(sample, true).unwrap(), text.encode_plain(sample, true).unwrap());
    assert_eq!(parsed.iter().filter(|&&id| id == 4097).count(), 1);
    assert!(!plain.contains(&4097) && plain.contains(&4098), "{plain:?}");
    assert_eq!(text.decode(&plain).unwrap(), sample);
    assert_eq!(text.decode(&parsed).unwrap(), "a <tool>b");
    assert_eq!(text.decode_special(&parsed).unwrap(), sample);
    for sample in ["", "a b  c\n漢字 🙂", "  x"] {
        assert_eq!(text.encode(sample, true).unwrap(), text.encode_plain(sample, true).unwrap(), "{sample:?}");
    }
}

#[test]
fn a_stream_can_show_special_tokens() {
    let text = Arc::new(with_control_tokens());
    let sample = "<|im_start|>Größe 🙂<|im_end|>\nb<|im_end|>";
    let tokens = text.encode(sample, true).unwrap();
    let mut stream = TextStream::new(text).unwrap();
    stream.show_special(true).unwrap();
    for size in [1, 3, tokens.len()] {
        stream.prompt(&[]).unwrap();
        assert_eq!(streamed(&mut stream, &tokens, size).0, sample);
    }
    stream.set_stops(vec!["<|im_end|>\n".into()]).unwrap();
    assert_eq!(streamed(&mut stream, &tokens, 1), ("<|im_start|>Größe 🙂".into(), true));
    stream.push(&tokens[..1]).unwrap();
    assert_eq!(stream.show_special(false).unwrap_err().code(), 1);
    stream.finish().unwrap();
    stream.show_special(false).unwrap();
    stream.set_stops(Vec::new()).unwrap();
    assert_eq!(streamed(&mut stream, &tokens, 1).0, "Größe 🙂\nb");
}
