//! The report of a run: `index.html`, one page that needs nothing beside itself, and `summary.md`. Both depend on the run
//! alone, so that the same run gives the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value, context};
use statrs::distribution::{Beta, Binomial, ContinuousCDF, DiscreteCDF};

use super::results::{Cell, Comparison, Run, Section, Table};
use super::stats::{self, FAMILY_ERROR, LEAST_EXPECTED};

// With its path, so that it is found beside this file also where this one is included by its path.
#[path = "plot.rs"]
mod plot;
use plot::{Axis, Bar, Plot};

/// Points of one plot, at most: more would only make the page heavy.
const POINTS: usize = 3000;
/// Points that tell what they are, the worst of each plot.
const HINTS: usize = 20;
/// Comparisons that one section lists, at most, and about how many the page does.
const LISTED: usize = 2000;
const LISTED_IN_ALL: usize = 6000;
/// Comparisons and cells of each that are shown as bars.
const BARS: usize = 6;
const BAR_CELLS: usize = 12;
/// Longer tables are folded in the page, and left out of the summary.
const ROWS: usize = 40;
/// Standard errors beyond which a cell is called out.
const FAR: f64 = 4.0;

pub fn write(run: &Run, folder: &Path) -> io::Result<()> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("valid"));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("markdown", markdown);
    let context = page(run);
    let mut render = |name, template| -> io::Result<()> {
        environment.add_template(name, template).map_err(io::Error::other)?;
        let text = environment.get_template(name).and_then(|t| t.render(&context)).map_err(io::Error::other)?;
        fs::write(folder.join(name), text)
    };
    fs::create_dir_all(folder)?;
    render("index.html", include_str!("report.html"))?;
    render("summary.md", include_str!("report.md"))
}

/// What the templates show.
fn page(run: &Run) -> Value {
    let threshold = run.threshold();
    let all = Summary::new(run.comparisons(), threshold);
    let failures = run.failures();
    let share = LISTED_IN_ALL as f64 / all.comparisons.max(1) as f64;
    let sections = run.sections.iter().map(|s| section(s, threshold, share));
    let facts: Vec<_> = run.facts.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    context! {
        verdict => match (failures.is_empty(), all.tested) {
            (false, _) => "failed",
            (true, 0) => "empty",
            (true, _) => "passed",
        },
        sections => sections.collect::<Vec<_>>(),
        other_failures => failures.len() - all.misfits,
        failures,
        facts,
        family_error => probability(FAMILY_ERROR),
        runs => thousands(1.0 / FAMILY_ERROR),
        success => format!("{}", 1.0 - FAMILY_ERROR),
        threshold => probability(threshold),
        chance_of_smallest => all.smallest.map(|c| probability(-(all.tested as f64 * (-c.fit.p).ln_1p()).exp_m1())),
        seconds => duration(run.sections.iter().map(|s| s.seconds).sum()),
        far => FAR,
        least_expected => LEAST_EXPECTED,
        ..all.value()
    }
}

fn section(section: &Section, threshold: f64, share: f64) -> Value {
    let summary = Summary::new(&section.comparisons, threshold);
    // worst first
    let mut worst: Vec<&Comparison> = section.comparisons.iter().collect();
    worst.sort_by(|a, b| a.fit.p.total_cmp(&b.fit.p).then(b.fit.statistic.total_cmp(&a.fit.statistic)));
    let listed = ((worst.len() as f64 * share) as usize).clamp(50, LISTED).min(worst.len());
    let rows = worst[..listed].iter().map(|c| {
        let fit = &c.fit;
        context! {
            name => &c.name,
            misfit => !c.fits(threshold),
            cells => [
                thousands(fit.draws as f64),
                thousands(fit.degrees as f64),
                decimals(fit.statistic, 1),
                probability(fit.p),
                significant(fit.distance),
                significant(fit.expected_distance),
            ].map(Value::from).to_vec(),
        }
    });
    let tested: Vec<&Comparison> = worst.iter().copied().filter(|c| tested(c)).collect();
    let tables = section.tables.iter().map(table);
    context! {
        title => &section.title,
        about => &section.about,
        headline => &section.headline,
        failures => &section.failures,
        tables => tables.collect::<Vec<_>>(),
        seconds => duration(section.seconds),
        plots => if tested.is_empty() { Vec::new() } else {
            vec![frequencies(&section.comparisons, &summary), quantiles(&tested, threshold), distances(&tested, threshold)]
        },
        bars => tested.iter().take(BARS).map(|c| bars(c, threshold)).collect::<Vec<_>>(),
        rows => rows.collect::<Vec<_>>(),
        unlisted => thousands((worst.len() - listed) as f64),
        listed => thousands(listed as f64),
        ..summary.value()
    }
}

fn table(table: &Table) -> Value {
    // figures to the right, so that they can be compared; words to the left
    let figures = |column: usize| {
        let mut cells = table.rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some()
            && cells.all(|cell| cell.starts_with(|c: char| c.is_ascii_digit() || "+-−±<≤–".contains(c)))
    };
    context! {
        caption => &table.caption,
        head => &table.head,
        rows => &table.rows,
        figures => (0..table.head.len()).map(figures).collect::<Vec<_>>(),
        long => table.rows.len() > ROWS,
    }
}

/// Whether anything was put to the test.
fn tested(comparison: &Comparison) -> bool {
    comparison.fit.degrees > 0 || comparison.fit.bound < 1.0
}

/// Many comparisons in a few numbers.
#[derive(Default)]
struct Summary<'a> {
    comparisons: usize,
    tested: usize,
    misfits: usize,
    draws: u64,
    statistic: f64,
    degrees: usize,
    smallest: Option<&'a Comparison>,
    farthest: Option<&'a Comparison>,
    /// Cells that are frequent enough to be judged alone, those of them that are far off, and how many would be by chance.
    judged: usize,
    outside: usize,
    outside_by_chance: f64,
    /// [`detectable`] of the comparisons that were put to the test, in ascending order.
    detectable: Vec<f64>,
}

impl<'a> Summary<'a> {
    fn new(comparisons: impl IntoIterator<Item = &'a Comparison>, threshold: f64) -> Summary<'a> {
        let mut summary = Summary::default();
        // found by bisection, which takes a while
        let mut critical = BTreeMap::new();
        for c in comparisons {
            let fit = &c.fit;
            summary.comparisons += 1;
            summary.draws += fit.draws;
            summary.misfits += usize::from(!c.fits(threshold));
            if fit.draws > 0 && summary.farthest.is_none_or(|other| fit.distance > other.fit.distance) {
                summary.farthest = Some(c);
            }
            if !tested(c) {
                continue;
            }
            for point in c.cells.iter().map(|cell| Point::new(c, cell)).filter(Point::is_frequent) {
                summary.judged += 1;
                summary.outside += usize::from(point.is_outside());
                summary.outside_by_chance += point.outside_by_chance();
            }
            summary.tested += 1;
            summary.statistic += fit.statistic;
            summary.degrees += fit.degrees;
            if summary.smallest.is_none_or(|other| fit.p < other.fit.p) {
                summary.smallest = Some(c);
            }
            if fit.degrees > 0 {
                let critical = *critical.entry(fit.degrees).or_insert_with(|| stats::critical(fit.degrees, threshold));
                summary.detectable.push(detectable(fit.draws, fit.degrees, critical));
            }
        }
        summary.detectable.sort_by(f64::total_cmp);
        summary
    }

    fn value(&self) -> Value {
        let median = self.detectable.get(self.detectable.len() / 2);
        // an infinite statistic (something impossible was drawn) has no ratio worth showing
        let ratio = Some(self.statistic / self.degrees as f64).filter(|r| r.is_finite());
        context! {
            comparisons => thousands(self.comparisons as f64),
            tested => thousands(self.tested as f64),
            untested => thousands((self.comparisons - self.tested) as f64),
            misfits => self.misfits,
            draws => thousands(self.draws as f64),
            smallest => self.smallest.map(|c| probability(c.fit.p)),
            smallest_name => self.smallest.map(|c| c.name.clone()),
            distance => self.farthest.map(|c| significant(c.fit.distance)),
            expected_distance => self.farthest.map(|c| significant(c.fit.expected_distance)),
            farthest_name => self.farthest.map(|c| c.name.clone()),
            judged => thousands(self.judged as f64),
            outside => thousands(self.outside as f64),
            outside_by_chance => significant(self.outside_by_chance),
            ratio => ratio.map(|r| decimals(r, 4)),
            ratio_error => ratio.map(|_| significant((2.0 / self.degrees as f64).sqrt())),
            detectable => median.map(|&d| significant(d)),
            detectable_most => self.detectable.last().map(|&d| significant(d)),
        }
    }
}

/// The total variation distance from which on an implementation that is wrong fails with a probability of at least 99%, if
/// a statistic beyond `critical` fails.
///
/// Probabilities q in place of p give about a noncentral chi-square with λ = n Σ (q − p)² / p, which is at least 4 n δ² for a
/// distance of δ, by Cauchy and Schwarz. With the normal approximation (mean d + λ, variance 2 (d + 2λ)) the 1% quantile
/// lies at the critical value if λ − (critical − d) = z √(2 d + 4 λ).
fn detectable(draws: u64, degrees: usize, critical: f64) -> f64 {
    const Z: f64 = 2.3263;
    let degrees = degrees as f64;
    let excess = critical - degrees;
    let half = excess + 2.0 * Z * Z;
    let noncentrality = half + (half * half - excess * excess + 2.0 * Z * Z * degrees).sqrt();
    (noncentrality / (4.0 * draws as f64)).sqrt().min(1.0)
}

/// A plot with its title and what is to be seen.
fn figure(title: &str, caption: String, svg: String) -> Value {
    context! { title, caption, svg => Value::from_safe_string(svg) }
}

/// A cell beside what is expected of it.
struct Point<'a> {
    comparison: &'a Comparison,
    cell: &'a Cell,
    observed: f64,
    draws: f64,
    /// How many standard errors the observed frequency is off.
    off: f64,
}

impl<'a> Point<'a> {
    fn new(comparison: &'a Comparison, cell: &'a Cell) -> Point<'a> {
        let draws = comparison.fit.draws as f64;
        let observed = cell.observed as f64 / draws;
        let error = (cell.expected * (1.0 - cell.expected).max(0.0) / draws).sqrt();
        let difference = observed - cell.expected;
        // certain and impossible cells have no error
        let off = if difference.abs() < 1e-12 { 0.0 } else { difference / error };
        Point { comparison, cell, observed, draws, off }
    }

    /// Whether it is frequent enough, and its contrary, to be judged by its standard errors.
    fn is_frequent(&self) -> bool {
        self.cell.expected.min(1.0 - self.cell.expected) * self.draws >= LEAST_EXPECTED
    }

    fn is_impossible(&self) -> bool {
        self.cell.expected <= 0.0
    }

    fn is_outside(&self) -> bool {
        (self.is_frequent() || self.is_impossible()) && self.off.abs() > FAR
    }

    /// How probable it is to be outside, by chance alone.
    fn outside_by_chance(&self) -> f64 {
        let Ok(binomial) = Binomial::new(self.cell.expected, self.draws as u64) else { return 0.0 };
        let mean = self.draws * self.cell.expected;
        let reach = FAR * (mean * (1.0 - self.cell.expected)).sqrt();
        let below = (mean - reach).ceil() as u64;
        binomial.sf((mean + reach).floor() as u64) + if below > 0 { binomial.cdf(below - 1) } else { 0.0 }
    }

    fn hint(&self) -> String {
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

/// At most [`POINTS`] of what is ordered by how bad it is: the worst sixth, and of the rest one in so many.
fn thin<T>(worst_first: Vec<T>) -> Vec<T> {
    let worst = POINTS / 6;
    let every = worst_first.len().saturating_sub(worst).div_ceil(POINTS - worst).max(1);
    let keep = |i: usize| i < worst || (i - worst).is_multiple_of(every);
    worst_first.into_iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, point)| point).collect()
}

fn frequencies(comparisons: &[Comparison], summary: &Summary) -> Value {
    let all = comparisons.iter().filter(|c| tested(c));
    let draws = all.clone().map(|c| c.fit.draws);
    let (fewest, most) = (draws.clone().min().unwrap_or(1) as f64, draws.max().unwrap_or(1) as f64);
    let points = all.flat_map(|c| c.cells.iter().map(|cell| Point::new(c, cell)));
    let mut points: Vec<Point> = points.filter(|p| p.cell.expected > 0.0 || p.cell.observed > 0).collect();

    let count = points.len();
    let impossible = points.iter().filter(|p| p.is_impossible()).count();
    let badness = |p: &Point| if p.is_frequent() || p.is_impossible() { p.off.abs() } else { 0.0 };
    points.sort_by(|a, b| badness(b).total_cmp(&badness(a)));

    // The logarithms begin at the least frequency worth showing; left of and below them there is a strip for zeros.
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

    let bands = if fewest < most {
        format!("Wide band: ±{FAR} standard errors of {} draws; narrow: of {}.", thousands(fewest), thousands(most))
    } else {
        format!("Band: ±{FAR} standard errors of {} draws.", thousands(most))
    };
    let mut caption = format!(
        "{} of {} cells that are expected at least {LEAST_EXPECTED} times are off by more than {FAR} standard errors (crosses); {} \
         are expected of chance. {bands}",
        thousands(summary.outside as f64),
        thousands(summary.judged as f64),
        significant(summary.outside_by_chance)
    );
    if impossible > 0 {
        caption += &format!(" {} impossible cells were drawn.", thousands(impossible as f64));
    }
    let rare = count - summary.judged - impossible;
    if rare > 0 {
        caption += &format!(" Pale: {} cells that are too rare to be judged alone.", thousands(rare as f64));
    }
    if shown.len() < count {
        caption +=
            &format!(" {} of {} shown, the worst among them.", thousands(shown.len() as f64), thousands(count as f64));
    }
    let alternative = format!("Scatter plot of observed against expected frequencies of cells. {caption}");
    figure("Observed against expected frequency", caption, plot.svg(&alternative))
}

/// `worst_first`: comparisons with something to test.
fn quantiles(worst_first: &[&Comparison], threshold: f64) -> Value {
    let count = worst_first.len();
    let exponent = |p: f64| if p > 0.0 { -p.log10() } else { f64::INFINITY };
    let expected = |rank: usize| exponent(rank as f64 / (count + 1) as f64);
    let limit = exponent(threshold);

    // The k-th smallest of n uniform numbers is distributed by Beta(k, n + 1 − k). Ranks further and further apart are
    // enough for curves.
    let mut ranks: Vec<usize> =
        (0..).map(|i| 1.1f64.powi(i) as usize).take_while(|&r| r < count).chain([count]).collect();
    ranks.dedup();
    let band = ranks.iter().map(|&rank| {
        let beta = Beta::new(rank as f64, (count + 1 - rank) as f64).expect("positive");
        (expected(rank), exponent(beta.inverse_cdf(0.9995)), exponent(beta.inverse_cdf(0.0005)))
    });
    let band: Vec<_> = band.collect();

    // High enough for the band and for what was found, but not for what is off any scale.
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
        "{} comparisons, the worst at the right. Exact sampling stays on the diagonal, in the band with a probability of \
         99.9% for each point. Whether a comparison fails is decided by a bound on p; {}.{}",
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

/// `worst_first`: comparisons with something to test.
fn distances(worst_first: &[&Comparison], threshold: f64) -> Value {
    let points: Vec<_> = worst_first.iter().filter(|c| c.fit.expected_distance > 0.0).collect();
    let count = points.len();
    let (least, most) = points.iter().fold((1f64, 0f64), |(least, most), c| {
        (least.min(c.fit.expected_distance), most.max(c.fit.expected_distance).max(c.fit.distance))
    });
    // a comparison of two cells comes arbitrarily near by chance, which is not worth the space
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

/// The cells of one comparison that are off the most, likeliest first.
fn bars(comparison: &Comparison, threshold: f64) -> Value {
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

/// So much of a text as fits into a width, given in letters.
fn shorten(text: &str, most: usize) -> String {
    // ideographs and the like are twice as wide, and control characters are written as escapes
    let width = |c: char| if c.is_control() { 4 } else { 1 + usize::from(c as u32 >= 0x1100 && c != '…') };
    let mut left = most;
    let fits = |c: &char| {
        let fits = width(*c) <= left;
        left = left.saturating_sub(width(*c));
        fits
    };
    let start: String = text.chars().take_while(fits).collect();
    if start.len() == text.len() { start } else { start + "…" }
}

/// A number with so many decimals, and thousands separated.
fn decimals(number: f64, decimals: usize) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "–"
        } else if number > 0.0 {
            "∞"
        } else {
            "−∞"
        }
        .into();
    }
    let text = format!("{:.decimals$}", number.abs());
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::from(if number < 0.0 { "−" } else { "" });
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

fn thousands(number: f64) -> String {
    decimals(number, 0)
}

/// Three significant digits.
fn significant(number: f64) -> String {
    match number.abs() {
        0.0 => "0".into(),
        size if size < 1e-4 => format!("{number:.1e}"),
        size => decimals(number, (2.0 - size.log10().floor()).max(0.0) as usize),
    }
}

/// 0.43, but 3e-7.
fn probability(p: f64) -> String {
    match p {
        0.0 | 1.0 => format!("{p}"),
        p if p < 0.000_995 => format!("{p:.0e}"),
        p if p < 0.0995 => format!("{:.*}", (1.0 - p.log10().floor()) as usize, p),
        p if p > 0.99 => format!("{p:.3}"),
        p => format!("{p:.2}"),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Text as it is in Markdown, also within a table.
fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '&' | '~' | '$' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::stats::Fit;
    use super::*;

    /// Names as nasty as tokens can be.
    const NASTY: &str = "a <b> & \"c\" | 'd' </svg> `e`";

    /// Random numbers that are the same in each run.
    struct Random(fastrand::Rng);

    impl Random {
        fn new(seed: u64) -> Random {
            Random(fastrand::Rng::with_seed(seed))
        }

        /// Above 0, so that it has a logarithm.
        fn uniform(&mut self) -> f64 {
            1.0 - self.0.f64()
        }

        fn normal(&mut self) -> f64 {
            (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
        }

        fn binomial(&mut self, n: u64, p: f64) -> u64 {
            let mean = n as f64 * p;
            if mean.min(n as f64 - mean) > 1000.0 {
                return (mean + (mean * (1.0 - p)).sqrt() * self.normal()).round() as u64;
            }
            // the gaps between successes
            let (mut count, mut at) = (0, 0.0);
            loop {
                at += (self.uniform().ln() / (1.0 - p).ln()).ceil().max(1.0);
                if at > n as f64 {
                    return count;
                }
                count += 1;
            }
        }

        /// Probabilities of `cells` cells, and counts of draws from them; `wrong` says how much the first one is off.
        fn counts(&mut self, cells: usize, draws: u64, wrong: f64) -> Vec<(String, f64, u64)> {
            let weights: Vec<f64> = (0..cells).map(|_| (1.6 * self.normal()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let probabilities: Vec<f64> = weights.iter().map(|w| w / sum).collect();
            let (mut left, mut rest, mut counts) = (draws, 1.0, Vec::new());
            for (i, &p) in probabilities.iter().enumerate() {
                let actual = if i == 0 { p * (1.0 + wrong) } else { p };
                let share = (actual / rest).clamp(0.0, 1.0 - 1e-12);
                let count = if i + 1 == cells { left } else { self.binomial(left, share) };
                counts.push((format!("\"w{i}\" <{NASTY}>"), p, count));
                (left, rest) = (left - count, rest - actual);
            }
            counts
        }
    }

    fn run(sections: usize, comparisons: usize, cells: usize, wrong: usize) -> Run {
        let mut random = Random::new(1);
        let sections = (0..sections).map(|s| {
            let comparison = |i: usize| {
                let off = if s == 0 && i < wrong { 0.5 } else { 0.0 };
                let draws = if i.is_multiple_of(3) { 20_000 } else { 200_000 };
                let cells = if s == 0 { cells } else { 2 + i % (cells - 1) };
                Comparison::new(
                    format!("COS γ = {}, prompt {i}, temperature 0.{}: {NASTY}", i % 7, i % 10),
                    random.counts(cells, draws, off),
                )
            };
            let comparisons: Vec<Comparison> = (0..comparisons).map(comparison).collect();
            Section {
                title: format!("Worlds of scripted models {s} {NASTY}"),
                about: "Every strategy decodes in worlds of scripted models whose distributions are known: the outcomes of \
                        whole sequences are counted beside their probabilities by enumeration. A bug anywhere – in drafting, \
                        accepting, or the residual distributions – shows as a misfit."
                    .into(),
                headline: format!("{} comparisons over all strategies.", comparisons.len()),
                comparisons,
                tables: vec![Table {
                    caption: "Strategies and what they were tried with <|>".into(),
                    head: ["strategy", "comparisons", "acceptance"].map(String::from).to_vec(),
                    rows: (0..4).map(|i| vec![format!("strategy {i} {NASTY}"), format!("{}", i * 7919), "0.71".into()]).collect(),
                }],
                failures: if wrong > 0 && s == 1 { vec![format!("a negative control passed {NASTY}")] } else { vec![] },
                seconds: 83.0 + s as f64,
            }
        });
        let facts = [
            ("machine", "AMD EPYC 7R13, 2 cores"),
            ("CoS", "0.1.0 (9870f8a)"),
            ("seed", "1"),
            ("command", "make conformance"),
        ];
        Run {
            sections: sections.collect(),
            facts: facts.map(|(name, value)| (name.to_string(), value.to_string())).to_vec(),
        }
    }

    fn written(run: &Run) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        write(run, folder.path()).unwrap();
        let read = |name| fs::read_to_string(folder.path().join(name)).unwrap();
        (read("index.html"), read("summary.md"))
    }

    /// Tags are balanced, attributes quoted, and what is special is escaped.
    fn assert_well_formed(html: &str) {
        let (before, rest) = html.split_once("<style>").unwrap();
        let (_, after) = rest.split_once("</style>").unwrap();
        let html = format!("{before}{after}");
        let mut open = Vec::new();
        let mut pieces = html.split('<');
        assert_eq!(pieces.next().unwrap().trim(), "");
        for piece in pieces {
            let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("a stray < before {piece:?}"));
            assert!(!text.contains('>') && tag.matches('"').count().is_multiple_of(2), "{piece:?}");
            for reference in piece.split('&').skip(1) {
                let name = reference.split_once(';').unwrap_or_else(|| panic!("a stray & in {piece:?}")).0;
                assert!(
                    name.len() <= 5 && name.trim_start_matches("#x").chars().all(char::is_alphanumeric),
                    "{piece:?}"
                );
            }
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            assert!(name == "!doctype" || name.chars().all(|c| c.is_ascii_alphanumeric()), "{piece:?}");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "before {piece:?}");
            } else if !tag.ends_with('/') && name != "!doctype" {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_page_is_well_formed_and_shows_failures() {
        let run = run(2, 500, 24, 8);
        let (html, markdown) = written(&run);
        assert_well_formed(&html);
        let failures = run.failures();
        assert!(failures.len() > 5, "{}", failures.len());
        for failure in &failures {
            let failure = minijinja::HtmlEscape(failure).to_string();
            assert!(html.contains(&failure), "{failure}");
        }
        assert!(html.contains("<h1>✗ Failed</h1>") && !html.contains("✓ Passed"));
        assert!(html.contains("class=\"misfit\"") && !html.contains("NaN"));
        assert!(markdown.starts_with("**Failed.** Of **1,000 comparisons**"), "{markdown}");
        assert!(markdown.contains("a negative control passed"));
        // as many columns in each row as in its head
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        for (line, next) in markdown.lines().zip(markdown.lines().skip(1)) {
            if line.starts_with('|') && next.starts_with('|') {
                assert_eq!(columns(line), columns(next), "{line}\n{next}");
            }
        }
    }

    #[test]
    fn nothing_is_fetched() {
        let (html, _) = written(&run(1, 20, 8, 1));
        for reference in ["http:", "https:", "//", "src=", "url(", "@import", "<script", "<link"] {
            assert!(!html.contains(reference), "{reference}");
        }
        assert!(html.matches("href=").count() == html.matches("href=\"#").count());
    }

    #[test]
    fn the_same_run_gives_the_same_bytes() {
        let run = run(2, 100, 12, 3);
        assert!(written(&run) == written(&run));
    }

    #[test]
    fn an_exact_run_passes() {
        let (html, markdown) = written(&run(1, 1000, 32, 0));
        assert!(html.contains("<h1>✓ Passed") && !html.contains("class=\"misfit\""));
        assert!(markdown.starts_with("**Passed.** In **139,880,000 draws**, **1,000 comparisons**"), "{markdown}");
    }

    #[test]
    fn large_runs_make_no_large_pages() {
        for sections in [1, 12] {
            let (html, markdown) = written(&run(sections, 10_000 / sections, 32, 100));
            println!("{sections} sections: {} and {} bytes", html.len(), markdown.len());
            assert!(html.len() < 3_000_000 && markdown.len() < 100_000);
        }
    }

    #[test]
    fn odd_runs_are_shown_too() {
        let nothing = written(&Run::default());
        assert_well_formed(&nothing.0);
        assert!(nothing.1.starts_with("**Nothing was compared.**"));
        // certain, impossible, and never drawn
        let cells = |cells: &[(f64, u64)]| {
            let cells = cells.iter().map(|&(p, count)| ("x\0\n".to_string(), p, count));
            Comparison::new("odd".into(), cells.collect::<Vec<_>>())
        };
        for comparison in [cells(&[(1.0, 100)]), cells(&[(1.0, 100), (0.0, 1)]), cells(&[(0.5, 0), (0.5, 0)])] {
            let fails = comparison.fit.bound == 0.0;
            let section = Section { comparisons: vec![comparison], ..Section::default() };
            let (html, _) = written(&Run { sections: vec![section], ..Run::default() });
            assert_well_formed(&html);
            assert!(!html.contains("NaN"));
            assert_eq!(html.contains("✗ Failed"), fails);
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [0.0, 3e-7, 0.0432, 0.43, 0.999, 1.0].map(probability),
            ["0", "3e-7", "0.043", "0.43", "0.999", "1"]
        );
        assert_eq!(
            [0.0, 0.012345, 1.0, 0.000012, 12345.6].map(significant),
            ["0", "0.0123", "1.00", "1.2e-5", "12,346"]
        );
        assert_eq!([0.0, 999.0, 1000.0, 1234567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.04, 59.0, 61.0, 3720.0].map(duration), ["0.0 s", "59 s", "1 min 1 s", "1 h 2 min"]);
    }

    #[test]
    fn what_is_detectable_is_detected() {
        // a distribution off by δ in the least conspicuous way, over two equal cells
        let (draws, threshold) = (100_000, 1e-9);
        let critical = stats::critical(1, threshold);
        let off = detectable(draws, 1, critical);
        let mut random = Random::new(7);
        let mut trial = || {
            let count = random.binomial(draws, 0.5 + off);
            Fit::new(&[0.5, 0.5], &[count, draws - count]).bound < threshold
        };
        let found = (0..2000).filter(|_| trial()).count();
        assert!((1960..=1995).contains(&found), "{found} of 2000");
    }

    #[test]
    #[ignore = "to look at: COS_REPORT is a folder"]
    fn render() {
        let folder = std::env::var("COS_REPORT").unwrap();
        write(&run(3, 700, 32, 0), &Path::new(&folder).join("good")).unwrap();
        write(&run(3, 700, 32, 12), &Path::new(&folder).join("bad")).unwrap();
    }
}
