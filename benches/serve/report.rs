//! Writes the report of a run: `index.html`, which needs no other file, `report.md` with its plots, and `results.json`.

use std::fmt::Write;
use std::path::Path;

use cos::config::Combine;
use cos::engine::Engine;
use minijinja::{Value, context};

use super::first::{First, Prepared};
use super::results::{Case, Point, Results};
use crate::bench::cuda::{Panel, columns};
use crate::bench::measure::Result;
use crate::bench::report::{Axis, Plot, axis, escape, render_with};
use crate::bench::results::Spread;

/// Write all files of the report.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("results.json"), serde_json::to_string_pretty(results)?)?;
    for case in &results.cases {
        std::fs::write(folder.join(&case.name).with_extension("svg"), plots(case))?;
    }
    std::fs::write(folder.join("report.md"), render_with("report.md", include_str!("report.md"), page(results))?)?;
    let page = render_with("index.html", include_str!("report.html"), page(results))?;
    std::fs::write(folder.join("index.html"), page)?;
    Ok(())
}

/// The values that the templates show.
fn page(results: &Results) -> Value {
    let cases = results.cases.iter().map(|case| {
        context! {
            name => &case.name,
            about => &case.about,
            most => case.most,
            prepared => preparation(&case.prepared),
            first => case.first.iter().map(first).collect::<Vec<_>>(),
            closed => case.closed.iter().map(closed).collect::<Vec<_>>(),
            open => case.open.iter().map(open).collect::<Vec<_>>(),
            plots => Value::from_safe_string(plots(case)),
        }
    });
    context! { facts => &results.facts, notes => &results.notes, cases => cases.collect::<Vec<_>>() }
}

/// The combination of an engine and its models, in words.
pub fn about(engine: &Engine) -> String {
    let names: Vec<&str> = engine.participants().iter().map(|model| model.name()).collect();
    match engine.combine() {
        Combine::Weighted { .. } => format!("weighted: {}", names.join(", ")),
        Combine::Logits { .. } => format!("weighted logits: {}", names.join(", ")),
        Combine::Contrastive { .. } => format!("contrastive: {}", names.join(" against ")),
        Combine::Target { .. } if names.len() == 1 => format!("{} alone", names[0]),
        Combine::Target { model } => format!("{} as the target of {}", names[*model], names.join(", ")),
    }
}

/// A number to three digits.
fn short(number: f64) -> String {
    match number {
        _ if !number.is_finite() => "–".into(),
        _ if number >= 99.95 => format!("{number:.0}"),
        _ if number >= 9.995 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

fn ranged(spread: Spread) -> String {
    match spread.least == spread.most || spread.median.is_nan() {
        true => short(spread.median),
        false => format!("{} ({}–{})", short(spread.median), short(spread.least), short(spread.most)),
    }
}

/// The cells that both kinds of tables begin and end with.
fn cells(point: &Point, middle: [String; 2]) -> Vec<String> {
    let pair = |[median, high]: [f64; 2]| format!("{} / {}", short(median), short(high));
    let [first, second] = middle;
    vec![
        point.name.clone(),
        ranged(point.tokens_per_second),
        first,
        second,
        pair(point.first),
        pair(point.between),
        pair(point.each),
        if point.peer { "–".into() } else { short(point.held) },
        format!("{:.0}", point.memory),
    ]
}

fn closed(point: &Point) -> Vec<String> {
    let cells = cells(point, [ranged(point.ratio), short(point.requests_per_second.median)]);
    [vec![point.load.to_string()], cells].concat()
}

fn open(point: &Point) -> Vec<String> {
    let waiting = if point.collapsed { format!("{}, collapsed", short(point.waiting)) } else { short(point.waiting) };
    [vec![short(point.load)], cells(point, [short(point.requests_per_second.median), waiting])].concat()
}

/// A point for the terminal.
pub fn line(point: &Point) -> String {
    let [first, between, each] = [point.first, point.between, point.each].map(|[_, high]| short(high));
    format!(
        "{:>7} {:<13} {:>6} tokens/s {:>6} requests/s, p99 ms: first {first}, between {between}, each {each}{}",
        short(point.load),
        point.name,
        short(point.tokens_per_second.median),
        short(point.requests_per_second.median),
        if point.collapsed { "; collapsed" } else { "" }
    )
}

/// How an engine was prepared, in words.
pub fn preparation(prepared: &Prepared) -> String {
    match prepared.seconds {
        0.0 => "not prepared".into(),
        seconds => format!("prepared {:.0} % in {} s", 100.0 * prepared.share, short(seconds)),
    }
}

fn first(first: &First) -> Vec<String> {
    let speeds = [first.first, first.later, first.first / first.later].map(short);
    [vec![first.name.clone(), preparation(&first.prepared)], speeds.to_vec()].concat()
}

/// The first session of a process, for the terminal.
pub fn first_line(of: &First) -> String {
    let [name, prepared, speed, later, ratio] = first(of).try_into().expect("five cells");
    format!("first session, {name:<8} {prepared}: {speed} tokens/s, later ones {later}, ratio {ratio}")
}

/// The colour of a line.
fn colour(name: &str) -> usize {
    const NAMES: [&str; 6] = ["auto", "speculative", "standard", "cos", "genai Engine", "transformers"];
    NAMES.iter().position(|known| *known == name).unwrap_or(4)
}

/// An SVG file with the plots of a case.
fn plots(case: &Case) -> String {
    let mut loads: Vec<f64> = case.closed.iter().map(|point| point.load).collect();
    loads.dedup();
    let clients = Axis {
        title: "clients of the closed loop",
        least: -0.25,
        most: loads.iter().map(|load| load.log2()).fold(0.0, f64::max) + 0.25,
        ticks: loads.iter().map(|load| (load.log2(), load.to_string())).collect(),
    };
    let speed = |point: &Point| point.tokens_per_second.median;
    let fastest = axis("tokens per second", 0.0, 1.05 * most(&case.closed, speed));
    let log = |milliseconds: f64| milliseconds.max(1e-3).log10();
    let mut panels =
        vec![panel("Throughput", &case.closed, clients, fastest, |point| (point.load.log2(), speed(point)))];
    let title = "milliseconds for a token, median";
    let (_, y) = axes(&case.closed, "", title, |point| point.each[0]);
    let x = axis("tokens per second of all clients", 0.0, 1.05 * most(&case.closed, speed));
    panels.push(panel("Speed of a text", &case.closed, x, y, |point| (speed(point), log(point.each[0]))));
    if !case.open.is_empty() {
        let rate = "requests per second that arrive";
        let (x, y) = axes(&case.open, rate, "milliseconds to the first token, p99", |point| point.first[1]);
        panels.push(panel("Time to first token", &case.open, x, y, |point| (point.load, log(point.first[1]))));
        let (x, y) = axes(&case.open, rate, "milliseconds between steps, p99", |point| point.between[1]);
        panels.push(panel("Time between tokens", &case.open, x, y, |point| (point.load, log(point.between[1]))));
    }
    columns(panels.into_iter())
}

fn most(points: &[Point], of: impl Fn(&Point) -> f64) -> f64 {
    points.iter().map(of).filter(|value| value.is_finite()).fold(1e-3, f64::max)
}

/// An axis of loads, and a logarithmic one of these milliseconds.
fn axes(points: &[Point], x: &'static str, y: &'static str, of: impl Fn(&Point) -> f64) -> (Axis, Axis) {
    let finite = || points.iter().map(&of).filter(|value| value.is_finite() && *value > 0.0);
    let least = finite().fold(f64::INFINITY, f64::min).min(1e3);
    let most_of = finite().fold(least, f64::max);
    let y = Axis::logarithmic(y, least.log10() - 0.1, most_of.log10() + 0.1);
    (axis(x, 0.0, 1.05 * most(points, |point| point.load)), y)
}

/// A line for each way of decoding, with a key below. Crosses are loads under which it collapsed.
fn panel(title: &str, points: &[Point], x: Axis, y: Axis, place: impl Fn(&Point) -> (f64, f64)) -> Panel {
    const ROW: usize = 16;
    let mut names: Vec<&str> = Vec::new();
    for point in points {
        if !names.contains(&point.name.as_str()) {
            names.push(&point.name);
        }
    }
    let mut plot = Plot::new(x, y);
    let mut key = String::new();
    for (index, name) in names.iter().enumerate() {
        let colour = colour(name);
        let own = || points.iter().filter(|point| point.name == *name && place(point).1.is_finite());
        plot.line(&format!("curve c{colour}"), own().map(&place));
        plot.dots(&format!("dots c{colour}"), own().filter(|point| !point.collapsed).map(&place));
        plot.crosses(&format!("curve c{colour}"), own().filter(|point| point.collapsed).map(&place));
        let (x, y) = (66 + index % 3 * 130, 410 + index / 3 * ROW);
        let _ = write!(
            key,
            "<path class=\"curve c{colour}\" d=\"M{x} {y}h20\"/><text x=\"{}\" y=\"{}\">{}</text>",
            x + 26,
            y + 4,
            escape(name)
        );
    }
    let height = 400 + ROW * names.len().div_ceil(3);
    let svg = plot.svg(title).replace("0 0 460 400", &format!("0 0 460 {height}"));
    let svg = svg.replace("</svg>", &format!("{key}</svg>"));
    Panel { title: title.into(), width: 460.0, height: height as f64, svg }
}
