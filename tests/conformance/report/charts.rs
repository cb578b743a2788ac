//! The charts of the report: frequencies against probabilities, quantiles, distances, and the bars of one comparison.

use minijinja::{Value, context};
use statrs::distribution::{Beta, Binomial, ContinuousCDF, DiscreteCDF};

use super::super::plot::{self, Axis, Bar, Plot};
use super::super::results::{Cell, Comparison};
use super::super::stats::LEAST_EXPECTED;
use super::numbers::{decimals, probability, shorten, significant, thousands};
use super::{Summary, tested};

/// The most points in one plot. More would only make the page large.
pub const POINTS: usize = 3000;

/// The number of points with a text, which are the worst of each plot.
pub const HINTS: usize = 20;

pub const BAR_CELLS: usize = 12;

/// A cell is marked if it is off by more standard errors.
pub const FAR: f64 = 4.0;

/// A plot with a title and a caption.
pub fn figure(title: &str, caption: String, svg: String) -> Value {
    context! { title, caption, svg => Value::from_safe_string(svg) }
}

/// A cell with its expected and its observed frequency.
pub struct Point<'a> {
    pub comparison: &'a Comparison,
    pub cell: &'a Cell,
    pub observed: f64,
    pub draws: f64,
    /// The deviation of the observed frequency, in standard errors.
    pub off: f64,
}

impl<'a> Point<'a> {
    pub fn new(comparison: &'a Comparison, cell: &'a Cell) -> Point<'a> {
        let draws = comparison.fit.draws as f64;
        let observed = cell.observed as f64 / draws;
        let error = (cell.expected * (1.0 - cell.expected).max(0.0) / draws).sqrt();
        let difference = observed - cell.expected;
        // Certain and impossible cells have no error.
        let off = if difference.abs() < 1e-12 { 0.0 } else { difference / error };
        Point { comparison, cell, observed, draws, off }
    }

    /// Whether both the cell and its complement are frequent enough for standard errors.
    pub fn is_frequent(&self) -> bool {
        self.cell.expected.min(1.0 - self.cell.expected) * self.draws >= LEAST_EXPECTED
    }

    pub fn is_impossible(&self) -> bool {
        self.cell.expected <= 0.0
    }

    pub fn is_outside(&self) -> bool {
        (self.is_frequent() || self.is_impossible()) && self.off.abs() > FAR
    }

    /// The probability of being outside by chance.
    pub fn outside_by_chance(&self) -> f64 {
        let Ok(binomial) = Binomial::new(self.cell.expected, self.draws as u64) else { return 0.0 };
        let mean = self.draws * self.cell.expected;
        let reach = FAR * (mean * (1.0 - self.cell.expected)).sqrt();
        let below = (mean - reach).ceil() as u64;
        binomial.sf((mean + reach).floor() as u64) + if below > 0 { binomial.cdf(below - 1) } else { 0.0 }
    }

    pub fn hint(&self) -> String {
        format!(
            "{} – {}: {} expected, {} observed, off by {} standard errors",
            self.comparison.name,
            self.cell.label,
            significant(self.cell.expected),
            significant(self.observed),
            decimals(self.off, 1)
        )
    }
}

/// At most [`POINTS`] of a list that begins with the worst: the worst sixth, and a regular sample of the rest.
pub fn thin<T>(worst_first: Vec<T>) -> Vec<T> {
    let worst = POINTS / 6;
    let every = worst_first.len().saturating_sub(worst).div_ceil(POINTS - worst).max(1);
    let keep = |i: usize| i < worst || (i - worst).is_multiple_of(every);
    worst_first.into_iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, point)| point).collect()
}

pub fn frequencies(comparisons: &[Comparison], summary: &Summary) -> Value {
    let all = comparisons.iter().filter(|c| tested(c));
    let draws = all.clone().map(|c| c.fit.draws);
    let (fewest, most) = (draws.clone().min().unwrap_or(1) as f64, draws.max().unwrap_or(1) as f64);
    let points = all.flat_map(|c| c.cells.iter().map(|cell| Point::new(c, cell)));
    let mut points: Vec<Point> = points.filter(|p| p.cell.expected > 0.0 || p.cell.observed > 0).collect();

    let count = points.len();
    let impossible = points.iter().filter(|p| p.is_impossible()).count();
    let badness = |p: &Point| if p.is_frequent() || p.is_impossible() { p.off.abs() } else { 0.0 };
    points.sort_by(|a, b| badness(b).total_cmp(&badness(a)));

    // The logarithms begin at the smallest frequency of interest. Zeros get a strip to the left and below.
    let least = points.iter().map(|p| p.cell.expected).filter(|&p| p > 0.0).fold(1.0, f64::min);
    let floor = least.max(0.1 / most).log10().floor().min(-1.0);
    let (strip, zero) = (-0.12 * floor, 1.09 * floor);
    let at = |frequency: f64| {
        if frequency <= 0.0 { zero } else { frequency.log10().max(zero) }
    };
    let axis = |title| {
        let mut axis = Axis::logarithmic(title, floor, 0.0);
        axis.ticks.insert(0, (zero, "0".into()));
        Axis { least: floor - strip, ..axis }
    };
    let mut plot = Plot::new(axis("expected frequency (probability)"), axis("observed frequency (share of draws)"));
    let band = |draws: f64| {
        let curve = (0..=80).map(|i| {
            let x = floor * (1.0 - f64::from(i) / 80.0);
            let p = 10f64.powf(x);
            let reach = FAR * (p * (1.0 - p) / draws).sqrt();
            (x, at(p - reach), at((p + reach).min(1.0)))
        });
        curve.collect::<Vec<_>>()
    };
    plot.band("band", &band(fewest));
    if fewest < most {
        plot.band("band", &band(most));
    }
    plot.line("ideal", [(floor, floor), (0.0, 0.0)]);
    plot.line("strip", [(floor, floor - strip), (floor, 0.0)]);
    plot.line("strip", [(floor - strip, floor), (0.0, floor)]);
    let shown = thin(points);
    let place = |p: &Point| (at(p.cell.expected), at(p.observed));
    plot.dots("dots rare", shown.iter().filter(|p| !p.is_frequent() && !p.is_outside()).map(place));
    plot.dots("dots", shown.iter().filter(|p| p.is_frequent() && !p.is_outside()).map(place));
    plot.crosses("far", shown.iter().filter(|p| p.is_outside()).map(place));
    for point in shown.iter().take(HINTS) {
        plot.hint(place(point), &point.hint());
    }

    let rare = count - summary.judged - impossible;
    let caption = frequencies_caption(summary, [fewest, most], [impossible, rare], [shown.len(), count]);
    let alternative = format!("Scatter plot of observed against expected frequencies of cells. {caption}");
    figure("Observed against expected frequency", caption, plot.svg(&alternative))
}

/// The caption of [`frequencies`], from the fewest and most draws, impossible and rare cells, and shown and all points.
fn frequencies_caption(
    summary: &Summary,
    [fewest, most]: [f64; 2],
    [impossible, rare]: [usize; 2],
    [shown, count]: [usize; 2],
) -> String {
    let bands = if fewest < most {
        format!("Wide band: ±{FAR} standard errors of {} draws; narrow: of {}.", thousands(fewest), thousands(most))
    } else {
        format!("Band: ±{FAR} standard errors of {} draws.", thousands(most))
    };
    let mut caption = format!(
        "{} of {} cells that are expected at least {LEAST_EXPECTED} times are off by more than {FAR} standard errors \
         (crosses); {} are expected of chance. {bands}",
        thousands(summary.outside as f64),
        thousands(summary.judged as f64),
        significant(summary.outside_by_chance)
    );
    if impossible > 0 {
        caption += &format!(" {} impossible cells were drawn.", thousands(impossible as f64));
    }
    if rare > 0 {
        caption += &format!(" Pale: {} cells that are too rare to be judged alone.", thousands(rare as f64));
    }
    if shown < count {
        caption += &format!(" {} of {} shown, the worst among them.", thousands(shown as f64), thousands(count as f64));
    }
    caption
}

/// `worst_first` are comparisons that have tested something.
pub fn quantiles(worst_first: &[&Comparison], threshold: f64) -> Value {
    let count = worst_first.len();
    let exponent = |p: f64| if p > 0.0 { -p.log10() } else { f64::INFINITY };
    let expected = |rank: usize| exponent(rank as f64 / (count + 1) as f64);
    let limit = exponent(threshold);

    // The k-th smallest of n uniform numbers has the distribution Beta(k, n + 1 − k). A curve needs only some ranks,
    // further and further apart.
    let mut ranks: Vec<usize> =
        (0..).map(|i| 1.1f64.powi(i) as usize).take_while(|&r| r < count).chain([count]).collect();
    ranks.dedup();
    let band = ranks.iter().map(|&rank| {
        let beta = Beta::new(rank as f64, (count + 1 - rank) as f64).expect("positive");
        (expected(rank), exponent(beta.inverse_cdf(0.9995)), exponent(beta.inverse_cdf(0.0005)))
    });
    let band: Vec<_> = band.collect();

    // The axis is high enough for the band and the points, but not for extreme points.
    let top = worst_first.iter().map(|c| exponent(c.fit.p)).fold(band[0].2, f64::max).min(limit * 1.6);
    let mut plot = Plot::new(
        Axis::linear("expected of exact sampling: −log₁₀ p", expected(1).max(1.0) * 1.05),
        Axis::linear("found: −log₁₀ p", top.max(1.0) * 1.05),
    );
    plot.band("band", &band);
    plot.line("ideal", [(0.0, 0.0), (expected(1), expected(1))]);
    let place = |(i, c): (usize, &&Comparison)| (expected(i + 1), exponent(c.fit.p));
    let misfits = worst_first.iter().filter(|c| !c.fits(threshold)).count();
    plot.dots("dots", worst_first.iter().enumerate().skip(misfits).map(place));
    plot.crosses("far", worst_first.iter().enumerate().take(misfits).map(place));
    for (i, c) in worst_first.iter().enumerate().take(HINTS) {
        plot.hint(place((i, c)), &format!("{}: p = {}", c.name, probability(c.fit.p)));
    }

    let caption = format!(
        "{} comparisons, the worst at the right. Exact sampling stays on the diagonal, in the band with a probability \
         of 99.9% for each point. Whether a comparison fails is decided by a bound on p; {}.{}",
        thousands(count as f64),
        if misfits == 0 {
            "none does".into()
        } else {
            format!("{} do{} (crosses)", misfits, if misfits == 1 { "es" } else { "" })
        },
        if exponent(worst_first[0].fit.p) > top { " The topmost are beyond the plot." } else { "" }
    );
    let alternative = format!("Quantile plot of p-values against the uniform distribution. {caption}");
    figure("p-values against the uniform distribution", caption, plot.svg(&alternative))
}

/// `worst_first` are comparisons that have tested something.
pub fn distances(worst_first: &[&Comparison], threshold: f64) -> Value {
    let points: Vec<_> = worst_first.iter().filter(|c| c.fit.expected_distance > 0.0).collect();
    let count = points.len();
    let (least, most) = points.iter().fold((1f64, 0f64), |(least, most), c| {
        (least.min(c.fit.expected_distance), most.max(c.fit.expected_distance).max(c.fit.distance))
    });
    // Comparisons of two cells may be arbitrarily near by chance. They are not shown to save space.
    let (least, most) = ((least / 4.0).log10(), (most * 1.25).min(1.0).log10());
    let mut plot = Plot::new(
        Axis::logarithmic("expected of sampling alone (total variation)", least, most),
        Axis::logarithmic("found (total variation)", least, most),
    );
    plot.line("ideal", [(least, least), (most, most)]);
    let shown = thin(points);
    let place = |c: &&&Comparison| (c.fit.expected_distance.log10(), c.fit.distance.log10());
    plot.dots("dots", shown.iter().filter(|c| c.fits(threshold)).map(place));
    plot.crosses("far", shown.iter().filter(|c| !c.fits(threshold)).map(place));
    for c in shown.iter().take(HINTS) {
        let (found, expected) = (significant(c.fit.distance), significant(c.fit.expected_distance));
        plot.hint(place(c), &format!("{}: {found} found, {expected} expected", c.name));
    }
    let mut caption =
        "How far observed frequencies are from the exact ones, in all. Exact sampling scatters around the \
                       diagonal, the wider the fewer the cells; what is wrong lies above, however much is drawn."
            .to_string();
    if shown.len() < count {
        caption +=
            &format!(" {} of {} shown, the worst among them.", thousands(shown.len() as f64), thousands(count as f64));
    }
    let alternative = format!("Scatter plot of total variation distances against their expectation. {caption}");
    figure("Total variation against its sampling error", caption, plot.svg(&alternative))
}

/// The cells of one comparison with the largest deviations, likeliest first.
pub fn bars(comparison: &Comparison, threshold: f64) -> Value {
    let mut points: Vec<Point> = comparison.cells.iter().map(|cell| Point::new(comparison, cell)).collect();
    points.sort_by(|a, b| b.off.abs().total_cmp(&a.off.abs()));
    points.truncate(BAR_CELLS);
    points.sort_by(|a, b| b.cell.expected.total_cmp(&a.cell.expected));
    let most = points.iter().map(|p| p.observed.max(p.cell.expected)).fold(0.001, f64::max);
    let pairs = points.iter().map(|p| Bar {
        label: shorten(&p.cell.label, 13),
        expected: p.cell.expected,
        observed: p.observed,
        note: match p.off {
            off if off.is_infinite() => "impossible".into(),
            off => format!("{}{}", if off > 0.0 { "+" } else { "" }, decimals(off, usize::from(off.abs() < 99.95))),
        },
        outside: p.is_outside(),
    });
    let p = probability(comparison.fit.p);
    let cells: Vec<_> = points.iter().map(Point::hint).collect();
    let svg =
        plot::bars(&pairs.collect::<Vec<_>>(), most, &format!("Bars of observed and expected. {}", cells.join("; ")));
    context! {
        name => &comparison.name,
        p,
        draws => thousands(comparison.fit.draws as f64),
        misfit => !comparison.fits(threshold),
        svg => Value::from_safe_string(svg),
    }
}
