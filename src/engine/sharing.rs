//! Which sessions route by numbers that they have in common.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::RoutesName;
use crate::decode::policy::Strategy;

/// The sessions of an engine that share routes. No two of them began with the same prompt: whoever draws several texts
/// for one prompt wants them to be independent.
#[derive(Default)]
pub struct Sharing {
    /// The engine's rule; `None`: sessions of `auto` share.
    rule: Option<RoutesName>,
    hasher: RandomState,
    /// Hashes of their first prompts. Two prompts of one hash are taken for the same.
    prompts: Mutex<HashSet<u64>>,
}

impl Sharing {
    /// Nobody shares yet.
    pub fn new(rule: Option<RoutesName>) -> Arc<Self> {
        Arc::new(Sharing { rule, ..Sharing::default() })
    }

    /// Whether a session is to share if it may. A strategy that the caller has pinned promises the same text for the
    /// same seed, so its sessions share on request only.
    pub fn wants(&self, asked: Option<RoutesName>, strategy: Strategy) -> bool {
        match asked.or(self.rule) {
            Some(name) => name == RoutesName::Shared,
            None => strategy == Strategy::Auto,
        }
    }

    /// Share, if no session that shares began with this prompt in this scope. The claim ends when it is dropped.
    pub fn claim(self: &Arc<Self>, scope: &str, prompt: &[i32]) -> Option<Claim> {
        let hash = self.hasher.hash_one((scope, prompt));
        self.prompts.lock().insert(hash).then(|| Claim { sharing: self.clone(), hash })
    }
}

/// A session shares routes, and no other one of its first prompt may.
pub struct Claim {
    sharing: Arc<Sharing>,
    hash: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.sharing.prompts.lock().remove(&self.hash);
    }
}

/// A seed that no other engine has.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_one_prompt_do_not_share() {
        let sharing = Sharing::new(None);
        let first = sharing.claim("", &[1, 2]);
        assert!(first.is_some() && sharing.claim("", &[1, 2]).is_none());
        assert!(sharing.claim("", &[1, 3]).is_some() && sharing.claim("tenant", &[1, 2]).is_some());
        drop(first);
        assert!(sharing.claim("", &[1, 2]).is_some());
    }

    #[test]
    fn the_session_decides_before_the_engine_and_the_engine_before_the_strategy() {
        use RoutesName::{Own, Shared};
        let wants = |rule, asked, strategy| Sharing::new(rule).wants(asked, strategy);
        assert!(wants(None, None, Strategy::Auto) && !wants(None, None, Strategy::Standard));
        assert!(!wants(Some(Own), None, Strategy::Auto) && wants(Some(Shared), None, Strategy::Standard));
        assert!(wants(Some(Own), Some(Shared), Strategy::Cos) && !wants(Some(Shared), Some(Own), Strategy::Auto));
    }
}
