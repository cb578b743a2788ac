//! What templates use of Python: `tojson` as `json.dumps` writes it, and methods of strings, lists and dictionaries.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

/// How deep values may nest in `tojson`.
const DEPTH: usize = 256;

/// Add filters, tests and methods, and replace those that differ from Jinja's.
pub fn add_to(environment: &mut Environment) {
    minijinja_contrib::add_to_environment(environment);
    environment.remove_global("debug");
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| text(value).unwrap_or_else(|| value.to_string()));
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    // Jinja gives the default value for what is no number, and takes spaces around one.
    environment.add_filter("int", |value: &Value, default: Option<Value>| match number(value) {
        Some(_) if value.is_integer() => value.clone(),
        Some(number) => Value::from(number as i128),
        None => default.unwrap_or(Value::from(0)),
    });
    environment.add_filter("float", |value: &Value, default: Option<Value>| match number(value) {
        Some(number) => Value::from(number),
        None => default.unwrap_or(Value::from(0.0)),
    });
    // In Python, texts and dictionaries are sequences too.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.set_formatter(|out, state, value| match text(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => escape_formatter(out, state, value),
    });
    environment.set_unknown_method_callback(method);
}

fn refuse(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// The filter `tojson` of transformers: `json.dumps` with its settings.
fn tojson(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let setting = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get(name)?,
        };
        Ok(given.filter(|value| !value.is_none()))
    };
    let ascii = setting(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = setting(1, "indent")?.map(|indent| match indent.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(indent.as_usize().unwrap_or(0).min(100)),
    });
    let separators = match setting(2, "separators")? {
        Some(pair) => {
            let part = |index: usize| pair.get_item_by_index(index).map(|part| part.to_string());
            (part(0)?, part(1)?)
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let sort = setting(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let mut json = Json { state, out: String::new(), ascii, indent, separators, sort };
    json.value(value, 0)?;
    Ok(json.out)
}

struct Json<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    ascii: bool,
    indent: Option<String>,
    /// What stands between items, and behind a key.
    separators: (String, String),
    sort: bool,
}

impl Json<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(refuse("tojson got a value that nests too deep"));
        }
        // The same list may be in a value many times, so each item counts as a step.
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&json_number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.container(['[', ']'], items, depth)?;
            }
            ValueKind::Map => {
                let item = |key: Value| Ok((Some(key_text(&key)?), value.get_item(&key)?));
                let mut items = value.try_iter()?.map(item).collect::<Result<Vec<_>, Error>>()?;
                if self.sort {
                    items.sort_by(|one, other| one.0.cmp(&other.0));
                }
                self.container(['{', '}'], items, depth)?;
            }
            kind => return Err(refuse(format!("tojson got a value of the type {kind}, which JSON does not have"))),
        }
        Ok(())
    }

    fn container(&mut self, ends: [char; 2], items: Vec<(Option<String>, Value)>, depth: usize) -> Result<(), Error> {
        let is_empty = items.is_empty();
        self.out.push(ends[0]);
        for (index, (key, item)) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.separators.0);
            }
            self.line(depth + 1);
            if let Some(key) = key {
                self.string(&key);
                self.out.push_str(&self.separators.1);
            }
            self.value(&item, depth + 1)?;
        }
        if !is_empty {
            self.line(depth);
        }
        self.out.push(ends[1]);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if character < ' ' || self.ascii && !character.is_ascii() || self.ascii && character == '\u{7f}' => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}

/// The key of a dictionary as JSON has it.
fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.to_string(),
        ValueKind::Number => json_number(key),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::None => "null".to_owned(),
        kind => return Err(refuse(format!("tojson got a key of the type {kind}, which JSON does not have"))),
    })
}

fn json_number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => float(number, "NaN", "Infinity"),
        _ => value.to_string(),
    }
}

/// The text of a float, which Python writes otherwise than Rust. `None`: the value is no float.
fn text(value: &Value) -> Option<String> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).map(|number| float(number, "nan", "inf")).ok())?
}

/// A float as Python writes it: the shortest digits that give it back, with an exponent if that is below -4 or from 16.
fn float(number: f64, nan: &str, infinity: &str) -> String {
    if !number.is_finite() {
        return if number.is_nan() { nan.into() } else { format!("{}{infinity}", if number < 0.0 { "-" } else { "" }) };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number == 0.0 || (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The number that a value is, or that its text says.
fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        None => f64::try_from(value.clone()).ok(),
    }
}

fn default(value: &Value, other: Option<Value>, boolean: Option<bool>, named: Kwargs) -> Result<Value, Error> {
    let other = match other {
        Some(other) => other,
        None => named.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let boolean = match boolean {
        Some(boolean) => boolean,
        None => named.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    named.assert_all_used()?;
    Ok(if value.is_undefined() || boolean && !value.is_true() { other } else { value.clone() })
}

/// A method of Python: one that `minijinja-contrib` does not have, or else has in another form.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let pair = |(one, other): (&str, &str)| [one, other].map(|part| Value::from(part.to_owned()));
    match (value.as_str(), value.kind(), name) {
        (Some(text), _, "removeprefix") => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        (Some(text), _, "removesuffix") => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        (Some(text), _, "partition") => {
            let (separator,): (&str,) = from_args(arguments)?;
            let [before, behind] = pair(text.split_once(separator).unwrap_or((text, "")));
            let found = if text.contains(separator) { separator } else { "" };
            Ok(Tuple::from([before, found.into(), behind]).into())
        }
        (Some(text), _, "rpartition") => {
            let (separator,): (&str,) = from_args(arguments)?;
            let [before, behind] = pair(text.rsplit_once(separator).unwrap_or(("", text)));
            let found = if text.contains(separator) { separator } else { "" };
            Ok(Tuple::from([before, found.into(), behind]).into())
        }
        (Some(text), _, "rsplit") => {
            let (separator, most): (&str, Option<usize>) = from_args(arguments)?;
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<Value> =
                text.rsplitn(most, separator).map(|part| Value::from(part.to_owned())).collect();
            parts.reverse();
            Ok(parts.into())
        }
        (Some(text), _, "split") => {
            let (positional, named): (&[Value], Kwargs) = from_args(arguments)?;
            let given = |index: usize, name: &str| -> Result<Value, Error> {
                Ok(positional.get(index).cloned().or(named.get::<Option<Value>>(name)?).unwrap_or(Value::from(())))
            };
            let arguments = [given(0, "sep")?, given(1, "maxsplit")?];
            let unlimited = arguments[1].as_i64().is_some_and(|most| most < 0);
            unknown_method_callback(state, &text.into(), name, &arguments[..if unlimited { 1 } else { 2 }])
        }
        (Some(text), _, "splitlines") if arguments.is_empty() => Ok(lines(text).map(Value::from).collect()),
        (Some(text), _, "isdigit" | "isdecimal") => {
            Ok((!text.is_empty() && text.chars().all(|character| character.is_ascii_digit())).into())
        }
        (None, ValueKind::Map | ValueKind::Seq, "copy") => Ok(value.clone()),
        (None, ValueKind::Seq, "index") => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let found = value.try_iter()?.position(|item| item == *wanted);
            found.map(Value::from).ok_or_else(|| refuse(format!("{wanted} is not in the list")))
        }
        _ => unknown_method_callback(state, value, name, arguments),
    }
}

/// The lines of a text, which end where Python sees the end of a line.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let is_end =
        |character: char| matches!(character, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(is_end).unwrap_or(rest.len());
        let (line, behind) = rest.split_at(end);
        let length = if behind.starts_with("\r\n") { 2 } else { behind.chars().next().map_or(0, char::len_utf8) };
        rest = &behind[length..];
        Some(line)
    })
}
