//! How many tokens of prompts and of batch sessions a pass takes beside interactive sessions that decode.

use crate::plan::pass_times::PassTimes;

/// A pass takes at most so many times as long with prompts as without.
const WITH_PROMPTS: f64 = 3.0;

/// A pass takes at most so many times as long with batch sessions as without.
const WITH_BATCH: f64 = 2.0;

/// Tokens of prompts in a pass, at least, so that a prompt is not cut into too many passes.
const LEAST_PROMPT: usize = 32;

/// Most tokens of a pass, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All of them.
    pub all: usize,
    /// Those of models that catch up.
    pub wide: usize,
    /// Those of prompts.
    pub prompts: usize,
    /// Those of batch sessions, prompts included. One batch session has room in any case, so that none starves.
    pub batch: usize,
}

/// What a model allows, and what its passes take.
pub struct PassLimits<'a> {
    /// Most tokens of a pass.
    pub all: usize,
    /// Most tokens of a sequence in a pass, and of all models that catch up.
    pub wide: usize,
    /// Most tokens of prompts in a pass.
    pub prompts: usize,
    /// Pass times of the models.
    pub times: &'a PassTimes,
    /// The number of the model there.
    pub model: usize,
}

impl PassLimits<'_> {
    /// Room for prompts, if interactive sessions decode so many tokens in the pass. Only these are spared a long pass.
    pub fn prompts(&self, decoding: usize) -> usize {
        if decoding == 0 {
            return self.prompts;
        }
        if self.times.at(self.model, decoding as f64).is_none() {
            return self.wide;
        }
        self.beside(decoding, WITH_PROMPTS, self.prompts).max(LEAST_PROMPT).min(self.prompts)
    }

    /// Room, if interactive sessions decode so many tokens and so many tokens of their prompts wait.
    pub fn room(&self, decoding: usize, waiting: usize) -> Room {
        let prompts = self.prompts(decoding);
        let interactive = decoding + waiting.min(prompts);
        let batch = if interactive == 0 { self.all } else { self.beside(interactive, WITH_BATCH, self.all) };
        Room { prompts, batch, ..self.empty() }
    }

    /// Room of a pass where nobody is to be spared.
    pub fn empty(&self) -> Room {
        Room { all: self.all, wide: self.wide, prompts: self.prompts, batch: self.all }
    }

    /// Most tokens that make a pass over `tokens` at most so many times as long. All, while nothing is known.
    fn beside(&self, tokens: usize, times: f64, most: usize) -> usize {
        let at = |more: usize| self.times.at(self.model, (tokens + more) as f64);
        let Some(alone) = at(0) else { return most };
        let fits = |more: usize| at(more).is_none_or(|seconds| seconds <= times * alone);
        let mut least = 0;
        let mut step = most.next_power_of_two();
        while step > 0 {
            if least + step <= most && fits(least + step) {
                least += step;
            }
            step /= 2;
        }
        least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times() -> PassTimes {
        let times = PassTimes::new(1);
        // Flat up to 64 tokens, then linear.
        for tokens in [1, 16, 32, 64, 128, 256, 512, 1024, 2048] {
            let seconds = 1.0 + tokens.max(64) as f64 / 64.0;
            (0..20).for_each(|_| times.record(0, tokens, seconds));
        }
        times
    }

    #[test]
    fn prompts_and_batch_sessions_make_passes_of_interactive_sessions_so_much_longer_only() {
        let times = times();
        let limits = PassLimits { all: 2048, wide: 512, prompts: 512, times: &times, model: 0 };
        assert_eq!(
            limits.room(0, 0),
            Room { all: 2048, wide: 512, prompts: 512, batch: 2048 },
            "nobody is to be spared"
        );
        // 2 seconds alone, 6 with prompts, and 4 with batch sessions: 320 and 192 tokens.
        let room = limits.room(16, 0);
        assert!((300..=305).contains(&room.prompts) && (174..=178).contains(&room.batch), "{room:?}");
        // A prompt of 48 more tokens is part of the interactive sessions' pass.
        assert!((126..=130).contains(&limits.room(16, 48).batch), "{:?}", limits.room(16, 48));
        // 17 seconds alone.
        assert_eq!(limits.room(1024, 0).prompts, 512);
    }

    #[test]
    fn a_prompt_goes_on_however_dear_its_tokens_are() {
        let times = PassTimes::new(1);
        assert_eq!(
            PassLimits { all: 256, wide: 128, prompts: 128, times: &times, model: 0 }.room(1, 0).prompts,
            128,
            "nothing is known"
        );
        [1, 64].into_iter().for_each(|tokens| times.record(0, tokens, tokens as f64));
        let limits = PassLimits { all: 256, wide: 128, prompts: 128, times: &times, model: 0 };
        assert_eq!(limits.room(1, 0), Room { all: 256, wide: 128, prompts: 32, batch: 1 });
        assert_eq!(PassLimits { prompts: 16, ..limits }.room(1, 0).prompts, 16);
    }
}
