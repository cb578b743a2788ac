//! The documents are true: links and anchors lead somewhere, commands and options exist, configurations are accepted,
//! and code compiles. `docs/README.md` says how to mark a block that must not be checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use cos::config::Config;
use pulldown_cmark::{BrokenLink, CodeBlockKind, Event, LinkType, Options, Parser, Tag, TagEnd};

/// Folders that paths in documents begin with.
const FOLDERS: [&str; 10] =
    ["benches", "bindings", "docs", "include", "kernels", "models", "packaging", "scripts", "src", "tests"];

/// Commands that come with a system or a language, and a program that a package installs.
const EXTERNAL: [&str; 12] = [
    "c++",
    "cc",
    "cd",
    "cmake",
    "curl",
    "export",
    "git",
    "go",
    "java",
    "pip",
    "pkg-config",
    "target/python/builder/bin/hf",
];

/// Programs that the project builds, and the sources that know their options.
const PROGRAMS: [(&str, &str); 2] = [
    ("target/release/examples/demo", "bindings/cpp/examples/demo.cpp"),
    ("target/cpp/server", "bindings/cpp/examples/server.cpp"),
];

/// Documents whose blocks of a language are compiled by the test of a binding.
const COMPILED_ELSEWHERE: [(&str, &[&str]); 3] = [
    ("cmake", &["bindings/cpp/README.md"]),
    ("go", &["bindings/go/README.md", "docs/go.md"]),
    ("java", &["bindings/java/README.md", "docs/java.md"]),
];

const FRAGMENT_OF_C: [&str; 2] = [
    "#include <stdio.h>\n#include \"cos.h\"\n\
     #define TRY(call) do { cos_error *e = (call); if (e) { cos_error_free(e); return 1; } } while (0)\n",
    "int fragment(cos_engine *engine, cos_session *session, cos_text_stream *text, const int32_t *prompt, \
     size_t prompt_count)",
];
const FRAGMENT_OF_CPP: [&str; 2] = [
    "#include <iostream>\n#include <vector>\n#include \"cos.hpp\"\n#include \"cos_driver.hpp\"\n",
    "int fragment(const cosrt::Engine& engine, cosrt::Session& session, cosrt::TextStream& text, \
     const std::vector<cosrt::Token>& prompt)",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A block of code.
struct Block {
    /// The line of its fence.
    line: usize,
    language: String,
    /// Whether it is the inside of a function.
    fragment: bool,
    text: String,
    /// Whether a comment before it says why it is not checked.
    excused: bool,
}

/// The parts of a document that are checked. Numbers are lines.
#[derive(Default)]
struct Document {
    path: String,
    anchors: BTreeSet<String>,
    links: Vec<(usize, String)>,
    spans: Vec<(usize, String)>,
    /// Names of code, each with the file that is said to have it: "`FILE`: … `NAME`".
    names: Vec<(usize, String, String)>,
    blocks: Vec<Block>,
}

impl Document {
    fn parse(path: &str, text: &str) -> Document {
        let mut document = Document { path: path.into(), ..Document::default() };
        // A reference without a definition would be plain text. It becomes a link that leads nowhere.
        let mut undefined = |link: BrokenLink| {
            let named = format!("undefined [{}]", link.reference);
            (link.link_type == LinkType::Reference).then(|| (named.into(), "".into()))
        };
        let parser = Parser::new_with_broken_link_callback(text, Options::ENABLE_TABLES, Some(&mut undefined));
        let (mut heading, mut block, mut excused) = (None::<String>, None::<Block>, false);
        // The path that stands just before, and the path with a colon that names belong to.
        let (mut path_before, mut file) = (None::<String>, None::<String>);
        for (event, range) in parser.into_offset_iter() {
            let line = text[..range.start].matches('\n').count() + 1;
            match (&event, path_before.take()) {
                (Event::Code(code), _) if is_path(code) => (path_before, file) = (Some(code.to_string()), None),
                (Event::Code(code), _) if is_name(code) => {
                    document.names.extend(file.iter().map(|file| (line, file.clone(), code.to_string())));
                }
                (Event::Text(text), Some(path)) if text.starts_with(':') => file = Some(path),
                (Event::End(TagEnd::Item | TagEnd::Paragraph | TagEnd::TableCell), _) => file = None,
                _ => {}
            }
            match event {
                Event::Html(comment) => excused = gives_a_reason(&comment),
                Event::Start(Tag::CodeBlock(kind)) => block = Some(begin(line, &kind, excused)),
                Event::End(TagEnd::CodeBlock) => document.blocks.extend(block.take()),
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => document.add_anchor(&heading.take().unwrap_or_default()),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push((line, dest_url.into_string()));
                }
                Event::Code(code) => {
                    heading.iter_mut().for_each(|heading| heading.push_str(&code));
                    document.spans.push((line, code.into_string()));
                }
                Event::Text(text) => match (&mut block, &mut heading) {
                    (Some(block), _) => block.text.push_str(&text),
                    (None, Some(heading)) => heading.push_str(&text),
                    (None, None) => excused = false,
                },
                _ => {}
            }
        }
        document
    }

    /// The anchor that GitHub gives a heading.
    fn add_anchor(&mut self, heading: &str) {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        let anchor = kept.replace(' ', "-");
        let mut numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let free =
            if self.anchors.contains(&anchor) { numbered.find(|name| !self.anchors.contains(name)) } else { None };
        self.anchors.insert(free.unwrap_or(anchor));
    }
}

/// Whether a comment excuses the block behind it.
fn gives_a_reason(comment: &str) -> bool {
    let reason = comment.trim().strip_prefix("<!-- not checked:").and_then(|rest| rest.strip_suffix("-->"));
    reason.is_some_and(|reason| !reason.trim().is_empty())
}

fn begin(line: usize, kind: &CodeBlockKind, excused: bool) -> Block {
    let info = match kind {
        CodeBlockKind::Fenced(info) => info.to_string(),
        CodeBlockKind::Indented => String::new(),
    };
    let (language, rest) = info.split_once(' ').unwrap_or((&info, ""));
    Block { line, language: language.into(), fragment: rest == "fragment", text: String::new(), excused }
}

/// All documents by their paths.
fn documents() -> BTreeMap<String, Document> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            let name = path.to_str().unwrap().to_owned();
            // Templates of reports are no documents yet.
            let skipped = ["target", "node_modules"].contains(&entry.file_name().to_str().unwrap())
                || entry.file_name().to_str().unwrap().starts_with('.')
                || name == "benches";
            if entry.file_type().unwrap().is_dir() && !skipped {
                folders.push(path);
            } else if name.ends_with(".md") {
                let document = Document::parse(&name, &read(&name));
                found.insert(name, document);
            }
        }
    }
    found
}

/// A path without `.` and `..`; `None` if it leaves the repository.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            _ => return None,
        }
    }
    Some(out)
}

/// What is wrong with a link, if anything.
fn check_link(document: &Document, link: &str, all: &BTreeMap<String, Document>) -> Result<(), String> {
    if let Some(rest) = link.strip_prefix("https://").or(link.strip_prefix("http://")) {
        let host = rest.split(['/', '?', '#']).next().unwrap();
        let plain = link.chars().all(|c| c.is_ascii_graphic() && !"<>\"{}|\\^`".contains(c));
        return if plain && host.contains('.') { Ok(()) } else { Err(format!("{link} is no address")) };
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let here = Path::new(&document.path).parent().unwrap();
    let target = if path.is_empty() { Some(PathBuf::from(&document.path)) } else { normal(&here.join(path)) };
    let Some(target) = target else {
        return Err(format!("the link {link} leaves the repository"));
    };
    let is_own = target == Path::new(&document.path);
    if !is_own && !root().join(&target).exists() {
        return Err(format!("the link {link} leads to {}, which is not there", target.display()));
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let other = all.get(target.to_str().unwrap());
    let anchors = if is_own { Some(document) } else { other }.map(|document| &document.anchors);
    match anchors {
        Some(anchors) if anchors.contains(anchor) => Ok(()),
        _ => Err(format!("{} has no heading #{anchor}", target.display())),
    }
}

/// Whether a path is in the repository, or beside the document. `*` stands for any name.
fn exists(path: &str, here: &Path) -> bool {
    let below = |folder: PathBuf| -> bool {
        let mut found = vec![folder];
        for part in Path::new(path).components().map(|part| part.as_os_str().to_str().unwrap()) {
            let next = found.iter().flat_map(|folder| match part {
                "*" => std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect(),
                name => vec![folder.join(name)],
            });
            found = next.filter(|path| path.exists()).collect();
        }
        !found.is_empty()
    };
    below(root().to_owned()) || below(root().join(here))
}

/// Code within a sentence: a command, or a path of the repository.
fn check_span(span: &str, here: &Path) -> Result<(), String> {
    let first = span.split(['/', ' ']).next().unwrap_or_default();
    if span.starts_with("make ") || span.starts_with("cargo ") || (span.contains(' ') && FOLDERS.contains(&first)) {
        return check_line(span);
    }
    if is_path(span) && !exists(span, here) {
        return Err(format!("there is no {span}"));
    }
    Ok(())
}

/// Whether a span is a path from the project's folder.
fn is_path(span: &str) -> bool {
    let is_plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-*".contains(c));
    is_plain && span.split_once('/').is_some_and(|(first, _)| FOLDERS.contains(&first))
}

/// Whether a span is a name of code, such as `Config::parse` or the beginning of one, `COS_STRATEGY_…`.
fn is_name(span: &str) -> bool {
    span.contains(|c: char| c == '_' || c.is_uppercase())
        && span.chars().all(|c| c.is_alphanumeric() || "_:…".contains(c))
}

/// A name occurs in the file that it stands behind. Each part of a path does.
fn check_name(file: &str, name: &str) -> Result<(), String> {
    let Ok(text) = std::fs::read_to_string(root().join(file)) else { return Ok(()) };
    let missing = name.split([':', '…']).find(|part| !text.contains(part));
    missing.map_or(Ok(()), |part| Err(format!("{file} has no {part}")))
}

/// The simple commands of a line of shell, as words without their quotes.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut all, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut quote = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '$') if chars.peek() == Some(&'(') => {
                chars.by_ref().find(|&c| c == ')');
                word.get_or_insert_default().push_str("$()");
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            (None, '&' | '|' | ';' | '(' | ')') => {
                words.extend(word.take());
                all.push(std::mem::take(&mut words));
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    all.push(words);
    all.retain(|words| !words.is_empty());
    all
}

fn check_line(line: &str) -> Result<(), String> {
    commands(line).iter().try_for_each(|words| check_command(words))
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=')
        .is_some_and(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
}

fn check_command(words: &[String]) -> Result<(), String> {
    let words: Vec<&str> =
        words.iter().map(String::as_str).skip_while(|word| is_assignment(word) || *word == "sudo").collect();
    let Some((&command, rest)) = words.split_first() else { return Ok(()) };
    // A clone of the repository, as the installation tells.
    let rest: Vec<&str> = rest.iter().map(|word| word.trim_start_matches("$COS/")).collect();
    let folder = command.split('/').next().unwrap();
    if let Some((_, source)) = PROGRAMS.iter().find(|(program, _)| *program == command) {
        return check_arguments(command, &read(source), &rest);
    }
    match command {
        "make" => check_make(&rest),
        "cargo" => check_cargo(&rest),
        "mvn" => check_paths(&rest),
        _ if command.starts_with("python3") => match rest.as_slice() {
            ["-m", ..] => check_paths(&rest),
            [script, rest @ ..] => check_script(script, rest),
            [] => Ok(()),
        },
        _ if command.starts_with("./") || command.starts_with("$OLDPWD/") || EXTERNAL.contains(&command) => Ok(()),
        _ if FOLDERS.contains(&folder) => check_script(command, &rest),
        _ => Err(format!("this test does not know the command {command}")),
    }
}

fn check_script(script: &str, rest: &[&str]) -> Result<(), String> {
    let Ok(source) = std::fs::read_to_string(root().join(script)) else {
        return Err(format!("there is no {script}"));
    };
    check_arguments(script, &source, rest)
}

/// Options and subcommands must occur in the program's source. Words in capitals stand for something.
fn check_arguments(program: &str, source: &str, rest: &[&str]) -> Result<(), String> {
    check_paths(rest)?;
    for word in rest {
        let word = word.split('=').next().unwrap();
        let is_subcommand = word.len() > 1 && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        if is_subcommand && !source.contains(word) {
            return Err(format!("{program} has no {word}"));
        }
    }
    Ok(())
}

fn check_paths(words: &[&str]) -> Result<(), String> {
    let missing = words.iter().find(|word| {
        FOLDERS.contains(&word.split('/').next().unwrap()) && word.contains('/') && !exists(word, Path::new(""))
    });
    missing.map_or(Ok(()), |path| Err(format!("there is no {path}")))
}

fn check_make(words: &[&str]) -> Result<(), String> {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    for word in words {
        let known = match word.split_once('=') {
            Some((name, _)) => {
                makefile.contains(&format!("$({name})")) || makefile.contains(&format!("$(if $({name})"))
            }
            None => targets.contains(word) || *word == "…" || word.ends_with("-…"),
        };
        if !known {
            return Err(format!("make knows no {word}"));
        }
    }
    Ok(())
}

fn check_cargo(words: &[&str]) -> Result<(), String> {
    let value = |option: &str| words.iter().position(|word| *word == option).and_then(|at| words.get(at + 1));
    let is_test = |name: &str| ["", "/main"].iter().any(|end| exists(&format!("tests/{name}{end}.rs"), Path::new("")));
    if let Some(test) = value("--test").filter(|test| !is_test(test)) {
        return Err(format!("there is no test {test}"));
    }
    let Some(bench) = value("--bench") else { return Ok(()) };
    if !read("Cargo.toml").contains(&format!("[[bench]]\nname = \"{bench}\"")) {
        return Err(format!("there is no benchmark {bench}"));
    }
    let alone = format!("benches/{bench}.rs");
    let file = if exists(&alone, Path::new("")) { alone } else { format!("benches/{bench}/main.rs") };
    let source = read(&file);
    let options = words.iter().skip_while(|word| **word != "--").filter_map(|word| word.strip_prefix("--"));
    for option in options.filter(|option| !option.is_empty() && *option != "help") {
        if !source.contains(&format!("\n    {}: ", option.replace('-', "_"))) {
            return Err(format!("the benchmark {bench} has no option --{option}"));
        }
    }
    Ok(())
}

fn check_json(text: &str) -> Result<(), String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if value.get("models").is_none() {
        return Ok(());
    }
    Config::parse(text).map(|_| ()).map_err(|error| error.to_string())
}

/// What is wrong with a block that is not compiled here.
fn check_block(document: &Document, block: &Block) -> Result<(), String> {
    let elsewhere = COMPILED_ELSEWHERE.iter().find(|(language, _)| *language == block.language);
    match block.language.as_str() {
        "json" => check_json(&block.text),
        "sh" => block.text.lines().try_for_each(check_line),
        "c" | "cpp" | "xml" | "text" => Ok(()),
        "" if document.path.starts_with("tests/") => Ok(()),
        "" => Err("a block of code without a language".into()),
        language => match elsewhere {
            Some((_, documents)) if documents.contains(&document.path.as_str()) => Ok(()),
            _ => Err(format!("nobody checks blocks of {language} here")),
        },
    }
}

/// All that is wrong with a document, but for code that does not compile.
fn problems(document: &Document, all: &BTreeMap<String, Document>) -> Vec<String> {
    let here = Path::new(&document.path).parent().unwrap();
    let links = document.links.iter().map(|(line, link)| (line, check_link(document, link, all)));
    // ARCHITECTURE.md has a test of its own.
    let spans = document.spans.iter().filter(|_| document.path != "ARCHITECTURE.md");
    let spans = spans.map(|(line, span)| (line, check_span(span, here)));
    let names = document.names.iter().map(|(line, file, name)| (line, check_name(file, name)));
    let blocks = document.blocks.iter().filter(|block| !block.excused);
    let blocks = blocks.map(|block| (&block.line, check_block(document, block)));
    let found = links.chain(spans).chain(names).chain(blocks);
    found.filter_map(|(line, result)| Some(format!("{}:{line}: {}", document.path, result.err()?))).collect()
}

/// Compile blocks of C or C++ up to the syntax tree: files one by one, and all fragments of a document together.
fn compile(document: &Document, language: &str) -> Vec<String> {
    let blocks = || document.blocks.iter().filter(|block| block.language == language && !block.excused);
    let placed = |block: &Block| format!("#line {} \"{}\"\n{}", block.line + 1, document.path, block.text);
    let [includes, function] = if language == "c" { FRAGMENT_OF_C } else { FRAGMENT_OF_CPP };
    let mut sources: Vec<String> = blocks().filter(|block| !block.fragment).map(placed).collect();
    let fragments = blocks().filter(|block| block.fragment).enumerate().map(|(index, block)| {
        let function = function.replace("fragment", &format!("fragment{index}"));
        format!("{function};\n{function} {{\n{}\nreturn 0;\n}}\n", placed(block))
    });
    let fragments: String = fragments.collect();
    sources.extend((!fragments.is_empty()).then(|| format!("{includes}{fragments}")));
    sources.iter().filter_map(|source| syntax_errors(source, language)).collect()
}

fn syntax_errors(source: &str, language: &str) -> Option<String> {
    let (variable, default, standard, kind) =
        if language == "c" { ("CC", "cc", "-std=c11", "c") } else { ("CXX", "c++", "-std=c++17", "c++") };
    let program = std::env::var(variable).ok().filter(|name| !name.is_empty()).unwrap_or(default.into());
    let mut words = program.split_whitespace(); // such as "ccache gcc"
    // In a folder of its own: a header that lies beside the source would come before those of the library.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("source.txt");
    std::fs::write(&file, source).unwrap();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wno-unused-parameter", "-Wno-unused-variable"])
        .args(["-Wno-unused-but-set-variable", "-fsyntax-only", "-Iinclude", "-Ibindings/cpp", "-x", kind])
        .arg(&file)
        .current_dir(root())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn report(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn links_commands_and_configurations_are_right() {
    let all = documents();
    assert!(all.len() > 20 && all.contains_key("docs/configuration.md"), "{:?}", all.keys());
    report(all.values().flat_map(|document| problems(document, &all)).collect());
}

#[test]
fn code_compiles() {
    let all = documents();
    report(all.values().flat_map(|document| [compile(document, "c"), compile(document, "cpp")].concat()).collect());
}

#[test]
fn readme_is_short() {
    let size = read("README.md").len();
    assert!(size <= 10 * 1024, "README.md has {size} bytes; move something to docs/");
}

#[test]
fn architecture_is_short_and_names_what_is_there() {
    let text = read("ARCHITECTURE.md");
    assert!(text.len() <= 12 * 1024, "ARCHITECTURE.md has {} bytes; move something to docs/", text.len());
    let document = Document::parse("ARCHITECTURE.md", &text);
    let wrong = document
        .spans
        .iter()
        .filter_map(|(line, span)| Some(format!("ARCHITECTURE.md:{line}: {}", check_span(span, Path::new("")).err()?)));
    report(wrong.collect());
}

/// The bars of the plot are figures of the page on performance.
#[test]
fn the_plot_shows_measured_figures() {
    let (plot, page) = (read("docs/speed.svg"), read("docs/performance.md"));
    let labels = plot.split("</text>").filter_map(|element| element.rsplit_once('>').map(|(_, text)| text));
    let figures: Vec<&str> = labels.filter(|label| label.parse::<f64>().is_ok()).collect();
    assert_eq!(figures.len(), 8);
    for figure in figures {
        assert!(page.contains(&format!("| {figure} |")) || page.contains(&format!("**{figure}**")), "{figure}");
    }
}

/// What is wrong with a document of these lines, which would stand in `docs`.
fn found(text: &str) -> Vec<String> {
    let document = Document::parse("docs/new.md", text);
    [problems(&document, &documents()), compile(&document, "c"), compile(&document, "cpp")].concat()
}

#[test]
fn faults_are_found() {
    let cases = [
        ("[x](nowhere.md)", "docs/nowhere.md, which is not there"),
        ("[x](../../outside.md)", "leaves the repository"),
        ("[x](configuration.md#no-such-heading)", "no heading #no-such-heading"),
        ("# Title\n[x](#titel)", "no heading #titel"),
        ("[x][nothing]", "undefined [nothing]"),
        ("[x](https://nowhere)", "is no address"),
        ("![x](nothing.svg)", "docs/nothing.svg"),
        ("`make tset`", "make knows no tset"),
        ("`src/no/such.rs`", "there is no src/no/such.rs"),
        ("1. `src/config.rs`: a member of `Config`, and\n   `Confg::parse`.", "src/config.rs has no Confg"),
        ("- `src/config.rs`: a `COSY_…`", "src/config.rs has no COSY_"),
        ("`cargo bench --bench bench -- --speed 3`", "no option --speed"),
        ("`cargo test --test nothing`", "there is no test nothing"),
        ("```sh\nmake export MODLE=x\n```", "make knows no MODLE=x"),
        ("```sh\nscripts/exprot x y\n```", "there is no scripts/exprot"),
        ("```sh\nscripts/export --fast MODEL OUT\n```", "scripts/export has no --fast"),
        ("```sh\ntarget/release/examples/demo explain CONFIG\n```", "has no explain"),
        ("```sh\ncd x && frobnicate\n```", "does not know the command frobnicate"),
        ("```json\n{\"a\": }\n```", "expected value"),
        ("```json\n{\"models\": [], \"combine\": {\"kind\": \"target\", \"model\": 0}, \"sped\": 1}\n```", "sped"),
        ("```\nanything\n```", "without a language"),
        ("```go\npackage x\n```", "nobody checks blocks of go here"),
        ("```c fragment\ncos_stepp(session);\n```", "docs/new.md:2:"),
        ("```cpp fragment\nsession.stepp();\n```", "docs/new.md:2:"),
        ("<!-- not checked: -->\n```json\n{\n```", "EOF"),
    ];
    for (text, expected) in cases {
        let found = found(text);
        assert!(found.len() == 1 && found[0].contains(expected), "{text}\n{found:#?}");
    }
}

#[test]
fn what_is_right_passes() {
    for text in [
        "## A *b* `c`: d\n[x](#a-b-c-d) [y](README.md) [z](https://example.com/a?b#c)",
        "# A\n# A\n[x](#a-1)",
        "`make test-cpp`, `bindings/*/test`, `scripts/export --help`, `src/config.rs`",
        "```sh\nexport A=\"$PWD\"  # make nothing\nCGO_LDFLAGS=\"-L$A\" go build && (cd x && ./chat)\n```",
        "1. `src/config.rs`: `Config::parse`. `src/lib.rs` and `Anything`\n2. `Anything`",
        "```c fragment\nTRY(cos_cancel(session));\n```",
        "<!-- not checked: an example of an error -->\n```json\n{\n```",
    ] {
        assert_eq!(found(text), Vec::<String>::new(), "{text}");
    }
}
