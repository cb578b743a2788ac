//! The report of a run: `index.html`, a page without further files, and `summary.md`. Both depend only on the run, so
//! the same run gives the same bytes.

mod charts;
mod numbers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use charts::{FAR, Point, bars, distances, frequencies, quantiles};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value, context};
use numbers::{decimals, duration, markdown, probability, significant, thousands};

use super::results::{Comparison, Run, Section, Table};
use super::stats::{self, FAMILY_ERROR, LEAST_EXPECTED};

/// The most comparisons in the list of a section, and about the most in the whole page.
const LISTED: usize = 2000;

const LISTED_IN_ALL: usize = 6000;

/// The number of comparisons that are shown as bars.
const BARS: usize = 6;

/// Tables with more rows are folded in the page, and left out of the summary.
const ROWS: usize = 40;

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
    render("index.html", include_str!("index.html"))?;
    render("summary.md", include_str!("summary.md"))
}

/// The values for the templates.
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
    // The worst comparison comes first.
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
            let all = frequencies(&section.comparisons, &summary);
            vec![all, quantiles(&tested, threshold), distances(&tested, threshold)]
        },
        bars => tested.iter().take(BARS).map(|c| bars(c, threshold)).collect::<Vec<_>>(),
        rows => rows.collect::<Vec<_>>(),
        unlisted => thousands((worst.len() - listed) as f64),
        listed => thousands(listed as f64),
        ..summary.value()
    }
}

fn table(table: &Table) -> Value {
    // Numbers are aligned to the right, so that they can be compared, words to the left.
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

/// Whether the comparison has tested anything.
fn tested(comparison: &Comparison) -> bool {
    comparison.fit.degrees > 0 || comparison.fit.bound < 1.0
}

/// Many comparisons summed up in a few numbers.
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
    /// The number of cells that are frequent enough to be judged alone, the number far off, and its expectation.
    judged: usize,
    outside: usize,
    outside_by_chance: f64,
    /// [`detectable`] of the comparisons that have tested something, in ascending order.
    detectable: Vec<f64>,
}

impl<'a> Summary<'a> {
    fn new(comparisons: impl IntoIterator<Item = &'a Comparison>, threshold: f64) -> Summary<'a> {
        let mut summary = Summary::default();
        // Found by bisection, which takes a while, so it is done once for each number of degrees.
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
        // An infinite statistic, of something impossible that was drawn, has no useful ratio.
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

/// The smallest total variation distance at which a wrong implementation fails with a probability of at least 99 %, if
/// a statistic beyond `critical` fails.
///
/// Draws from q instead of p give about a noncentral chi-square with λ = n Σ (q − p)² / p. By the inequality of Cauchy
/// and Schwarz, λ is at least 4 n δ² for a distance of δ. In the normal approximation (mean d + λ, variance 2 (d +
/// 2λ)), the 1 % quantile equals the critical value if λ − (critical − d) = z √(2 d + 4 λ).
fn detectable(draws: u64, degrees: usize, critical: f64) -> f64 {
    const Z: f64 = 2.3263;
    let degrees = degrees as f64;
    let excess = critical - degrees;
    let half = excess + 2.0 * Z * Z;
    let noncentrality = half + (half * half - excess * excess + 2.0 * Z * Z * degrees).sqrt();
    (noncentrality / (4.0 * draws as f64)).sqrt().min(1.0)
}
