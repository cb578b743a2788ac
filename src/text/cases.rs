//! A test of text streams over all kinds of tokenizers and random tokens: the text of the prompt and the text of the
//! stream together are the text of all tokens.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::tests::{demo, load};
use super::{Piece, Text, TextStream};

/// The first tokens of each tokenizer, except that of the demo.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "<|im_end|>"];

struct TokenizerCase {
    name: &'static str,
    text: Arc<Text>,
    /// The expected text of all tokens.
    expected: fn(&Text, &[i32]) -> String,
    /// Whether the text of a stream depends on more of the prompt than that it ends with a whole word.
    needs_prompt: bool,
}

fn case(name: &'static str, text: Arc<Text>) -> TokenizerCase {
    TokenizerCase { name, text, expected: by_library, needs_prompt: false }
}

static CASES: LazyLock<Vec<TokenizerCase>> = LazyLock::new(|| {
    let fuse = || json!({ "type": "Fuse" });
    let strip = |start: usize, stop: usize| json!({ "type": "Strip", "content": " ", "start": start, "stop": stop });
    let spaces = || json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
    let sequence = |decoders: &[Value]| json!({ "type": "Sequence", "decoders": decoders });
    let bytes = || json!({ "type": "ByteFallback" });
    let metaspace = |scheme: &str| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme });
    let ctc = json!({ "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true });
    let wordpiece = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let suffixes = json!({ "type": "BPEDecoder", "suffix": "</w>" });
    let spm = ["▁cats", "▁and", "s", "▁", "▁▁", ".", "é", "漢", "\u{fffd}", "<0x"];
    let spm: Vec<String> =
        spm.map(String::from).into_iter().chain(BYTES.map(|byte| format!("<0x{byte:02X}>"))).collect();
    let few = ["▁cats", "▁and", "s", "▁", "▁▁", "é"];
    let first = TokenizerCase {
        expected: by_sentencepiece_with_prefix,
        ..case("sentencepiece with a prefix", bpe(&spm, &sequence(&[spaces(), bytes(), fuse(), strip(1, 0)])))
    };
    let without = TokenizerCase {
        expected: by_sentencepiece,
        ..case("sentencepiece", bpe(&spm, &sequence(&[spaces(), bytes(), fuse()])))
    };
    let ends = TokenizerCase {
        expected: |text, ids| stripped(&joined(text, ids)).to_owned(),
        needs_prompt: true,
        ..case("stripped at both ends", words(&["cats ", " and", " "], &sequence(&[fuse(), strip(2, 2)])))
    };
    vec![
        case("byte-level BPE", demo()),
        first,
        without,
        case("WordPiece", words(&["cats", "and", "##s", "##ing", ".", "'", "n't", "do not"], &wordpiece)),
        case("Unigram", unigram(&few, &metaspace("always"))),
        case("Metaspace without a prefix", words(&few, &metaspace("never"))),
        TokenizerCase {
            needs_prompt: true,
            ..case("suffixes of words", words(&["cats</w>", "and</w>", "th", "e</w>", ".</w>"], &suffixes))
        },
        case("no decoder", words(&["cats", "and", "."], &Value::Null)),
        ends,
        TokenizerCase { needs_prompt: true, ..case("CTC", words(&["c", "a", "t", "|", "<pad>"], &ctc)) },
    ]
});

/// Bytes of characters with one to four bytes, and bytes that are not part of a character.
const BYTES: [u8; 14] = [0x0A, 0x20, 0x41, 0xC3, 0xA9, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x99, 0x82, 0x80, 0xFF];

fn file(model: Value, decoder: &Value) -> Arc<Text> {
    let special = |(id, name): (usize, &&str)| {
        json!({ "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true })
    };
    let special: Vec<Value> = SPECIAL.iter().enumerate().map(special).collect();
    load(&json!({ "version": "1.0", "added_tokens": special, "decoder": decoder, "model": model }))
}

/// A vocabulary of the special tokens and these pieces.
fn vocabulary(pieces: &[impl AsRef<str>]) -> Map<String, Value> {
    let pieces = SPECIAL.into_iter().chain(pieces.iter().map(AsRef::as_ref));
    pieces.enumerate().map(|(id, piece)| (piece.to_owned(), id.into())).collect()
}

fn words(pieces: &[&str], decoder: &Value) -> Arc<Text> {
    file(json!({ "type": "WordLevel", "vocab": vocabulary(pieces), "unk_token": "<unk>" }), decoder)
}

fn bpe(pieces: &[String], decoder: &Value) -> Arc<Text> {
    file(json!({ "type": "BPE", "vocab": vocabulary(pieces), "merges": [], "byte_fallback": true }), decoder)
}

fn unigram(pieces: &[&str], decoder: &Value) -> Arc<Text> {
    let scored: Vec<Value> = SPECIAL.iter().chain(pieces).map(|piece| json!([piece, -1.0])).collect();
    file(json!({ "type": "Unigram", "unk_id": 0, "vocab": scored }), decoder)
}

fn by_library(text: &Text, ids: &[i32]) -> String {
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    text.tokenizer.decode(&ids, true).unwrap()
}

fn joined(text: &Text, ids: &[i32]) -> String {
    ids.iter().filter_map(|&id| text.piece(id as u32).text()).collect()
}

/// Character by character, as sentencepiece does. The library loses characters beside invalid bytes.
fn by_sentencepiece(text: &Text, ids: &[i32]) -> String {
    let (mut out, mut bytes) = (String::new(), Vec::new());
    let end = Piece::Text(String::new());
    for piece in ids.iter().map(|&id| text.piece(id as u32)).chain([end]).filter_map(Piece::text) {
        if piece.len() == 6 && piece.starts_with("<0x") {
            bytes.push(u8::from_str_radix(&piece[3..5], 16).unwrap());
            continue;
        }
        while !bytes.is_empty() {
            let whole = (1..=bytes.len().min(4)).find_map(|length| str::from_utf8(&bytes[..length]).ok());
            let (character, length) = whole.map_or(("\u{fffd}", 1), |whole| (whole, whole.len()));
            out.push_str(character);
            bytes.drain(..length);
        }
        out.push_str(&piece.replace('▁', " "));
    }
    out
}

fn by_sentencepiece_with_prefix(text: &Text, ids: &[i32]) -> String {
    let whole = by_sentencepiece(text, ids);
    whole.strip_prefix(' ').unwrap_or(&whole).to_owned()
}

/// A text without up to two spaces at each end.
fn stripped(mut text: &str) -> &str {
    for _ in 0..2 {
        text = text.strip_prefix(' ').unwrap_or(text);
    }
    for _ in 0..2 {
        text = text.strip_suffix(' ').unwrap_or(text);
    }
    text
}

/// Tokens of a tokenizer, chosen by any numbers. Half of them are among the first 260, which are special tokens and
/// bytes in the demo's tokenizer.
fn ids(case: &TokenizerCase, numbers: &[usize]) -> Vec<i32> {
    let size = case.text.vocab_size();
    let id = |&number: &usize| number / 2 % if number % 2 == 0 { size } else { size.min(260) };
    numbers.iter().map(|number| id(number) as i32).collect()
}

/// The text of a stream for tokens that come in pieces of these sizes.
fn streamed(stream: &mut TextStream, mut ids: &[i32], sizes: &[usize]) -> String {
    let mut out = String::new();
    for &size in sizes.iter().cycle() {
        let (now, later) = ids.split_at(size.min(ids.len()));
        out.push_str(stream.push(now).unwrap());
        ids = later;
        if ids.is_empty() {
            break;
        }
    }
    out + stream.finish().unwrap()
}

fn numbers() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<usize>(), 0..80)
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..9, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn prompt_and_text_are_the_whole(case in 0..CASES.len(), numbers in numbers(), cut: usize, sizes in sizes()) {
        let case = &CASES[case];
        let ids = ids(case, &numbers);
        let whole = (case.expected)(&case.text, &ids);
        prop_assert_eq!(&case.text.decode(&ids).unwrap(), &whole, "{}", case.name);
        let (before, behind) = ids.split_at(cut % (ids.len() + 1));
        let prompt = case.text.decode(before).unwrap();
        let mut stream = TextStream::new(case.text.clone()).unwrap();
        stream.prompt(before).unwrap();
        let text = streamed(&mut stream, behind, &sizes);
        if prompt.ends_with('\u{fffd}') && prompt.clone() + &text != whole {
            // The text has a character that began in the prompt.
            let certain = prompt.trim_end_matches('\u{fffd}');
            prop_assert!(whole.starts_with(certain) && whole.ends_with(&text), "{}: {text:?} of {whole:?}", case.name);
            return Ok(());
        }
        prop_assert_eq!(prompt.clone() + &text, whole.clone(), "{}", case.name);
        if !case.needs_prompt && !prompt.is_empty() {
            let text = streamed(&mut TextStream::new(case.text.clone()).unwrap(), behind, &sizes);
            prop_assert_eq!(prompt + &text, whole, "{}, behind an unknown prompt", case.name);
        }
    }
}
