//! What clients ask for, and when. All of it follows from seeds.

use std::ops::Range;

/// A text to continue.
pub struct Request {
    pub index: u64,
    pub prompt: Vec<i32>,
    /// How many tokens are wanted.
    pub tokens: usize,
    /// When it arrived.
    pub arrived: f64,
}

/// The texts that requests are drawn from, and their lengths.
#[derive(Clone)]
pub struct Mix {
    /// The prompts. Each is as likely as any other.
    pub prompts: Vec<Vec<i32>>,
    /// The share of requests with a long prompt: several prompts, one behind another.
    pub long: f64,
    /// The lengths of long prompts. Each is as likely as any other.
    pub long_lengths: Range<usize>,
    /// The mean number of tokens that are wanted. It is drawn between a half and one and a half of it.
    pub tokens: usize,
    pub seed: u64,
}

impl Mix {
    /// A request by its index: its prompt, and how many tokens are wanted.
    pub fn request(&self, index: u64) -> (Vec<i32>, usize) {
        let mut random = fastrand::Rng::with_seed(self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let tokens = random.usize(self.tokens.div_ceil(2)..=self.tokens + self.tokens / 2);
        let is_long = random.f64() < self.long;
        let mut prompt = self.prompts[random.usize(0..self.prompts.len())].clone();
        if is_long {
            let length = random.usize(self.long_lengths.clone());
            while prompt.len() < length {
                prompt.extend(&self.prompts[random.usize(0..self.prompts.len())]);
            }
            prompt.truncate(length);
        }
        (prompt, tokens)
    }
}

/// The times of arrivals that do not depend on each other: a Poisson process.
pub struct Arrivals {
    random: fastrand::Rng,
    rate: f64,
    at: f64,
}

impl Arrivals {
    /// So many arrivals per second.
    pub fn new(rate: f64, seed: u64) -> Arrivals {
        Arrivals { random: fastrand::Rng::with_seed(seed), rate, at: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        self.at -= (1.0 - self.random.f64()).ln() / self.rate;
        Some(self.at)
    }
}

/// What a client does next.
pub enum Next {
    Ask(Request),
    /// Nothing happens before this time.
    Wait(f64),
}

/// The requests of one measurement. The measured time is a window: requests that arrive in it are measured until their
/// end, while further ones keep up the load.
pub struct Load {
    mix: Mix,
    window: Range<f64>,
    /// `None` for a closed loop, in which a request arrives as soon as somebody can take it.
    arrivals: Option<std::iter::Peekable<Arrivals>>,
    taken: u64,
    /// Requests of the window that have been taken and have not ended.
    open: usize,
}

impl Load {
    pub fn new(mix: Mix, window: Range<f64>, rate: Option<f64>) -> Load {
        let arrivals = rate.map(|rate| Arrivals::new(rate, mix.seed).peekable());
        Load { mix, window, arrivals, taken: 0, open: 0 }
    }

    /// The next request for somebody who has time for it.
    pub fn next(&mut self, now: f64) -> Next {
        let arrived = match &mut self.arrivals {
            None => now,
            Some(arrivals) => match arrivals.next_if(|&at| at <= now) {
                Some(at) => at,
                None => return Next::Wait(*arrivals.peek().expect("arrivals do not end")),
            },
        };
        let (prompt, tokens) = self.mix.request(self.taken);
        let request = Request { index: self.taken, prompt, tokens, arrived };
        self.taken += 1;
        self.open += usize::from(self.window.contains(&arrived));
        Next::Ask(request)
    }

    /// A request that arrived at this time has all its tokens.
    pub fn ended(&mut self, arrived: f64) {
        self.open -= usize::from(self.window.contains(&arrived));
    }

    /// Whether all that is measured has ended.
    pub fn is_over(&mut self, now: f64) -> bool {
        let end = self.window.end;
        let taken = self.arrivals.as_mut().is_none_or(|arrivals| arrivals.peek().is_some_and(|&at| at >= end));
        now >= end && taken && self.open == 0
    }
}
