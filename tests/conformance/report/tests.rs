//! The report is well-formed, shows failures, and stays small.

use super::super::stats::Fit;
use super::*;

/// A name with every special character that a token may have.
const NASTY: &str = "a <b> & \"c\" | 'd' </svg> `e`";

/// Random numbers that are the same in each run.
struct Random(fastrand::Rng);

impl Random {
    fn new(seed: u64) -> Random {
        Random(fastrand::Rng::with_seed(seed))
    }

    /// A number above 0, so that it has a logarithm.
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
        // Draws the gaps between successes.
        let (mut count, mut at) = (0, 0.0);
        loop {
            at += (self.uniform().ln() / (1.0 - p).ln()).ceil().max(1.0);
            if at > n as f64 {
                return count;
            }
            count += 1;
        }
    }

    /// Probabilities of `cells` cells, and counts of draws from them. `wrong` is the error of the first cell.
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
            about:
                "Every strategy decodes in worlds of scripted models whose distributions are known: the outcomes of \
                    whole sequences are counted beside their probabilities by enumeration. A bug anywhere – in \
                    drafting, accepting, or the residual distributions – shows as a misfit."
                    .into(),
            headline: format!("{} comparisons over all strategies.", comparisons.len()),
            comparisons,
            tables: vec![Table {
                caption: "Strategies and what they were tried with <|>".into(),
                head: ["strategy", "comparisons", "acceptance"].map(String::from).to_vec(),
                rows: (0..4)
                    .map(|i| vec![format!("strategy {i} {NASTY}"), format!("{}", i * 7919), "0.71".into()])
                    .collect(),
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

/// Tags are balanced, attributes are quoted, and special characters are escaped.
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
            assert!(name.len() <= 5 && name.trim_start_matches("#x").chars().all(char::is_alphanumeric), "{piece:?}");
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
    // Each row has as many columns as the head.
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
    // Certain cells, impossible cells, and comparisons without draws.
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
    assert_eq!([0.0, 3e-7, 0.0432, 0.43, 0.999, 1.0].map(probability), ["0", "3e-7", "0.043", "0.43", "0.999", "1"]);
    assert_eq!([0.0, 0.012345, 1.0, 0.000012, 12345.6].map(significant), ["0", "0.0123", "1.00", "1.2e-5", "12,346"]);
    assert_eq!([0.0, 999.0, 1000.0, 1234567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    assert_eq!([0.04, 59.0, 61.0, 3720.0].map(duration), ["0.0 s", "59 s", "1 min 1 s", "1 h 2 min"]);
}

#[test]
fn what_is_detectable_is_detected() {
    // The least conspicuous error of size δ: over two equal cells.
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
#[ignore = "writes two reports into the folder COS_REPORT, for people to look at"]
fn render() {
    let folder = std::env::var("COS_REPORT").unwrap();
    write(&run(3, 700, 32, 0), &Path::new(&folder).join("good")).unwrap();
    write(&run(3, 700, 32, 12), &Path::new(&folder).join("bad")).unwrap();
}
