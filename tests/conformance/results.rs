//! The results of a run of the suite, as the report takes them.

use std::any::Any;

use super::stats::{FAMILY_ERROR, Fit};

/// The counts of one configuration, compared with a reference distribution.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What was drawn and how, in words. It is unique within its section.
    pub name: String,
    pub fit: Fit,
    /// The likeliest cells (at most [`Comparison::CELLS`]) for the report.
    pub cells: Vec<Cell>,
}

/// One outcome: its name, its probability under the reference, and how often it was observed.
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

    /// A configuration that did not end. It fits no distribution.
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

    /// Whether the comparison passes at a threshold.
    pub fn fits(&self, threshold: f64) -> bool {
        self.fit.bound >= threshold
    }

    /// A comparison of groups, see [`Fit::of_groups`]. A cell is shown with its share of all draws.
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

/// A table of text.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// The results of one part of the suite.
#[derive(Debug, Clone, Default)]
pub struct Section {
    pub title: String,
    /// A paragraph: what is compared with what, and why that is a proof.
    pub about: String,
    /// A sentence: the result.
    pub headline: String,
    pub comparisons: Vec<Comparison>,
    pub tables: Vec<Table>,
    /// Failures other than comparisons that do not fit.
    pub failures: Vec<String>,
    pub seconds: f64,
}

/// The results of the whole suite.
#[derive(Debug, Clone, Default)]
pub struct Run {
    pub sections: Vec<Section>,
    /// Facts about the run, such as the machine: name and value.
    pub facts: Vec<(String, String)>,
}

impl Run {
    pub fn comparisons(&self) -> impl Iterator<Item = &Comparison> {
        self.sections.iter().flat_map(|section| &section.comparisons)
    }

    /// A comparison fails if its [`Fit::bound`] is below this.
    pub fn threshold(&self) -> f64 {
        FAMILY_ERROR / self.comparisons().count().max(1) as f64
    }

    /// All failures, in words.
    pub fn failures(&self) -> Vec<String> {
        let threshold = self.threshold();
        let mut failures = Vec::new();
        for section in &self.sections {
            for Comparison { name, fit, .. } in section.comparisons.iter().filter(|c| !c.fits(threshold)) {
                let Fit { draws, degrees, g, bound, distance, expected_distance, .. } = fit;
                failures.push(format!(
                    "{}: {name}: G = {g:.1} with {degrees} degrees of freedom over {draws} draws, which has a \
                     probability of at most {bound:.0e}; total variation {distance:.5}, where {expected_distance:.5} \
                     is expected of sampling",
                    section.title
                ));
            }
            failures.extend(section.failures.iter().map(|failure| format!("{}: {failure}", section.title)));
        }
        failures
    }
}
