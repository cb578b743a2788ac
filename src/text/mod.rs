//! Text to tokens and back, with the `tokenizer.json` beside a model.

mod check;
mod decoder;
#[cfg(test)]
mod forms;
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

use serde_json::Value;
use tokenizers::{Model, ModelWrapper, Tokenizer};

use self::quiet::quietly;
pub use self::stream::TextStream;
use crate::error::{Error, Result};
use crate::files;

/// Texts with which a tokenizer is tried: what makes it panic here would do so with any text.
const TRIALS: [&str; 2] = ["", "A b, c.  1,000 größer\n漢字 🙂"];

/// The tokenizer of an engine.
pub struct Text {
    tokenizer: Tokenizer,
    vocab_size: usize,
}

/// What a token is to a decoder.
enum Piece {
    Text(String),
    /// The name of a special token, which is no text.
    Special(String),
    /// Nothing has this number.
    None,
}

impl Piece {
    fn text(self) -> Option<String> {
        if let Piece::Text(piece) = self { Some(piece) } else { None }
    }
}

impl Text {
    /// Load a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(path, &files::tokenizer(path).map_err(Error::Model)?)
    }

    /// Make a tokenizer from the content of a `tokenizer.json`.
    pub fn parse(path: &Path, content: &str) -> Result<Self> {
        check::check(content)
            .and_then(|()| quietly(|| read(content)))
            .and_then(|tokenizer| {
                let last = tokenizer.get_vocab(true).into_values().max();
                let text = Text { vocab_size: last.ok_or("it has no tokens")? as usize + 1, tokenizer };
                text.try_out()?;
                Ok(text)
            })
            .map_err(|why| refuse(path, why))
    }

    /// Make the tokens special that the `tokenizer_config.json` beside it calls so. Returns what of that file is not done.
    pub fn configure(&mut self, path: &Path, config: &Value) -> Result<Vec<String>> {
        let missing = quietly(|| special::set(&mut self.tokenizer, config)).map_err(|why| refuse(path, why))?;
        self.try_out().map_err(|why| refuse(path, why))?;
        let mut warnings = self.not_as_configured(config);
        if !missing.is_empty() {
            warnings.push(format!(
                "tokenizer_config.json names the special tokens {}, which tokenizer.json does not have, so they are \
                 text here",
                missing.join(", ")
            ));
        }
        if config["clean_up_tokenization_spaces"] == true && !matches!(self.tokenizer.get_model(), ModelWrapper::BPE(_))
        {
            warnings.push(
                "tokenizer_config.json asks for clean_up_tokenization_spaces, which takes spaces before punctuation \
                 away; here they stay, since a stream has given them out by then"
                    .into(),
            );
        }
        if decoder::replaces_across_pieces(self.tokenizer.get_decoder()) {
            warnings.push(
                "the decoder of tokenizer.json replaces text across tokens (Replace behind Fuse), which a text stream \
                 cannot take back; decode whole texts with cos_engine_decode"
                    .into(),
            );
        }
        Ok(warnings)
    }

    /// Whether it works at all.
    fn try_out(&self) -> Result<(), String> {
        let added = self.tokenizer.get_added_vocabulary();
        for (id, token) in added.get_added_tokens_decoder() {
            // The library looks for the space before it, and panics where that belongs to another token.
            if token.lstrip && added.simple_id_to_token(*id).is_some_and(|piece| piece.trim().is_empty()) {
                return Err(format!("its added token {:?} is a space that takes the spaces before it", token.content));
            }
        }
        for trial in TRIALS {
            // That it has no token for some of it is no fault.
            let ids =
                quietly(|| Ok(self.tokenizer.encode_fast(trial, true).map(|encoding| encoding.get_ids().to_vec())))?;
            let pieces = ids.unwrap_or_default().into_iter().filter_map(|id| self.piece(id).text()).collect::<Vec<_>>();
            quietly(|| Ok(decoder::decode(self.tokenizer.get_decoder(), pieces)))?.ok();
        }
        Ok(())
    }

    /// The tokens are 0 to this less 1.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Let only the first tokens count, as many as the models have.
    pub fn limit_vocabulary(&mut self, tokens: usize) {
        self.vocab_size = self.vocab_size.min(tokens);
    }

    /// The tokens of a text; with `special`, those that the tokenizer adds around it too.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let refuse = |why| Error::InvalidArgument(format!("the text cannot be encoded: {why}"));
        let encoding = quietly(|| self.tokenizer.encode_fast(text, special)).map_err(refuse)?;
        let known = |&id: &u32| match i32::try_from(id) {
            Ok(token) if (id as usize) < self.vocab_size => Ok(token),
            _ => Err(refuse(format!(
                "it has the token {id} ({:?}), and the vocabulary of the models has the tokens 0 to {}",
                self.tokenizer.id_to_token(id).unwrap_or_default(),
                self.vocab_size - 1
            ))),
        };
        encoding.get_ids().iter().map(known).collect()
    }

    /// The text of tokens, without special tokens.
    pub fn decode(&self, tokens: &[i32]) -> Result<String> {
        let pieces: Vec<_> = self.ids(tokens)?.into_iter().filter_map(|id| self.piece(id).text()).collect();
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
        // The library goes by what a token is normalized to, and then takes some special ones for text.
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

    /// A piece that stands for a text before other pieces.
    fn word(&self) -> String {
        decoder::word(self.tokenizer.get_decoder())
    }

    /// The first token that two tokenizers disagree on: its id, and what it is to each.
    pub fn first_difference(&self, other: &Text) -> Option<(u32, Option<String>, Option<String>)> {
        // Only ids that are there are looked at: a file may have one token, and number it four billion.
        let ids = |text: &Text| text.tokenizer.get_vocab(true).into_values();
        let ids: BTreeSet<u32> = ids(self).chain(ids(other)).collect();
        ids.into_iter().find_map(|id| {
            let (own, others) = (self.tokenizer.id_to_token(id), other.tokenizer.id_to_token(id));
            (own != others).then_some((id, own, others))
        })
    }

    /// What `tokenizer_config.json` asks for around a text, and [`Text::encode`] does not do.
    ///
    /// The post-processor of `tokenizer.json` alone decides, as in transformers 5. So no token is ever there twice.
    fn not_as_configured(&self, config: &Value) -> Vec<String> {
        let Some(added) = self.added() else { return Vec::new() };
        let ends = [("add_bos_token", "bos_token", "start", "before"), ("add_eos_token", "eos_token", "end", "behind")];
        let differs = |((wish, key, end, side), adds): ((&str, &str, &str, &str), bool)| {
            let asked = config[wish].as_bool().filter(|&asked| asked != adds)?;
            let name = config[key].as_str().or(config[key]["content"].as_str());
            let name = name.map(|name| format!(" {name:?}")).unwrap_or_default();
            let (asks, does, mend) = if asked {
                ("the", "none", format!("put the token {side} the prompt, or into the post_processor"))
            } else {
                ("no", "one", "take it from the prompt, or out of the post_processor".to_owned())
            };
            Some(format!(
                "tokenizer_config.json asks for {asks} {end} token{name} ({wish}), but the post_processor of \
                 tokenizer.json adds {does}, and cos_engine_encode follows that; {mend}"
            ))
        };
        ends.into_iter().zip(added).filter_map(differs).collect()
    }

    /// Whether the tokenizer adds tokens before and behind a text.
    fn added(&self) -> Option<[bool; 2]> {
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
    // Some files carry settings of their training; a prompt must be neither cut nor filled up.
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}
