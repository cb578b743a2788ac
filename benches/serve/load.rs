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

    /// A request that has been served in part, as those are that a measurement finds when it begins.
    pub fn first(&self, index: u64) -> (Vec<i32>, usize) {
        let (prompt, tokens) = self.request(index);
        (prompt, fastrand::Rng::with_seed(index).usize(1..=tokens))
    }
}

/// The times of arrivals that do not depend on each other: a Poisson process.
pub struct Poisson {
    random: fastrand::Rng,
    rate: f64,
    at: f64,
}

impl Poisson {
    /// So many arrivals per second.
    pub fn new(rate: f64, seed: u64) -> Poisson {
        Poisson { random: fastrand::Rng::with_seed(seed), rate, at: 0.0 }
    }
}

impl Iterator for Poisson {
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

/// The requests of one measurement, and when it begins and ends.
pub struct Load {
    mix: Mix,
    arrivals: Arrivals,
    /// Seconds before the measured time.
    warm_up: f64,
    /// The least seconds of it.
    seconds: f64,
    /// Requests that end before the measured time, and again within it, at least.
    requests: usize,
    taken: u64,
    ended: usize,
    /// When the measured time began, and how many requests had ended.
    start: Option<(f64, usize)>,
    end: Option<f64>,
}

/// When requests arrive.
enum Arrivals {
    /// As soon as one of so many clients can ask.
    Clients(usize),
    At(std::iter::Peekable<Poisson>),
}

impl Load {
    /// So many clients, each of which asks again as soon as it has been served. All begin at once, so each first
    /// request is cut to a random share: else all would be at the same place of their texts.
    pub fn closed(mix: Mix, clients: usize, seconds: f64) -> Load {
        Load::new(mix, Arrivals::Clients(clients), seconds / 4.0, seconds, clients)
    }

    /// Requests that arrive at a rate.
    pub fn open(mix: Mix, rate: f64, seconds: f64) -> Load {
        let poisson = Poisson::new(rate, mix.seed).peekable();
        Load::new(mix, Arrivals::At(poisson), seconds / 4.0, seconds, 0)
    }

    fn new(mix: Mix, arrivals: Arrivals, warm_up: f64, seconds: f64, requests: usize) -> Load {
        Load { mix, arrivals, warm_up, seconds, requests, taken: 0, ended: 0, start: None, end: None }
    }

    /// The next request for somebody who has time for it.
    pub fn next(&mut self, now: f64) -> Next {
        let (mut prompt, mut tokens) = (Vec::new(), 0);
        let arrived = match &mut self.arrivals {
            Arrivals::Clients(clients) => {
                if self.taken < *clients as u64 {
                    (prompt, tokens) = self.mix.first(self.taken);
                }
                now
            }
            Arrivals::At(times) => match times.next_if(|&at| at <= now) {
                Some(at) => at,
                None => return Next::Wait(*times.peek().expect("arrivals do not end")),
            },
        };
        if tokens == 0 {
            (prompt, tokens) = self.mix.request(self.taken);
        }
        self.taken += 1;
        Next::Ask(Request { index: self.taken, prompt, tokens, arrived })
    }

    /// A request has all its tokens.
    pub fn ended(&mut self) {
        self.ended += 1;
    }

    /// Whether the measured time has ended.
    pub fn is_over(&mut self, now: f64) -> bool {
        match self.start {
            None if now >= self.warm_up && self.ended >= self.requests => self.start = Some((now, self.ended)),
            Some((start, ended)) if now >= start + self.seconds && self.ended >= ended + self.requests => {
                self.end.get_or_insert(now);
            }
            _ => {}
        }
        self.end.is_some()
    }

    /// The measured time.
    pub fn window(&self) -> Range<f64> {
        self.start.map_or(f64::NAN, |start| start.0)..self.end.unwrap_or(f64::NAN)
    }

    /// When requests arrived within the measured time, or before, that nobody has taken.
    pub fn left(&mut self) -> Vec<f64> {
        let end = self.end.unwrap_or(0.0);
        match &mut self.arrivals {
            Arrivals::Clients(_) => Vec::new(),
            Arrivals::At(times) => std::iter::from_fn(|| times.next_if(|&at| at < end)).collect(),
        }
    }
}
