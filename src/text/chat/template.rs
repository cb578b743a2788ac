//! Compiles and renders chat templates as transformers does: Jinja, with what transformers adds to it.

use std::{fmt, thread};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::python;

/// Most steps of one rendering. A step is an instruction or 64 bytes of text, so this bounds time and memory. Two
/// thousand messages take less than a tenth of it.
const FUEL: u64 = 20_000_000;

/// How deep scopes may nest. A macro counts as four. All together take less than 512 KiB of the caller's stack.
const RECURSION: usize = 400;

/// Most bytes of a template. The largest of known models have about 30 thousand.
pub const MAX_TEMPLATE: usize = 1 << 18;

/// The stack for the compiler in bytes: twice what the longest template takes.
const COMPILER_STACK: usize = 1 << 28;

/// Templates by their names.
pub struct Templates {
    environment: Environment<'static>,
}

/// The current local time in a format of C's `strftime`. `None`: it cannot be told in this format.
pub type Now = fn(&str) -> Option<String>;

/// What a template said with `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Templates {
    pub fn new(now: Now) -> Self {
        let mut environment = Environment::new();
        // These settings of the syntax are valid.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message.to_string())))
        });
        environment.add_function("strftime_now", move |format: &str| {
            now(format).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("no time as {format:?}")))
        });
        python::add_to(&mut environment);
        Templates { environment }
    }

    /// Compile a template. The error says what is wrong with it.
    ///
    /// A long chain of operators makes the compiler call itself for each of them. So a thread with enough stack for the
    /// longest template compiles it.
    pub fn add(&mut self, name: &str, source: &str) -> Result<(), String> {
        if source.len() > MAX_TEMPLATE {
            return Err(format!("it has {} bytes, and the limit is {MAX_TEMPLATE}", source.len()));
        }
        let source = without_generation(source);
        let compile = || self.environment.add_template_owned(name.to_owned(), source);
        let compiled = thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(COMPILER_STACK).spawn_scoped(scope, compile)?;
            thread.join().map_err(|_| std::io::Error::other("its compiler panics"))
        });
        match compiled {
            Ok(compiled) => compiled.map_err(|error| describe(&error)),
            Err(error) => Err(format!("it cannot be compiled: {error}")),
        }
    }

    /// The text of a template with these variables. The error says why there is none.
    pub fn render(&self, name: &str, variables: Value) -> Result<String, String> {
        let render = || self.environment.get_template(name)?.render(variables);
        render().map_err(|error| match raised(&error) {
            Some(message) => format!("it refuses them: {message}"),
            None => describe(&error),
        })
    }
}

/// The message of `raise_exception`, if that was the cause.
fn raised(error: &Error) -> Option<&Raised> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(raised) = error.downcast_ref() {
            return Some(raised);
        }
        cause = error.source();
    }
    None
}

fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    if error.kind() == ErrorKind::OutOfFuel {
        return "rendering takes too many steps".into();
    }
    error.line().map_or(what.clone(), |line| format!("{what} (line {line})"))
}

/// A template without the tags `generation` and `endgeneration`, which mark the text of the assistant for training. The
/// tags `with` and `endwith` are put in their place: like them, they open a scope and write nothing.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let inside = tag.trim_start_matches(['-', '+']).trim_start();
        let replaced = [("generation", "with"), ("endgeneration", "endwith")].into_iter().find_map(|(name, other)| {
            let behind = inside.strip_prefix(name)?;
            behind.trim_start().trim_start_matches(['-', '+']).starts_with("%}").then_some((behind, other))
        });
        rest = match replaced {
            Some((behind, other)) => {
                out.push_str(&tag[..tag.len() - inside.len()]);
                out.push_str(other);
                behind
            }
            None => tag,
        };
    }
    out.push_str(rest);
    out
}
