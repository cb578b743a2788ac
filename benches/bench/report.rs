//! Writes the report of a run: `index.html`, which needs no other file, `report.md`, and `results.json`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value, context};

use super::cases::{OVERLAPPING, TWO_GPUS};
use super::measure::Result;
use super::results::{Case, Results, Row, Spread};

#[allow(dead_code, unused_imports, reason = "the conformance report uses all of it, and tests it")]
#[path = "../../tests/conformance/plot.rs"]
mod plot;
pub use plot::{Axis, Plot, escape};

/// If a row reaches less than this share of its expected gain, the report says why.
const REACHED: f64 = 0.97;

/// Write all files of the report.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("results.json"), serde_json::to_string_pretty(results)?)?;
    std::fs::write(folder.join("report.md"), markdown(results)?)?;
    std::fs::write(folder.join("index.html"), render("index.html", include_str!("report.html"), results)?)?;
    Ok(())
}

pub fn markdown(results: &Results) -> Result<String> {
    render("report.md", include_str!("report.md"), results)
}

fn render(name: &str, template: &str, results: &Results) -> Result<String> {
    render_with(name, template, page(results))
}

pub fn render_with(name: &str, template: &str, page: Value) -> Result<String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?;
    environment.set_syntax(syntax);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_template(name, template)?;
    Ok(environment.get_template(name)?.render(page)?)
}

/// The values that the templates show.
fn page(results: &Results) -> Value {
    let (sweeps, cases): (Vec<&Case>, Vec<&Case>) = results.cases.iter().partition(|case| case.sweep.is_some());
    let summaries: Vec<Value> = cases.iter().map(|case| summary(case)).collect();
    let theory: Vec<Value> = cases.iter().flat_map(|case| theory(case)).collect();
    context! {
        facts => &results.facts,
        notes => &results.notes,
        rounds => results.cases.first().map_or(0, |case| case.rounds),
        summaries,
        theory,
        cases => cases.iter().map(|case| section(case)).collect::<Vec<_>>(),
        sweeps => sweeps.iter().map(|case| sweep(case)).collect::<Vec<_>>(),
    }
}

pub fn spread(spread: Spread) -> String {
    format!("{:.2} ({:.2}–{:.2})", spread.median, spread.least, spread.most)
}

pub fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "–".into())
}

/// The speed of a row over another one, within each round.
fn over(own: &Row, other: &Row) -> Spread {
    Spread::of(own.ratios.iter().zip(&other.ratios).map(|(own, other)| own / other))
}

/// The fastest row.
fn best<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<&'a Row> {
    rows.filter(|row| row.failed.is_none()).max_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median))
}

/// The fastest fixed setting, and the fastest `auto`.
pub fn over_standard(case: &Case) -> (Option<&Row>, Option<&Row>) {
    let taking_turns = |row: &&Row| ![OVERLAPPING, TWO_GPUS].iter().any(|end| row.name.ends_with(end));
    let own = || case.rows.iter().filter(|row| !row.peer).filter(taking_turns);
    let is_auto = |row: &&Row| row.name.starts_with("auto");
    (best(own().filter(|row| !is_auto(row))), best(own().filter(is_auto)))
}

/// The line of a case in the table of all cases.
fn summary(case: &Case) -> Value {
    let (fixed, auto) = over_standard(case);
    let peer = |prefix: &str| {
        let peer = best(case.rows.iter().filter(|row| row.peer && row.name.starts_with(prefix)))?;
        auto.map(|auto| spread(over(auto, peer)))
    };
    context! {
        title => &case.title,
        models => case.models.join(", "),
        standard => format!("{:.0}", case.rows[0].tokens_per_second.median),
        fixed => or_dash(fixed.map(|row| format!("{} {}", row.name, spread(row.ratio)))),
        auto => or_dash(auto.map(|row| spread(row.ratio))),
        auto_of_best => or_dash(auto.zip(fixed).map(|(auto, fixed)| spread(over(auto, fixed)))),
        genai => or_dash(peer("genai")),
        transformers => or_dash(peer("transformers, standard")),
        algorithm => or_dash(peer("transformers, Algorithm")),
        paper => paper(case).unwrap_or("–"),
    }
}

/// The paper's speed of CoS over standard for the same kind of case, on GPUs (Tables 1 to 3).
fn paper(case: &Case) -> Option<&'static str> {
    Some(match (case.kind.as_str(), case.temperature == 0.0, case.prompts.as_str()) {
        ("weighted, two models", false, "gsm8k") => "1.46–1.52",
        ("weighted, two models", false, "humaneval") => "1.56–1.62",
        ("weighted, three models", false, "gsm8k") => "1.53",
        ("weighted, three models", false, "humaneval") => "1.85",
        ("contrastive", true, "gsm8k") => "1.65–2.00",
        ("contrastive", true, "humaneval") => "1.26–2.23",
        ("contrastive", false, "gsm8k") => "1.20–1.44",
        ("contrastive", false, "humaneval") => "1.15–1.65",
        _ => return None,
    })
}

fn section(case: &Case) -> Value {
    let rows = case.rows.iter().map(|row| {
        let cells = match &row.failed {
            Some(reason) => vec![format!("skipped: {reason}")],
            None => vec![
                format!("{:.0}", row.tokens_per_second.median),
                spread(row.ratio),
                or_dash(row.accepted.map(|share| format!("{share:.2}"))),
                or_dash(row.passes_per_token.filter(|_| !row.peer).map(|passes| format!("{passes:.2}"))),
                or_dash(row.positions_per_pass.map(|positions| format!("{positions:.2}"))),
                or_dash(row.host_share.map(|share| format!("{:.1}%", 100.0 * share))),
                or_dash(row.equal.map(|(same, of)| format!("{same}/{of}"))),
            ],
        };
        context! { name => &row.name, cells, failed => row.failed.is_some() }
    });
    let chosen = case.rows.iter().filter_map(|row| Some(vec![row.name.clone(), row.chosen.clone()?]));
    context! {
        title => &case.title,
        about => &case.about,
        models => case.models.join(", "),
        amount => format!("{} prompts × {} tokens, {} rounds", case.prompts_count, case.tokens, case.rounds),
        rows => rows.collect::<Vec<_>>(),
        chosen => chosen.collect::<Vec<_>>(),
        plot => Value::from_safe_string(ratios(case)),
        costs => costs(case),
    }
}

/// The times of passes: a row for each model, and a column for each width.
fn costs(case: &Case) -> Value {
    let mut rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut widths: Vec<usize> = case.pass_costs.iter().map(|cost| cost.width).collect();
    widths.sort_unstable();
    widths.dedup();
    for cost in &case.pass_costs {
        rows.entry(&cost.model).or_default().push(format!("{:.2}", cost.milliseconds.median));
    }
    context! { widths, rows => rows.into_iter().map(|(model, cells)| context! { model, cells }).collect::<Vec<_>>() }
}

/// The rows of a case that the theory covers.
fn theory(case: &Case) -> Vec<Value> {
    let line = |row: &Row| {
        let theory = row.theory.as_ref()?;
        let short = theory.reached.median < REACHED;
        let acceptance: Vec<String> =
            row.acceptance.iter().map(|share| or_dash(share.map(|share| format!("{share:.2}")))).collect();
        Some(context! {
            case => &case.title,
            name => &row.name,
            acceptance => acceptance.join(", "),
            measured => spread(row.ratio),
            theorem => or_dash(theory.theorem.map(|ratio| format!("{ratio:.2}"))),
            expected => format!("{:.2}", theory.expected),
            reached => spread(theory.reached),
            host => format!("{:.3}", theory.host),
            passes => format!("{:.3}", theory.passes),
            rest => format!("{:.3}", theory.rest),
            short,
            why => if short { why(theory.host, theory.passes, theory.rest) } else { String::new() },
        })
    };
    case.rows.iter().filter_map(line).collect()
}

/// A sentence about the smallest factor of a row.
fn why(host: f64, passes: f64, rest: f64) -> String {
    let factors = [
        (host, "work outside ONNX Runtime takes a larger share of the time than with standard"),
        (passes, "there were more passes than with independent acceptance: rejections come in runs"),
        (rest, "passes took longer than when they were timed alone"),
    ];
    let least = factors.iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("three");
    least.1.into()
}

/// A plot of the ratios of all rows, with their ranges over rounds.
pub fn ratios(case: &Case) -> String {
    const NAME: f64 = 190.0;
    const LENGTH: f64 = 250.0;
    const ROW: f64 = 19.0;
    let rows: Vec<&Row> = case.rows.iter().filter(|row| row.failed.is_none()).collect();
    let most = rows.iter().map(|row| row.ratio.most).fold(1.0, f64::max);
    let x = |ratio: f64| NAME + LENGTH * (ratio / most).clamp(0.0, 1.0);
    let height = ROW * rows.len() as f64 + 4.0;
    let title = escape(&case.title);
    let mut svg =
        format!("<svg viewBox=\"0 0 500 {height}\" role=\"img\" aria-label=\"{title}: speed over standard\">\n");
    for (index, row) in rows.iter().enumerate() {
        let y = ROW * index as f64 + 2.0;
        let class = if row.peer { "peer" } else { "own" };
        let middle = y + 7.5;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{NAME}\" y=\"{y}\" width=\"{:.1}\" height=\"15\"/>\
             <path class=\"whisker\" d=\"M{:.1} {middle}H{:.1}\"/><text x=\"{}\" y=\"{}\">{:.2}</text>",
            NAME - 6.0,
            y + 12.0,
            escape(&row.name),
            x(row.ratio.median) - NAME,
            x(row.ratio.least),
            x(row.ratio.most),
            NAME + LENGTH + 8.0,
            y + 12.0,
            row.ratio.median
        );
    }
    let _ = writeln!(svg, "<path class=\"one\" d=\"M{0:.1} 0V{height}\"/>\n</svg>", x(1.0));
    svg
}

/// The rows of a sweep that are points of its curves.
fn points(case: &Case) -> impl Iterator<Item = &Row> {
    case.rows.iter().filter(|row| row.failed.is_none() && !row.series.is_empty())
}

/// A sweep as plots, and as a table with a column for each curve.
fn sweep(case: &Case) -> Value {
    let measured = || points(case);
    let mut series: Vec<&str> = Vec::new();
    let mut places: Vec<f64> = Vec::new();
    for row in measured() {
        if !series.contains(&row.series.as_str()) {
            series.push(&row.series);
        }
        if !places.contains(&row.at) {
            places.push(row.at);
        }
    }
    let find = |series: &str, at: f64| measured().find(|row| row.series == series && row.at == at);
    let rows = places.iter().map(|&at| {
        let cells = series.iter().map(|series| {
            or_dash(find(series, at).map(|row| match row.likelihood {
                Some(likelihood) => format!("{}; {likelihood:.2}", spread(row.ratio)),
                None => spread(row.ratio),
            }))
        });
        context! { at => format!("{}", (at * 100.0).round() / 100.0), cells => cells.collect::<Vec<_>>() }
    });
    let symbol = case.sweep.clone().unwrap_or_default();
    let quality = case.judge.is_some();
    let mut plots = vec![Value::from_safe_string(curves(case, &series, false))];
    if quality {
        plots.push(Value::from_safe_string(curves(case, &series, true)));
    }
    context! {
        title => &case.title,
        about => &case.about,
        models => case.models.join(", "),
        amount => format!("{} prompts × {} tokens, {} rounds", case.prompts_count, case.tokens, case.rounds),
        standard => format!("{:.0}", case.rows[0].tokens_per_second.median),
        symbol,
        quality,
        series => series.iter().map(|name| name.to_string()).collect::<Vec<_>>(),
        rows => rows.collect::<Vec<_>>(),
        plots,
    }
}

/// A plot of speed over the parameter, or of likelihood over speed.
fn curves(case: &Case, series: &[&str], quality: bool) -> String {
    let rows = || points(case);
    let fastest = rows().map(|row| row.ratio.most).fold(1.0, f64::max) * 1.05;
    let speed = |title| axis(title, 0.0, fastest);
    let (x, y) = if quality {
        let likelihoods = || rows().filter_map(|row| row.likelihood);
        let worst = likelihoods().fold(f64::INFINITY, f64::min);
        let best = likelihoods().fold(f64::NEG_INFINITY, f64::max);
        let margin = 0.1 * (best - worst) + 0.01;
        (
            speed("speed over the large model alone"),
            axis("mean log-likelihood of a token", worst - margin, best + margin),
        )
    } else {
        let most = rows().map(|row| row.at).fold(0.0, f64::max);
        let title = match case.sweep.as_deref() {
            Some("γ") => "γ",
            Some("μ") => "μ",
            _ => "λ",
        };
        (axis(title, 0.0, most * 1.03), speed("speed over standard"))
    };
    let most = x.most;
    let mut plot = Plot::new(x, y);
    if !quality {
        plot.line("one", [(0.0, 1.0), (most, 1.0)]);
    }
    for (index, name) in series.iter().enumerate() {
        let class = format!("curve c{index}");
        let place = |row: &Row, ratio: f64| match row.likelihood.filter(|_| quality) {
            Some(likelihood) => (ratio, likelihood),
            None => (row.at, ratio),
        };
        let own = || rows().filter(|row| row.series == *name);
        for row in own() {
            plot.line(&format!("range c{index}"), [place(row, row.ratio.least), place(row, row.ratio.most)]);
        }
        plot.line(&class, own().map(|row| place(row, row.ratio.median)));
        plot.dots(&format!("dots c{index}"), own().map(|row| place(row, row.ratio.median)));
        for row in own() {
            plot.hint(place(row, row.ratio.median), &format!("{}: {}", row.name, spread(row.ratio)));
        }
    }
    plot.svg(&format!("{}: {}", case.title, series.join(", ")))
}

/// An axis with five to ten ticks at round numbers.
pub fn axis(title: &'static str, least: f64, most: f64) -> Axis {
    let rough = (most - least) / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough).unwrap_or(rough);
    let (first, last) = ((least / step).ceil() as i64, (most / step).floor() as i64);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let ticks = (first..=last).map(|tick| (tick as f64 * step, format!("{:.decimals$}", tick as f64 * step)));
    Axis { title, least, most, ticks: ticks.collect() }
}
