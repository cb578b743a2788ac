//! The tokens of a tokenizer as llguidance takes them.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::error::{Error, Result};
use crate::text::{Text, TokenBytes};

/// The name of the token that ends a text.
const END: &str = "<|cos:end|>";

/// The bytes of all tokens, and the tokenizer.
pub struct TokenTrie {
    trie: TokTrie,
    text: Arc<Text>,
}

impl TokenTrie {
    /// The first `vocab_size` tokens of a tokenizer.
    pub fn new(text: &Arc<Text>, vocab_size: usize) -> Result<Self> {
        let unknown = |why| {
            Error::Unsupported(format!(
                "constraints need the bytes of each token, but {why}; use a constraint function instead"
            ))
        };
        let word = |token| match text.token_bytes(token as u32) {
            TokenBytes::Text(bytes) => bytes,
            // The marker keeps text from matching it.
            TokenBytes::Special(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
            TokenBytes::None => Vec::new(),
        };
        text.check_token_bytes().map_err(unknown)?;
        let mut words: Vec<Vec<u8>> = (0..vocab_size).map(word).collect();
        // The end of the text is a token of its own behind the vocabulary. Each session has stop tokens for it.
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], END.as_bytes()].concat());
        let info = TokRxInfo::new(vocab_size as u32 + 1, vocab_size as u32);
        Ok(TokenTrie { trie: TokTrie::from(&info, &words), text: text.clone() })
    }

    /// For llguidance.
    pub fn into_env(self) -> TokEnv {
        Arc::new(self)
    }
}

impl TokenizerEnv for TokenTrie {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| match self.text.encode_inside(text) {
            Some(tokens) => tokens,
            None => self.trie.greedy_tokenize(text.as_bytes()),
        })
    }
}
