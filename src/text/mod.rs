//! Encodes text as tokens and decodes tokens to text, with the `tokenizer.json` beside a model.

mod bytes;
#[cfg(test)]
mod cases;
pub mod chat;
mod check;
mod decoder;
mod growth;
mod quiet;
mod special;
mod stops;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::{
    AddedVocabulary, Encoding, Model, ModelWrapper, NormalizedString, Normalizer, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer,
};

pub use self::bytes::TokenBytes;
use self::quiet::quietly;
pub use self::stream::TextStream;
use crate::error::{Error, Result};
use crate::files;

/// Texts to try a tokenizer with when it is loaded. A broken tokenizer panics on these already.
const TRIALS: [&str; 2] = ["", "A b, c.  1,000 größer\n漢字 🙂"];

/// The tokenizer of an engine.
pub struct Text {
    tokenizer: Tokenizer,
    /// The same for texts inside others, made when it is first used.
    inside: OnceLock<Tokenizer>,
    /// The added tokens for texts in which special tokens are plain text, once there is such a text.
    plain: OnceLock<AddedVocabulary>,
    /// The bytes of the longest token, once they are asked for.
    longest: OnceLock<usize>,
    vocab_size: usize,
}

/// What a token stands for in the vocabulary.
enum Piece {
    /// A piece of text, as the decoder expects it.
    Text(String),
    /// The name of a special token, which gives no text.
    Special(String),
    /// The vocabulary has no token with this number.
    None,
}

impl Piece {
    fn text(self) -> Option<String> {
        if let Piece::Text(piece) = self { Some(piece) } else { None }
    }

    fn text_or_name(self) -> Option<String> {
        if let Piece::Text(piece) | Piece::Special(piece) = self { Some(piece) } else { None }
    }
}

impl Text {
    /// Load a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(path, &files::tokenizer(path).map_err(Error::Model)?)
    }

    /// Make a tokenizer from the content of a `tokenizer.json`. Messages name `path`.
    pub fn parse(path: &Path, content: &str) -> Result<Self> {
        check::check(content)
            .and_then(|()| quietly(|| read(content)))
            .and_then(|tokenizer| {
                let last = tokenizer.get_vocab(true).into_values().max();
                let vocab_size = last.ok_or("it has no tokens")? as usize + 1;
                let once = (OnceLock::new(), OnceLock::new(), OnceLock::new());
                let text = Text { tokenizer, inside: once.0, plain: once.1, longest: once.2, vocab_size };
                text.try_out()?;
                Ok(text)
            })
            .map_err(|why| refuse(path, why))
    }

    /// Mark the tokens as special that the `tokenizer_config.json` names. Returns warnings about settings of that file
    /// that are not supported. Messages name `path`, the `tokenizer.json`.
    pub fn configure(&mut self, path: &Path, config: &Value) -> Result<Vec<String>> {
        self.plain = OnceLock::new();
        let missing = quietly(|| special::set(&mut self.tokenizer, config)).map_err(|why| refuse(path, why))?;
        self.try_out().map_err(|why| refuse(path, why))?;
        let mut warnings = self.unmet_settings(config);
        if !missing.is_empty() {
            warnings.push(format!(
                "tokenizer_config.json names the special tokens {}, which tokenizer.json does not have, so they are \
                 taken for text",
                missing.join(", ")
            ));
        }
        if config["clean_up_tokenization_spaces"] == true && !matches!(self.tokenizer.get_model(), ModelWrapper::BPE(_))
        {
            warnings.push(
                "tokenizer_config.json asks for clean_up_tokenization_spaces, which removes spaces before punctuation; \
                 the spaces stay here, because a text stream gives them out before the punctuation comes"
                    .into(),
            );
        }
        if decoder::replaces_across_pieces(self.tokenizer.get_decoder()) {
            warnings.push(
                "the decoder of tokenizer.json replaces text across tokens (Replace behind Fuse), but a text stream \
                 cannot take back text that it gave out; decode whole texts with cos_engine_decode"
                    .into(),
            );
        }
        Ok(warnings)
    }

    /// Encode and decode the trial texts, and return the reason if the tokenizer fails on them.
    fn try_out(&self) -> Result<(), String> {
        let added = self.tokenizer.get_added_vocabulary();
        for (id, token) in added.get_added_tokens_decoder() {
            // The library looks for spaces before such a token, and panics if they belong to another token.
            if token.lstrip && added.simple_id_to_token(*id).is_some_and(|piece| piece.trim().is_empty()) {
                return Err(format!(
                    "its added token {:?} is a space that takes the spaces before it; set its lstrip to false",
                    token.content
                ));
            }
        }
        for trial in TRIALS {
            // An error is fine: a vocabulary need not have tokens for all characters. A panic is not.
            let ids =
                quietly(|| Ok(self.tokenizer.encode_fast(trial, true).map(|encoding| encoding.get_ids().to_vec())))?;
            let pieces = ids.unwrap_or_default().into_iter().filter_map(|id| self.piece(id).text()).collect::<Vec<_>>();
            quietly(|| Ok(decoder::decode(self.tokenizer.get_decoder(), pieces)))?.ok();
        }
        Ok(())
    }

    /// The number of tokens. Tokens are 0 to this number - 1.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The bytes of the longest token, or a few more.
    pub fn longest_token(&self) -> usize {
        *self.longest.get_or_init(|| self.tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(1))
    }

    /// Allow only the first `tokens` tokens, which is how many the models have.
    pub fn limit_vocabulary(&mut self, tokens: usize) {
        self.vocab_size = self.vocab_size.min(tokens);
    }

    /// The tokens of a text. With `special`, they include the tokens that the post-processor adds around it.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        self.known(quietly(|| self.tokenizer.encode_fast(text, special)))
    }

    /// As [`Text::encode`], but names of special tokens in the text are plain text.
    pub fn encode_plain(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let plain = self.plain.get_or_init(|| {
            let mut added = self.tokenizer.get_added_vocabulary().clone();
            added.set_encode_special_tokens(true);
            added
        });
        let encoding =
            quietly(|| self.encode_pieces(plain.extract_and_normalize(self.tokenizer.get_normalizer(), text)));
        let tokens = encoding.as_ref().map_or(&[][..], Encoding::get_ids);
        let added = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut made = tokens.iter().filter_map(|id| added.get(id)).filter(|token| token.special);
        // Some models have special tokens in their own vocabulary too.
        if let Some(token) = made.find(|token| text.contains(&token.content)) {
            return Err(Error::InvalidArgument(format!(
                "the text has {:?}, and this tokenizer makes a special token of it even where it is plain text; remove \
                 it",
                token.content
            )));
        }
        self.known(encoding.and_then(|text| quietly(|| self.tokenizer.post_process(text, None, special))))
    }

    /// The tokens of a text by the model alone, without those that were added to its vocabulary.
    fn encode_without_added(&self, text: &str) -> Result<Vec<i32>> {
        self.known(quietly(|| {
            let mut text = NormalizedString::from(text);
            self.tokenizer.get_normalizer().map_or(Ok(()), |normalizer| normalizer.normalize(&mut text))?;
            self.encode_pieces(text.into())
        }))
    }

    fn encode_pieces(&self, mut pieces: PreTokenizedString) -> tokenizers::Result<Encoding> {
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        self.tokenizer.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
        pieces.into_encoding(None, 0, OffsetType::None)
    }

    /// The tokens of an encoded text, if the models have all of them.
    fn known(&self, encoding: Result<Encoding, String>) -> Result<Vec<i32>> {
        let refuse = |why| Error::InvalidArgument(format!("the text cannot be encoded: {why}"));
        let known = |&id: &u32| match i32::try_from(id) {
            Ok(token) if (id as usize) < self.vocab_size => Ok(token),
            _ => Err(refuse(format!(
                "it has the token {id} ({:?}), but the vocabulary of the models has the tokens 0 to {}",
                self.tokenizer.id_to_token(id).unwrap_or_default(),
                self.vocab_size - 1
            ))),
        };
        encoding.map_err(refuse)?.get_ids().iter().map(known).collect()
    }

    /// The text of tokens. Special tokens give no text.
    pub fn decode(&self, tokens: &[i32]) -> Result<String> {
        let pieces: Vec<_> = self.ids(tokens)?.into_iter().filter_map(|id| self.piece(id).text()).collect();
        self.decode_pieces(&pieces)
    }

    /// The text of tokens, with the names of special tokens.
    pub fn decode_special(&self, tokens: &[i32]) -> Result<String> {
        let pieces: Vec<_> = self.ids(tokens)?.into_iter().filter_map(|id| self.piece(id).text_or_name()).collect();
        self.decode_pieces(&pieces)
    }

    fn ids(&self, tokens: &[i32]) -> Result<Vec<u32>> {
        let convert = |&token: &i32| match u32::try_from(token) {
            Ok(id) if (id as usize) < self.vocab_size => Ok(id),
            _ => Err(Error::InvalidArgument(format!(
                "token {token} is not in the vocabulary, which has the tokens 0 to {}",
                self.vocab_size - 1
            ))),
        };
        tokens.iter().map(convert).collect()
    }

    fn piece(&self, id: u32) -> Piece {
        let added = self.tokenizer.get_added_vocabulary();
        // The library looks special tokens up by their normalized form, and so takes some of them for text.
        if let Some(token) = added.get_added_tokens_decoder().get(&id).filter(|token| token.special) {
            return Piece::Special(token.content.clone());
        }
        let piece = added.simple_id_to_token(id).or_else(|| self.tokenizer.get_model().id_to_token(id));
        piece.map_or(Piece::None, Piece::Text)
    }

    fn decode_pieces(&self, pieces: &[String]) -> Result<String> {
        quietly(|| decoder::decode(self.tokenizer.get_decoder(), pieces.to_vec()))
            .map_err(|why| Error::InvalidArgument(format!("the tokens cannot be decoded: {why}")))
    }

    /// A piece that stands for any text before other pieces: a whole word.
    fn word(&self) -> String {
        decoder::word(self.tokenizer.get_decoder())
    }

    /// The first token that differs between two tokenizers: its number, and its piece in each of them.
    pub fn first_difference(&self, other: &Text) -> Option<(u32, Option<String>, Option<String>)> {
        // Only numbers in use are compared, because a file may number its only token four billion.
        let ids = |text: &Text| text.tokenizer.get_vocab(true).into_values();
        let ids: BTreeSet<u32> = ids(self).chain(ids(other)).collect();
        ids.into_iter().find_map(|id| {
            let (one, another) = (self.tokenizer.id_to_token(id), other.tokenizer.id_to_token(id));
            (one != another).then_some((id, one, another))
        })
    }

    /// Warnings about start and end tokens that `tokenizer_config.json` asks for and [`Text::encode`] does not add, or
    /// the other way round.
    ///
    /// Only the post-processor of `tokenizer.json` decides, as in transformers 5. So a token is never added twice.
    fn unmet_settings(&self, config: &Value) -> Vec<String> {
        let Some(added) = self.adds_start_and_end() else { return Vec::new() };
        let ends = [("add_bos_token", "bos_token", "start", "before"), ("add_eos_token", "eos_token", "end", "behind")];
        let differs = |((wish, key, end, side), adds): ((&str, &str, &str, &str), bool)| {
            let asked = config[wish].as_bool().filter(|&asked| asked != adds)?;
            let name = config[key].as_str().or(config[key]["content"].as_str());
            let name = name.map(|name| format!(" {name:?}")).unwrap_or_default();
            let (asks, does, mend) = if asked {
                ("the", "none", format!("add the token {side} the prompt, or to the post_processor"))
            } else {
                ("no", "one", "remove the token from the prompt, or from the post_processor".to_owned())
            };
            Some(format!(
                "tokenizer_config.json asks for {asks} {end} token{name} ({wish}), but the post_processor of \
                 tokenizer.json adds {does}, and cos_engine_encode follows the post_processor; {mend}"
            ))
        };
        ends.into_iter().zip(added).filter_map(differs).collect()
    }

    /// Whether the tokenizer adds tokens before a text, and behind it.
    fn adds_start_and_end(&self) -> Option<[bool; 2]> {
        let encode = |special| quietly(|| self.tokenizer.encode_fast("a", special)).ok();
        let (with, without) = (encode(true)?, encode(false)?);
        let (with, without) = (with.get_ids(), without.get_ids());
        let before = with.windows(without.len().max(1)).position(|part| part == without)?;
        Some([before > 0, before + without.len() < with.len()])
    }
}

fn refuse(path: &Path, why: String) -> Error {
    Error::Model(format!("cannot use the tokenizer {}: {why}", path.display()))
}

fn read(content: &str) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_str(content)?;
    // Some files still have truncation and padding from training. A prompt must be neither cut nor padded.
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}
