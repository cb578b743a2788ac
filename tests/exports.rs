//! Exports of many architectures and forms against golden logits from PyTorch: prompts, single steps, several positions
//! on top of a past, and after rollbacks. `scripts/export_architectures.py` and `scripts/export_variants.py` make them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cos::error::Error;
use cos::model::{Cancel, Export, Model, OnnxModel, Pass, Provider, Sequence, Settings, environment};

fn exports() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/exports")
}

fn load(path: &Path) -> Result<OnnxModel, Error> {
    environment(None, 0).unwrap();
    OnnxModel::load(path, "model", &Settings { provider: Provider::Cpu, scoring: None, context_length: None })
}

/// Token sequences, and the logits after each of their tokens.
struct Golden {
    sequences: Vec<(Vec<i32>, Vec<Vec<f32>>)>,
}

impl Golden {
    fn read(architecture: &str) -> Self {
        let folder = exports().join(architecture);
        let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let about: serde_json::Value = serde_json::from_str(&text).unwrap();
        let columns = about["columns"].as_u64().unwrap() as usize;
        let bytes = std::fs::read(folder.join("golden.f32")).unwrap();
        let (values, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        let mut rows = values.chunks(columns).map(|row| row.iter().map(|&value| f32::from_le_bytes(value)).collect());
        let sequence = |tokens: &serde_json::Value| {
            let tokens: Vec<i32> = serde_json::from_value(tokens.clone()).unwrap();
            let rows = rows.by_ref().take(tokens.len()).collect();
            (tokens, rows)
        };
        Golden { sequences: about["sequences"].as_array().unwrap().iter().map(sequence).collect() }
    }
}

/// Runs a model as a decoder would, and compares all that comes out.
struct Replay<'a> {
    model: &'a OnnxModel,
    sequence: Box<dyn Sequence>,
    tokens: Vec<i32>,
    worst: f32,
}

impl<'a> Replay<'a> {
    fn new(model: &'a OnnxModel) -> Self {
        let sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        Replay { model, sequence, tokens: Vec::new(), worst: 0.0 }
    }

    /// Run the next tokens of a golden sequence in one pass, with the first `unwanted` rows not asked for.
    fn pass(&mut self, golden: &(Vec<i32>, Vec<Vec<f32>>), width: usize, unwanted: usize) {
        let start = self.sequence.len();
        let width = width.min(golden.0.len() - start);
        if width == 0 {
            return; // the export has a shorter context
        }
        assert_eq!(self.tokens[..start], golden.0[..start], "the test must roll back to what is shared");
        let tokens = &golden.0[start..start + width];
        let keep = start + 1 + unwanted;
        self.model.forward(&mut [Pass { sequence: self.sequence.as_mut(), tokens, keep }]).unwrap();
        self.tokens.truncate(start);
        self.tokens.extend_from_slice(tokens);
        for position in keep..=start + width {
            for (&found, &expected) in self.sequence.logits(position).iter().zip(&golden.1[position - 1]) {
                self.worst = self.worst.max((found - expected).abs());
            }
        }
    }

    fn back(&mut self, len: usize) {
        let len = len.min(self.sequence.len());
        self.sequence.truncate(len);
        assert_eq!(self.sequence.len(), len);
    }

    /// Everything that decoding does, over three sequences that share their beginnings. Returns the largest difference.
    fn all(mut self, golden: &Golden) -> f32 {
        let cut = |(tokens, rows): &(Vec<i32>, Vec<Vec<f32>>)| {
            let length = tokens.len().min(self.model.context_length());
            (tokens[..length].to_vec(), rows[..length].to_vec())
        };
        let [first, second, third] = &golden.sequences.iter().map(cut).collect::<Vec<_>>()[..] else { panic!() };
        let shared = |a: &[i32], b: &[i32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
        self.pass(first, 6, 5); // a prompt
        for width in [1, 1, 3, 1, 5, 2, 9, 1, 4] {
            self.pass(first, width, 0);
        }
        self.back(shared(&first.0, &second.0)); // a long rejection
        for width in [1, 4, 1, 2] {
            self.pass(second, width, 0);
        }
        // drafts of four of which one is accepted, again and again: many small rollbacks
        while self.sequence.len() + 4 <= second.0.len() {
            self.pass(second, 4, 0);
            self.back(self.sequence.len() - 3);
        }
        self.back(shared(&second.0, &third.0).min(shared(&first.0, &third.0)));
        self.pass(third, third.0.len() - self.sequence.len(), 0);
        self.back(0);
        self.pass(first, first.0.len(), 0); // all at once
        self.worst
    }
}

/// How far from PyTorch's float32 an export may be.
fn tolerance(form: &str) -> f32 {
    match form {
        form if form.contains("bf16") => 0.3,
        form if form.contains("fp16") => 0.05,
        form if form.contains("level4") => 1.5,
        form if form.contains("int4") || form.contains("int8") => 0.02,
        _ => 1e-3,
    }
}

fn forms(architecture: &Path) -> Vec<PathBuf> {
    let mut forms: Vec<PathBuf> = architecture.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    forms.retain(|form| form.is_dir());
    forms.sort();
    forms
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn replay(label: &str, golden: &Golden, tolerance: f32, failures: &mut Vec<String>) {
    match load(&exports().join(label)) {
        Err(error) => failures.push(format!("{label}: {error}")),
        Ok(model) => {
            let worst = Replay::new(&model).all(golden);
            let Export { cache_kind, rollback, scoring, warnings, .. } = model.export();
            println!("{label}: {cache_kind:?}, {rollback:?}, {scoring:?}, deviates by {:.1e}, {worst:.1e} from PyTorch", model.deviation());
            warnings.iter().for_each(|warning| println!("    {warning}"));
            if worst.is_nan() || worst > tolerance {
                failures.push(format!("{label}: off by {worst}"));
            }
        }
    }
}

#[test]
fn architectures_agree_with_pytorch() {
    let mut failures = Vec::new();
    for architecture in forms(&exports()) {
        let architecture = name(&architecture);
        if architecture == "variants" {
            continue;
        }
        let golden = Golden::read(architecture);
        for form in forms(&exports().join(architecture)) {
            replay(&format!("{architecture}/{}", name(&form)), &golden, tolerance(name(&form)), &mut failures);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn variants_agree_with_pytorch() {
    let (llama, mistral) = (Golden::read("llama"), Golden::read("mistral"));
    let mut failures = Vec::new();
    for form in forms(&exports().join("variants")) {
        let name = name(&form);
        if REFUSED.iter().any(|(refused, _, _)| *refused == name) || name == "dynamic-int8" {
            continue;
        }
        let golden = if name.starts_with("mistral") { &mistral } else { &llama };
        replay(&format!("variants/{name}"), golden, tolerance(name), &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Exports that cannot be verified with, the code of the error, and what it must say.
const REFUSED: [(&str, i32, &str); 4] = [
    ("conv-state", 8, "past_conv.0 carries a recurrent state"),
    ("merged", 8, "use_cache_branch"),
    ("embeds", 3, "no input input_ids"),
    ("unknown-input", 8, "nothing is known to feed its input temperature_scale with"),
];

#[test]
fn what_cannot_work_is_refused() {
    for (name, code, what) in REFUSED {
        let error = load(&exports().join("variants").join(name)).err().unwrap_or_else(|| panic!("{name} was loaded"));
        assert!(error.code() == code && error.to_string().contains(what), "{name}: {error}");
    }
}
