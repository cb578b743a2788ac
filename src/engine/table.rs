//! Formats the description of an engine as a table for people.

use serde_json::Value;

/// Most characters of a cell. A longer text is shortened, because it would widen every line of the table.
const MAX_WIDTH: usize = 160;

/// A row of the table: its title, and its cell for the description of a model. A cell without text shows `-`.
type TableRow = (&'static str, fn(&Value) -> Option<String>);

const ROWS: [TableRow; 14] = [
    ("kind", |model| text(&model["kind"])),
    ("file", |model| text(&model["file"])),
    ("architecture", |model| text(&model["architecture"])),
    ("made by", |model| text(&model["producer"])),
    ("provider", |model| match model["provider"].as_str()? {
        "cuda" => Some(format!("cuda, device {}", model["device_id"])),
        provider => Some(provider.into()),
    }),
    ("bytes", |model| model["bytes"].as_u64().map(grouped)),
    ("inputs", |model| {
        let names = model["inputs"].as_array()?.iter().map(|input| text(&input["name"]));
        Some(names.collect::<Option<Vec<_>>>()?.join(", "))
    }),
    ("logits", |model| {
        let logits = model.get("logits")?;
        Some(format!("{} x {}, {} positions", text(&logits["type"])?, logits["columns"], text(&logits["rows"])?))
    }),
    ("cache", |model| {
        let cache = model.get("cache")?;
        let kind = text(&cache["kind"])?;
        Some(match cache["capacity"].as_u64() {
            Some(capacity) => format!("{kind} ({capacity} tokens), {}", text(&cache["type"])?),
            None => text(&cache["type"]).map_or(kind.clone(), |element| format!("{kind}, {element}")),
        })
    }),
    ("layers x heads x size", |model| {
        let cache = model.get("cache").filter(|cache| cache["layers"] != 0)?;
        Some(format!("{} x {} x {}", cache["layers"], merged(&cache["heads"])?, merged(&cache["head_size"])?))
    }),
    ("cache bytes per token", |model| model["cache"]["bytes_per_token"].as_u64().map(grouped)),
    ("rollback, scoring", |model| {
        let (rollback, scoring) = (text(&model["cache"]["rollback"])?, text(&model["scoring"])?);
        Some(format!("{rollback}, {scoring} (deviation {:.0e})", model["deviation"].as_f64()?))
    }),
    ("context length", |model| model["context_length"].as_u64().map(grouped)),
    ("stop tokens", |model| model.get("stop_tokens").map(Value::to_string)),
];

/// The table of an engine's description: one column for each model, and the warnings below.
pub fn table(description: &Value) -> String {
    let models = description["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(models.iter().map(|model| shortened(&text(&model["name"]).unwrap_or_default())));
    for (title, cell) in ROWS {
        let mut row = vec![title.to_owned()];
        row.extend(models.iter().map(|model| cell(model).map_or("-".into(), |cell| shortened(&cell))));
        rows.push(row);
    }
    let widths: Vec<usize> = (0..=models.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = format!(
        "CoS {}, {}, vocabulary of {} tokens, stop tokens {}, {}{}\ncombination {}\n\n",
        text(&description["version"]).unwrap_or_default(),
        text(&description["onnxruntime"]).unwrap_or_else(|| "no ONNX Runtime".into()),
        description["vocab_size"],
        shortened(&description["stop_tokens"].to_string()),
        if description["tokenizer"] == true { "tokenizer" } else { "no tokenizer" },
        if description["chat_templates"][0].is_string() { " and chat template" } else { "" },
        description["combine"],
    );
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    append_warnings(description, models, &mut out);
    out
}

fn append_warnings(description: &Value, models: &[Value], out: &mut String) {
    let of_engine = description["warnings"].as_array().into_iter().flatten().map(|warning| (String::new(), warning));
    let of_models = models.iter().flat_map(|model| {
        let name = shortened(model["name"].as_str().unwrap_or_default());
        model["warnings"].as_array().into_iter().flatten().map(move |warning| (name.clone(), warning))
    });
    for (index, (name, warning)) in of_engine.chain(of_models).enumerate() {
        let colon = if name.is_empty() { "" } else { ": " };
        let first = if index == 0 { "\n" } else { "" };
        out.push_str(&format!("{first}warning: {name}{colon}{}\n", warning.as_str().unwrap_or_default()));
    }
}

/// A text as one line. If it has more than [`MAX_WIDTH`] characters, only its start and its end remain.
fn shortened(text: &str) -> String {
    let line: Vec<char> = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if line.len() <= MAX_WIDTH {
        return line.into_iter().collect();
    }
    let half = (MAX_WIDTH - 1) / 2;
    line[..half].iter().chain(&['…']).chain(&line[line.len() - half..]).collect()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// One number if all numbers of a list are equal, otherwise the list.
fn merged(list: &Value) -> Option<String> {
    let first = list.get(0)?;
    let all_equal = list.as_array()?.iter().all(|other| other == first);
    Some(if all_equal { first.to_string() } else { list.to_string() })
}

/// A number with a comma between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_with_all_kinds_of_models() {
        let model = json!({
            "name": "base", "kind": "onnx", "file": "base/model.onnx", "architecture": null, "producer": "pytorch 2.11",
            "provider": "cpu", "device_id": 0, "bytes": 1234567, "inputs": [{ "name": "input_ids", "type": "int64" }],
            "logits": { "name": "logits", "type": "float32", "columns": 96, "rows": "all" },
            "cache": { "kind": "concatenated", "rollback": "mask", "layers": 2, "heads": [2, 4], "head_size": [16, 16],
                       "type": "float32", "capacity": null, "bytes_per_token": 1024 },
            "context_length": 128, "stop_tokens": [0], "scoring": "parallel", "deviation": 1.4e-6,
            "warnings": ["odd"]
        });
        let description = json!({
            "version": "0.1.0", "onnxruntime": "lib.so", "vocab_size": 96, "stop_tokens": [0], "tokenizer": true,
            "chat_templates": ["default"],
            "combine": { "kind": "target", "model": 0 }, "models": [model, { "name": "ngram", "kind": "ngram" }],
            "warnings": ["look out"]
        });
        let expected = r#"CoS 0.1.0, lib.so, vocabulary of 96 tokens, stop tokens [0], tokenizer and chat template
combination {"kind":"target","model":0}

                       base                             ngram
kind                   onnx                             ngram
file                   base/model.onnx                  -
architecture           -                                -
made by                pytorch 2.11                     -
provider               cpu                              -
bytes                  1,234,567                        -
inputs                 input_ids                        -
logits                 float32 x 96, all positions      -
cache                  concatenated, float32            -
layers x heads x size  2 x [2,4] x 16                   -
cache bytes per token  1,024                            -
rollback, scoring      mask, parallel (deviation 1e-6)  -
context length         128                              -
stop tokens            [0]                              -

warning: look out
warning: base: odd
"#;
        assert_eq!(table(&description), expected);
    }

    #[test]
    fn long_cells_are_shortened() {
        let long = format!("start{}end", "ä\n".repeat(40_000));
        let description = json!({
            "models": [{ "name": long, "architecture": long, "stop_tokens": vec![7; 20_000], "warnings": ["odd"] }],
            "stop_tokens": vec![7; 20_000]
        });
        let table = table(&description);
        assert!(table.lines().all(|line| line.chars().count() < 2 * MAX_WIDTH), "{table}");
        assert!(
            table.contains("\nwarning: startä\u{fffd}ä") && table.contains("…") && table.contains("end: odd"),
            "{table}"
        );
    }
}
