//! What clients saw, in figures.

use std::ops::Range;

use serde::Deserialize;

/// A request as its client saw it. Times are seconds since the beginning of the measurement.
#[derive(Debug, Clone, Deserialize)]
pub struct Served {
    pub arrived: f64,
    /// When somebody took it.
    pub started: f64,
    /// When tokens came, and how many at once.
    pub bursts: Vec<(f64, usize)>,
    /// Whether all tokens came before the measurement ended.
    pub whole: bool,
    /// The most memory of its session. 0 for peers, which do not tell.
    #[serde(default)]
    pub bytes: usize,
}

/// The figures of measurements with the same load.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// For each measurement.
    pub tokens_per_second: Vec<f64>,
    pub requests_per_second: Vec<f64>,
    /// Milliseconds from arrival to the first tokens: the median and the 99th percentile of all measurements.
    pub first: [f64; 2],
    /// Milliseconds between two steps of a text. The tokens of a step come at once and are one arrival.
    pub between: [f64; 2],
    /// Milliseconds for each token after the first one, over a whole text.
    pub each: [f64; 2],
    /// The most bytes that sessions had together, if each had its most at once.
    pub bytes: usize,
    /// Requests whose first token was measured.
    pub requests: usize,
}

impl Served {
    fn tokens(&self) -> usize {
        self.bursts.iter().map(|burst| burst.1).sum()
    }

    /// When the last token came. Never, if nobody waited for it.
    fn ended(&self) -> f64 {
        self.bursts.last().filter(|_| self.whole).map_or(f64::INFINITY, |burst| burst.0)
    }
}

/// What clients saw in a measurement.
#[derive(Debug, Clone, Deserialize)]
pub struct Measurement {
    pub served: Vec<Served>,
    /// The measured time.
    pub window: Range<f64>,
}

/// The figures of these measurements. What came within the measured time counts, also for requests that arrived before
/// it, or ended after it.
pub fn figures(measurements: &[Measurement]) -> Figures {
    let [mut first, mut between, mut each] = [const { Vec::new() }; 3];
    let mut figures = Figures::default();
    for Measurement { served, window } in measurements {
        let length = window.end - window.start;
        figures.bytes = figures.bytes.max(held(served));
        let bursts = served.iter().flat_map(|request| &request.bursts);
        let tokens: usize = bursts.filter(|burst| window.contains(&burst.0)).map(|burst| burst.1).sum();
        let ended = served.iter().filter(|request| window.contains(&request.ended())).count();
        figures.tokens_per_second.push(tokens as f64 / length);
        figures.requests_per_second.push(ended as f64 / length);
        for request in served {
            let came = |at: f64| window.contains(&at);
            let Some(&(at, _)) = request.bursts.first() else { continue };
            figures.requests += usize::from(came(at));
            first.extend(came(at).then_some(1e3 * (at - request.arrived)));
            let pairs = request.bursts.windows(2).filter(|pair| came(pair[1].0));
            between.extend(pairs.map(|pair| 1e3 * (pair[1].0 - pair[0].0)));
            let later = request.tokens() - 1;
            each.extend((later > 0 && came(request.ended())).then(|| 1e3 * (request.ended() - at) / later as f64));
        }
    }
    [figures.first, figures.between, figures.each] = [first, between, each].map(|mut values| {
        values.sort_by(f64::total_cmp);
        [percentile(&values, 50.0), percentile(&values, 99.0)]
    });
    figures
}

/// The most bytes of all that were served at the same time.
pub fn held(served: &[Served]) -> usize {
    let begins = served.iter().map(|request| (request.started, request.bytes as i64));
    let ends = served.iter().map(|request| (request.ended(), -(request.bytes as i64)));
    let mut changes: Vec<(f64, i64)> = begins.chain(ends).collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut now = 0;
    let after = changes.iter().map(|(_, change)| {
        now += change;
        now
    });
    after.max().unwrap_or(0) as usize
}

/// A percentile of sorted values, interpolated between neighbours as numpy does. NaN if there are none.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = percent / 100.0 * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The mean number of requests that waited for somebody to take them, within a time.
pub fn waiting(served: &[Served], time: &Range<f64>) -> f64 {
    let overlap = |request: &Served| (request.started.min(time.end) - request.arrived.max(time.start)).max(0.0);
    served.iter().map(overlap).sum::<f64>() / (time.end - time.start)
}

/// The least growth of a queue that is collapse, as a share of what arrived meanwhile.
pub const GROWTH: f64 = 0.05;

/// Whether the load was too much: the queue grew over the whole window. Its mean length rises from each quarter of the
/// window to the next, and from the first to the last by more than a twentieth of what arrived meanwhile.
pub fn collapsed(Measurement { served, window }: &Measurement) -> bool {
    let quarter = (window.end - window.start) / 4.0;
    let start = |index: usize| window.start + quarter * index as f64;
    let lengths = [0, 1, 2, 3].map(|index| waiting(served, &(start(index)..start(index + 1))));
    // From the middle of the first quarter to the middle of the last one.
    let meanwhile = window.start + 0.5 * quarter..window.end - 0.5 * quarter;
    let arrived = served.iter().filter(|request| meanwhile.contains(&request.arrived)).count();
    lengths.windows(2).all(|pair| pair[0] < pair[1]) && lengths[3] - lengths[0] > GROWTH * arrived as f64
}
