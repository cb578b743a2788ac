//! Plots as SVG for reports: axes, bands, lines and points. The page's style sheet gives colours to classes.

use std::collections::BTreeSet;
use std::fmt::Write;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 50.0;

/// Escapes a text for HTML and SVG, in content and in attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Tokens may contain control characters, which HTML does not allow.
            c if c.is_control() => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

/// An axis with equal steps. A logarithmic axis takes logarithms, and its labels show powers.
pub struct Axis {
    pub title: &'static str,
    pub least: f64,
    pub most: f64,
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A logarithmic axis from `least` to `most`, which are logarithms, with ticks at round numbers.
    pub fn logarithmic(title: &'static str, least: f64, most: f64) -> Axis {
        let decades = most - least;
        let every = (decades / 7.0).ceil().max(1.0) as i32;
        let digits: &[i32] = if decades < 2.5 { &[1, 2, 5] } else { &[1] };
        let mut ticks = Vec::new();
        for exponent in least.floor() as i32..=most.ceil() as i32 {
            for &digit in digits {
                let at = f64::from(exponent) + f64::from(digit).log10();
                if exponent % every == 0 && (least - 1e-9..=most + 1e-9).contains(&at) {
                    ticks.push((at, power(digit, exponent)));
                }
            }
        }
        Axis { title, least, most, ticks }
    }

    /// A linear axis from 0 to `most`, with ticks at round numbers.
    pub fn linear(title: &'static str, most: f64) -> Axis {
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0].into_iter().find(|s| most / s <= 8.0).unwrap_or(200.0);
        let ticks = (0..=(most / step) as usize).map(|i| i as f64 * step);
        Axis { title, least: 0.0, most, ticks: ticks.map(|at| (at, format!("{at}"))).collect() }
    }

    /// The place of a value from 0 to 1. Values beyond the axis are put at its end.
    fn at(&self, value: f64) -> f64 {
        within((value - self.least) / (self.most - self.least))
    }
}

/// Clamps to 0 and 1. NaN becomes a number too.
fn within(share: f64) -> f64 {
    if share > 0.0 { share.min(1.0) } else { 0.0 }
}

/// `digit` · 10^`exponent` in the usual notation.
fn power(digit: i32, exponent: i32) -> String {
    match exponent {
        0..=3 => format!("{}", digit * 10i32.pow(exponent as u32)),
        -3..=-1 => format!("{:.*}", -exponent as usize, f64::from(digit) * 10f64.powi(exponent)),
        _ => {
            let raise =
                |c: char| c.to_digit(10).map_or('⁻', |digit| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(digit as usize).unwrap());
            let ten = format!("10{}", exponent.to_string().chars().map(raise).collect::<String>());
            if digit == 1 { ten } else { format!("{digit}·{ten}") }
        }
    }
}

/// A plot with two axes. Later parts cover earlier ones.
pub struct Plot {
    x: Axis,
    y: Axis,
    body: String,
}

impl Plot {
    pub fn new(x: Axis, y: Axis) -> Plot {
        Plot { x, y, body: String::new() }
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (LEFT + self.x.at(x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - self.y.at(y) * (HEIGHT - BOTTOM - TOP))
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut path = String::new();
        for (i, point) in points.enumerate() {
            let (x, y) = self.place(point);
            let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
        }
        path
    }

    pub fn line(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let path = self.path(points.into_iter());
        let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{path}\"/>");
    }

    /// The area between two curves: x, the lower y, the upper y.
    pub fn band(&mut self, class: &str, points: &[(f64, f64, f64)]) {
        let upper = points.iter().map(|&(x, _, high)| (x, high));
        let path = self.path(upper.chain(points.iter().rev().map(|&(x, low, _)| (x, low))));
        let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{path}Z\"/>");
    }

    /// Dots as one path, because there may be thousands. Dots at the same place are drawn once.
    pub fn dots(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        self.marks(class, "h0", points);
    }

    /// Crosses, which differ from dots even without colours.
    pub fn crosses(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        self.marks(class, "m-4-4l8 8m-8 0l8-8", points);
    }

    fn marks(&mut self, class: &str, mark: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let places = points.into_iter().map(|point| self.place(point));
        let places: BTreeSet<_> = places.map(|(x, y)| (x.round() as i32, y.round() as i32)).collect();
        if places.is_empty() {
            return;
        }
        let _ = write!(self.body, "<path class=\"{class}\" d=\"");
        for (x, y) in places {
            let _ = write!(self.body, "M{x} {y}{mark}");
        }
        let _ = writeln!(self.body, "\"/>");
    }

    /// An invisible disc with a text that appears when the pointer is over it.
    pub fn hint(&mut self, point: (f64, f64), text: &str) {
        let (x, y) = self.place(point);
        let text = escape(text);
        let _ = writeln!(
            self.body,
            "<circle class=\"hint\" cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"6\"><title>{text}</title></circle>"
        );
    }

    /// `alternative` describes the plot to readers who cannot see it.
    pub fn svg(self, alternative: &str) -> String {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n<path class=\"grid\" d=\"",
            escape(alternative)
        );
        for (at, _) in &self.x.ticks {
            let _ = write!(svg, "M{:.1} {TOP}V{bottom}", self.place((*at, 0.0)).0);
        }
        for (at, _) in &self.y.ticks {
            let _ = write!(svg, "M{LEFT} {:.1}H{right}", self.place((0.0, *at)).1);
        }
        let _ = writeln!(svg, "\"/>\n{}<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>", self.body);
        for (at, label) in &self.x.ticks {
            let x = self.place((*at, 0.0)).0;
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", bottom + 17.0);
        }
        for (at, label) in &self.y.ticks {
            let y = self.place((0.0, *at)).1 + 4.0;
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{y:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 6.0);
        }
        let (across, up) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        let _ = writeln!(
            svg,
            "<text class=\"title\" x=\"{across}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text class=\"title\" transform=\"translate(14 {up}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n\
             </svg>",
            HEIGHT - 10.0,
            escape(self.x.title),
            escape(self.y.title)
        );
        svg
    }
}

/// One pair of bars.
pub struct Bar {
    pub label: String,
    pub expected: f64,
    pub observed: f64,
    /// The difference of the two, in words.
    pub note: String,
    pub outside: bool,
}

/// Pairs of horizontal bars up to `most`: the expected value above the observed one. Lengths are square roots, so rare
/// cells are visible, and the standard error of a count has about the same length everywhere.
pub fn bars(bars: &[Bar], most: f64, alternative: &str) -> String {
    const NAME: f64 = 118.0;
    const LENGTH: f64 = 210.0;
    const ROW: f64 = 24.0;
    const HEAD: f64 = 24.0;
    let height = HEAD + ROW * bars.len() as f64 + 2.0;
    let mut svg = format!("<svg viewBox=\"0 0 400 {height}\" role=\"img\" aria-label=\"{}\">\n", escape(alternative));
    let _ = write!(svg, "<text x=\"398\" y=\"15\" text-anchor=\"end\">off, SE</text>");
    for share in [0.0, 0.25, 1.0f64] {
        let (x, frequency) = (NAME + LENGTH * share.sqrt(), 100.0 * most * share);
        let decimals = usize::from(frequency > 0.0 && most < 0.4);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{x} {HEAD}V{height}\"/>\
             <text x=\"{x}\" y=\"15\" text-anchor=\"middle\">{frequency:.decimals$}%</text>",
        );
    }
    for (i, bar) in bars.iter().enumerate() {
        let y = HEAD + ROW * i as f64;
        let length = |frequency: f64| within(frequency / most).sqrt() * LENGTH;
        let class = if bar.outside { "observed outside" } else { "observed" };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\
             <rect class=\"expected\" x=\"{NAME}\" y=\"{:.0}\" width=\"{:.1}\" height=\"9\"/>\
             <rect class=\"{class}\" x=\"{NAME}\" y=\"{:.0}\" width=\"{:.1}\" height=\"9\"/>\
             <text class=\"{}\" x=\"398\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
            NAME - 6.0,
            y + 16.0,
            escape(&bar.label),
            y + 2.0,
            length(bar.expected),
            y + 11.0,
            length(bar.observed),
            if bar.outside { "off" } else { "" },
            y + 16.0,
            escape(&bar.note)
        );
    }
    let _ = writeln!(svg, "<path class=\"axis\" d=\"M{NAME} {HEAD}V{height}\"/>\n</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        let labels = |axis: Axis| axis.ticks.into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(labels(Axis::logarithmic("", -5.0, 0.0)), ["10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1", "1"]);
        assert_eq!(labels(Axis::logarithmic("", 0.0002f64.log10(), -3.0)), ["2·10⁻⁴", "5·10⁻⁴", "0.001"]);
        assert_eq!(labels(Axis::linear("", 4.2)), ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn what_is_off_the_axes_lies_at_their_ends() {
        let axis = Axis::linear("", 4.0);
        assert_eq!([-1.0, 2.0, f64::INFINITY, f64::NAN].map(|v| axis.at(v)), [0.0, 0.5, 1.0, 0.0]);
    }
}
