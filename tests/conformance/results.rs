//! What a run of the suite finds, for the report.

use std::any::Any;

use super::stats::{FAMILY_ERROR, Fit};

/// Counts of one configuration beside a reference distribution.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What was drawn how, in words; unique within its section.
    pub name: String,
    pub fit: Fit,
    /// The likeliest cells (at most [`Comparison::CELLS`]), to show.
    pub cells: Vec<Cell>,
}

/// One outcome: what it is, its probability under the reference, and how often it was observed.
#[derive(Debug, Clone)]
pub struct Cell {
    pub label: String,
    pub expected: f64,
    pub observed: u64,
}

impl Comparison {
    pub const CELLS: usize = 32;

    pub fn new(name: String, cells: impl IntoIterator<Item = (String, f64, u64)>) -> Comparison {
        Comparison::of_groups(name, [cells.into_iter().collect()])
    }

    /// A configuration that did not come to an end: it fits nothing.
    pub fn stopped(name: &str, panic: &(dyn Any + Send)) -> Comparison {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let name = format!("{name}: stopped by a panic: {}", text.unwrap_or("of an unknown kind"));
        let fit = Fit {
            draws: 0,
            degrees: 0,
            statistic: 0.0,
            p: 0.0,
            g: 0.0,
            bound: 0.0,
            distance: 1.0,
            expected_distance: 0.0,
        };
        Comparison { name, fit, cells: Vec::new() }
    }

    /// Whether it passes where comparisons fail below a threshold.
    pub fn fits(&self, threshold: f64) -> bool {
        self.fit.bound >= threshold
    }

    /// See [`Fit::of_groups`]. A cell is shown with its share of all draws.
    pub fn of_groups(name: String, groups: impl IntoIterator<Item = Vec<(String, f64, u64)>>) -> Comparison {
        let groups: Vec<Vec<(String, f64, u64)>> = groups.into_iter().collect();
        let numbers = groups.iter().map(|cells| cells.iter().map(|&(_, p, count)| (p, count)).unzip());
        let numbers: Vec<(Vec<f64>, Vec<u64>)> = numbers.collect();
        let fit = Fit::of_groups(numbers.iter().map(|(expected, observed)| (&expected[..], &observed[..])));
        let mut cells = Vec::new();
        for (group, (_, observed)) in groups.into_iter().zip(&numbers) {
            let share = observed.iter().sum::<u64>() as f64 / fit.draws as f64;
            cells.extend(group.into_iter().map(|(label, p, observed)| Cell { label, expected: share * p, observed }));
        }
        cells.sort_by(|a, b| b.expected.total_cmp(&a.expected));
        cells.truncate(Self::CELLS);
        Comparison { name, fit, cells }
    }
}

/// Rows of text with a head.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// One part of the suite.
#[derive(Debug, Clone, Default)]
pub struct Section {
    pub title: String,
    /// What is compared with what, and why that proves something: a paragraph.
    pub about: String,
    /// What came out: a sentence.
    pub headline: String,
    pub comparisons: Vec<Comparison>,
    pub tables: Vec<Table>,
    /// What is wrong beside comparisons that do not fit.
    pub failures: Vec<String>,
    pub seconds: f64,
}

/// A run of the suite.
#[derive(Debug, Clone, Default)]
pub struct Run {
    pub sections: Vec<Section>,
    /// What was run on what: name and value.
    pub facts: Vec<(String, String)>,
}

impl Run {
    pub fn comparisons(&self) -> impl Iterator<Item = &Comparison> {
        self.sections.iter().flat_map(|section| &section.comparisons)
    }

    /// Below which [`Fit::bound`] a comparison fails.
    pub fn threshold(&self) -> f64 {
        FAMILY_ERROR / self.comparisons().count().max(1) as f64
    }

    /// Everything that is wrong.
    pub fn failures(&self) -> Vec<String> {
        let threshold = self.threshold();
        let mut failures = Vec::new();
        for section in &self.sections {
            for Comparison { name, fit, .. } in section.comparisons.iter().filter(|c| !c.fits(threshold)) {
                let Fit { draws, degrees, g, bound, distance, expected_distance, .. } = fit;
                failures.push(format!(
                    "{}: {name}: G = {g:.1} with {degrees} degrees of freedom over {draws} draws, which has a \
                     probability of at most {bound:.0e}; total variation {distance:.5}, where {expected_distance:.5} is \
                     expected of sampling",
                    section.title
                ));
            }
            failures.extend(section.failures.iter().map(|failure| format!("{}: {failure}", section.title)));
        }
        failures
    }
}
