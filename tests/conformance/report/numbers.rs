//! Numbers and texts as the report shows them.

/// The beginning of a text that fits into a width, in letters.
pub fn shorten(text: &str, most: usize) -> String {
    // Ideographs are twice as wide, and control characters are written as escapes.
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

/// A number with so many decimals and separated thousands.
pub fn decimals(number: f64, decimals: usize) -> String {
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

pub fn thousands(number: f64) -> String {
    decimals(number, 0)
}

/// Three significant digits.
pub fn significant(number: f64) -> String {
    match number.abs() {
        0.0 => "0".into(),
        size if size < 1e-4 => format!("{number:.1e}"),
        size => decimals(number, (2.0 - size.log10().floor()).max(0.0) as usize),
    }
}

/// A probability such as 0.43 or 3e-7.
pub fn probability(p: f64) -> String {
    match p {
        0.0 | 1.0 => format!("{p}"),
        p if p < 0.000_995 => format!("{p:.0e}"),
        p if p < 0.0995 => format!("{:.*}", (1.0 - p.log10().floor()) as usize, p),
        p if p > 0.99 => format!("{p:.3}"),
        p => format!("{p:.2}"),
    }
}

pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A text escaped for Markdown and its tables.
pub fn markdown(text: &str) -> String {
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
