//! The report of `make bench-cuda`: a Markdown page with plots, from the results of a run over small models and one
//! over the same models extended.

use std::fmt::Write;
use std::path::Path;

use minijinja::{Value, context};

use super::cases::{ALONE, OVERLAPPING, TWO_GPUS};
use super::measure::Result;
use super::report::{Axis, Plot, axis, escape, or_dash, over_standard, ratios, render_with, spread};
use super::results::{Case, PromptCost, RawCost, Results, Row, Spread};

/// The folders of results, with a title and a description of the models.
const VARIANTS: [(&str, &str, &str); 2] = [
    ("models", "The models", "the models as they are, exported in float16 for CUDA."),
    (
        "extended",
        "The extended models",
        "the same models with additional residual layers that are computed in full and whose output is zero \
         (`scripts/extend_model.py`). Distributions and acceptance are those of the small models, and a pass costs as \
         much as in a model with so many more parameters. They stand in for large models.",
    ),
];

struct Variant {
    name: &'static str,
    title: &'static str,
    about: String,
    results: Results,
}

/// Write `cuda.md` and `cuda/*.svg`.
pub fn write(from: &Path, folder: &Path) -> Result<()> {
    let mut variants = Vec::new();
    for (name, title, about) in VARIANTS {
        let file = from.join(name).join("results.json");
        let Ok(text) = std::fs::read_to_string(&file) else {
            println!("{} does not exist, so it is left out", file.display());
            continue;
        };
        let mut results: Results =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        // Another process measures passes, so that its failure does not affect the rest.
        if let Ok(text) = std::fs::read_to_string(from.join(format!("{name}-passes/results.json"))) {
            let passes: Results = serde_json::from_str(&text)?;
            (results.raw, results.prompts) = (passes.raw, passes.prompts);
            results.notes.extend(passes.notes);
        }
        let added = std::fs::read_to_string(from.join(name).with_extension("txt")).unwrap_or_default();
        let added = added.lines().collect::<Vec<_>>().join("; ");
        let about = if added.is_empty() { about.into() } else { format!("{about} Added: {added}.") };
        variants.push(Variant { name, title, about, results });
    }
    if variants.is_empty() {
        return Err(format!("{} has no results of `scripts/bench-cuda run`", from.display()).into());
    }
    let plots = folder.join("cuda");
    std::fs::create_dir_all(&plots)?;
    let save = |name: &str, svg: String| std::fs::write(plots.join(name).with_extension("svg"), svg);
    for variant in &variants {
        save(variant.name, columns(variant.results.cases.iter().filter(|case| case.kind != ALONE).map(panel)))?;
    }
    if variants.iter().any(|variant| !variant.results.raw.is_empty()) {
        save("passes", columns(variants.iter().filter_map(passes_plot)))?;
    }
    if variants.iter().any(|variant| peer_cases(variant).next().is_some()) {
        save("peers", columns(variants.iter().flat_map(peer_cases).map(|(variant, case)| speeds(variant, case))))?;
    }
    std::fs::write(folder.join("cuda.md"), render_with("cuda.md", include_str!("cuda.md"), page(&variants))?)?;
    println!("{}", folder.join("cuda.md").display());
    Ok(())
}

fn page(variants: &[Variant]) -> Value {
    let fact = |name: &str| {
        let facts = variants.iter().flat_map(|variant| &variant.results.facts);
        facts.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    let raw = || variants.iter().flat_map(|variant| variant.results.raw.iter().map(move |cost| (variant, cost)));
    let pass = |(variant, cost): (&Variant, &RawCost)| {
        let over = |other: Spread| format!("{:.2}", cost.ours.median / other.median);
        vec![
            variant.title.to_string(),
            cost.model.clone(),
            cost.width.to_string(),
            milliseconds(cost.ours),
            milliseconds(cost.raw),
            over(cost.raw),
            or_dash(cost.copied.map(milliseconds)),
            or_dash(cost.copied.map(over)),
        ]
    };
    let prompt = |(variant, cost): (&Variant, &PromptCost)| {
        let tokens = cost.tokens.to_string();
        vec![variant.title.to_string(), cost.model.clone(), tokens, milliseconds(cost.first), milliseconds(cost.again)]
    };
    let prompts =
        variants.iter().flat_map(|variant| variant.results.prompts.iter().map(move |cost| prompt((variant, cost))));
    let peers = variants.iter().flat_map(peer_cases).flat_map(|(variant, case)| {
        compared(case).into_iter().map(|row| {
            let measured = match &row.failed {
                Some(reason) => [format!("failed: {}", cell(reason)), String::new()],
                None => [format!("{:.0}", row.tokens_per_second.median), spread(row.ratio)],
            };
            let name = if row.peer { row.name.clone() } else { format!("CoS, {}", row.name) };
            [variant.title.to_string(), case.title.clone(), name].into_iter().chain(measured).collect::<Vec<_>>()
        })
    });
    context! {
        two_gpus => variants.iter().flat_map(|variant| &variant.results.cases).flat_map(|case| &case.rows)
            .any(|row| row.name.ends_with(TWO_GPUS)),
        device => fact("GPU, driver, memory").or(fact("machine")).unwrap_or_default(),
        variants => variants.iter().map(section).collect::<Vec<_>>(),
        context => raw().map(|(_, cost)| cost.context).next(),
        passes => raw().map(pass).collect::<Vec<_>>(),
        passes_plot => "cuda/passes.svg",
        prompts => prompts.collect::<Vec<_>>(),
        peers => peers.collect::<Vec<_>>(),
        peers_plot => "cuda/peers.svg",
    }
}

fn section(variant: &Variant) -> Value {
    let case = |case: &Case| {
        let (fixed, auto) = over_standard(case);
        context! {
            title => &case.title,
            about => &case.about,
            models => case.models.join(", "),
            standard => case.rows.first().map(|row| format!("{:.0}", row.tokens_per_second.median)),
            fixed => or_dash(fixed.map(|row| format!("{} {}", row.name, spread(row.ratio)))),
            auto => or_dash(auto.map(|row| spread(row.ratio))),
            overlapping => both(case, OVERLAPPING),
            two_gpus => both(case, TWO_GPUS),
            amount => format!("{} prompts × {} tokens, {} rounds", case.prompts_count, case.tokens, case.rounds),
            rows => case.rows.iter().map(line).collect::<Vec<_>>(),
        }
    };
    context! {
        title => variant.title,
        about => &variant.about,
        plot => format!("cuda/{}.svg", variant.name),
        cases => variant.results.cases.iter().map(case).collect::<Vec<_>>(),
        facts => variant.results.facts.iter().map(|(key, value)| [key.clone(), cell(value)]).collect::<Vec<_>>(),
        notes => &variant.results.notes,
    }
}

/// The ratios of `standard` and `auto` with a name that ends in `end`.
fn both(case: &Case, end: &str) -> [String; 2] {
    ["standard", "auto"].map(|name| {
        let row = case.rows.iter().find(|row| row.name.strip_suffix(end) == Some(name));
        or_dash(row.map(|row| spread(row.ratio)))
    })
}

/// A line of the table of a case.
fn line(row: &Row) -> Vec<String> {
    if let Some(reason) = &row.failed {
        let empty = std::iter::repeat_n(String::new(), 6);
        return [row.name.clone(), format!("failed: {}", cell(reason))].into_iter().chain(empty).collect();
    }
    let accepted = row.acceptance.iter().flatten().count();
    let accepted = match row.accepted {
        Some(_) if accepted > 1 => {
            let each = row.acceptance.iter().map(|share| or_dash(share.map(|share| format!("{share:.2}"))));
            Some(each.collect::<Vec<_>>().join(", "))
        }
        share => share.map(|share| format!("{share:.2}")),
    };
    let equal = row.equal.filter(|(same, of)| same < of && row.name != "standard");
    let equal = equal.map_or(String::new(), |(same, of)| format!(", {same}/{of} texts equal"));
    let chosen = row.chosen.as_ref().map_or(String::new(), |chosen| format!(" (chose {})", cell(chosen)));
    vec![
        format!("{}{chosen}{equal}", row.name),
        format!("{:.0}", row.tokens_per_second.median),
        spread(row.ratio),
        or_dash(accepted),
        or_dash(row.host_share.map(|share| format!("{:.1} %", 100.0 * share))),
        or_dash(row.theory.as_ref().map(|theory| format!("{:.2}", theory.expected))),
        or_dash(row.theory.as_ref().map(|theory| spread(theory.reached))),
        or_dash(row.memory.map(megabytes)),
    ]
}

fn milliseconds(spread: Spread) -> String {
    format!("{:.3} ({:.3}–{:.3})", spread.median, spread.least, spread.most)
}

fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Text escaped for a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The cases with peers.
fn peer_cases(variant: &Variant) -> impl Iterator<Item = (&Variant, &Case)> {
    let cases = variant.results.cases.iter().filter(|case| case.rows.iter().any(|row| row.peer));
    cases.map(move |case| (variant, case))
}

/// The rows that are compared with peers: `standard`, `auto`, and the peers.
fn compared(case: &Case) -> Vec<&Row> {
    let name = |row: &Row| row.name.strip_suffix(OVERLAPPING).unwrap_or(&row.name).to_owned();
    case.rows.iter().filter(|row| row.peer || ["standard", "auto"].contains(&&*name(row))).collect()
}

fn panel(case: &Case) -> Panel {
    let rows = case.rows.iter().filter(|row| row.failed.is_none()).count();
    Panel { title: case.title.clone(), width: 500.0, height: 19.0 * rows as f64 + 4.0, svg: ratios(case) }
}

/// A way of running passes, and its time.
type Series = (&'static str, fn(&RawCost) -> Option<Spread>);

/// A plot of the time of a pass by width, in CoS and in plain ONNX Runtime, for the first model.
fn passes_plot(variant: &Variant) -> Option<Panel> {
    let first = &variant.results.raw.first()?.model;
    let costs: Vec<&RawCost> = variant.results.raw.iter().filter(|cost| cost.model == *first).collect();
    let series: [Series; 3] = [
        ("CoS, with copies", |cost| Some(cost.ours)),
        ("plain ONNX Runtime, with copies", |cost| cost.copied),
        ("plain ONNX Runtime, without copies", |cost| Some(cost.raw)),
    ];
    let all = series.iter().flat_map(|(_, of)| costs.iter().filter_map(|cost| of(cost)));
    let most = all.map(|spread| spread.most).fold(0.0, f64::max);
    let widest = costs.iter().map(|cost| cost.width as f64).fold(1.0, f64::max);
    let ticks = costs.iter().map(|cost| (cost.width as f64, cost.width.to_string())).collect();
    let x = Axis { title: "tokens in the pass", least: 0.0, most: widest * 1.05, ticks };
    let mut plot = Plot::new(x, axis("milliseconds", 0.0, most * 1.15));
    let mut key = String::new();
    for (index, (name, of)) in series.into_iter().enumerate() {
        let points: Vec<(f64, Spread)> = costs.iter().filter_map(|cost| Some((cost.width as f64, of(cost)?))).collect();
        for &(width, time) in &points {
            plot.line(&format!("range c{index}"), [(width, time.least), (width, time.most)]);
        }
        let medians = || points.iter().map(|&(width, time)| (width, time.median));
        plot.line(&format!("curve c{index}"), medians());
        plot.dots(&format!("dots c{index}"), medians());
        let y = 330 + 14 * index;
        let _ = write!(
            key,
            "<path class=\"curve c{index}\" d=\"M80 {y}h24\"/><text x=\"110\" y=\"{}\">{}</text>",
            y + 4,
            escape(name)
        );
    }
    let title = format!("{}: {first}", variant.title);
    let svg = plot.svg(&title).replace("</svg>", &format!("{key}</svg>"));
    Some(Panel { title, width: 460.0, height: 400.0, svg })
}

/// A plot of tokens per second.
fn speeds(variant: &Variant, case: &Case) -> Panel {
    const NAME: f64 = 190.0;
    const LENGTH: f64 = 250.0;
    const ROW: f64 = 19.0;
    let rows: Vec<&Row> = compared(case).into_iter().filter(|row| row.failed.is_none()).collect();
    let most = rows.iter().map(|row| row.tokens_per_second.most).fold(1.0, f64::max);
    let height = ROW * rows.len() as f64 + 4.0;
    let mut svg = format!("<svg viewBox=\"0 0 500 {height}\">\n");
    for (index, row) in rows.iter().enumerate() {
        let y = ROW * index as f64 + 2.0;
        let x = |speed: f64| NAME + LENGTH * speed / most;
        let name = if row.peer { row.name.clone() } else { format!("CoS, {}", row.name) };
        let speed = row.tokens_per_second;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{}\" x=\"{NAME}\" y=\"{y}\" width=\"{:.1}\" height=\"15\"/>\
             <path class=\"whisker\" d=\"M{:.1} {}H{:.1}\"/><text x=\"{}\" y=\"{}\">{:.0}</text>",
            NAME - 6.0,
            y + 12.0,
            escape(&name),
            if row.peer { "peer" } else { "own" },
            x(speed.median) - NAME,
            x(speed.least),
            y + 7.5,
            x(speed.most),
            NAME + LENGTH + 8.0,
            y + 12.0,
            speed.median
        );
    }
    svg.push_str("</svg>\n");
    Panel { title: format!("{}: {}, tokens/s", variant.title, case.title), width: 500.0, height, svg }
}

/// A plot with its title and size.
pub struct Panel {
    pub title: String,
    pub width: f64,
    pub height: f64,
    pub svg: String,
}

/// An SVG file with plots in two columns, and their style.
pub fn columns(panels: impl Iterator<Item = Panel>) -> String {
    const STYLE: &str = "
  text { font: 12px system-ui, sans-serif; fill: #5c6570; } .title { fill: #1a1d21; font-size: 13px; }
  path { fill: none; stroke-width: 1; } .paper { fill: #fff; } .grid { stroke: #e8ebef; } .axis { stroke: #5c6570; }
  .own { fill: #1f66c1; } .peer { fill: #a9b1bb; }
  .whisker { stroke: #1a1d21; } .one { stroke: #1a1d21; stroke-dasharray: 3 3; }
  .curve { stroke-width: 2; } .dots { stroke-width: 7; stroke-linecap: round; }
  .c0 { stroke: #1f66c1; } .c1 { stroke: #b26a00; } .c2 { stroke: #7a828c; }
  .c3 { stroke: #217a3c; } .c4 { stroke: #7a3fb0; } .c5 { stroke: #c0272d; }
  @media (prefers-color-scheme: dark) {
    text { fill: #98a2ae; } .title { fill: #e6e9ed; }
    .paper { fill: #15181c; } .grid { stroke: #262c33; } .axis { stroke: #98a2ae; }
    .own { fill: #6aa9f4; } .peer { fill: #66707c; } .whisker, .one { stroke: #e6e9ed; }
    .c0 { stroke: #6aa9f4; } .c1 { stroke: #e0a64b; } .c2 { stroke: #8d96a1; }
    .c3 { stroke: #6cc488; } .c4 { stroke: #b78ae6; } .c5 { stroke: #f0787c; }
  }
";
    const MARGIN: f64 = 16.0;
    const TITLE: f64 = 22.0;
    const WIDTH: f64 = 500.0;
    let mut y = [MARGIN; 2];
    let mut body = String::new();
    for panel in panels {
        let column = usize::from(y[1] < y[0]);
        let (x, top) = (MARGIN + column as f64 * (WIDTH + 2.0 * MARGIN), y[column] + TITLE);
        let size = format!("<svg x=\"{x}\" y=\"{top}\" width=\"{}\" height=\"{}\"", panel.width, panel.height);
        let _ = writeln!(
            body,
            "<text class=\"title\" x=\"{x}\" y=\"{}\">{}</text>\n{}",
            top - 8.0,
            escape(&panel.title),
            panel.svg.replacen("<svg", &size, 1)
        );
        y[column] = top + panel.height + MARGIN;
    }
    let (width, height) = (2.0 * WIDTH + 4.0 * MARGIN, y[0].max(y[1]));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
         {height}\">\n <style>{STYLE}</style>\n<rect class=\"paper\" width=\"{width}\" \
         height=\"{height}\"/>\n{body}</svg>\n"
    )
}
