//! Files of Rust as tokens, without comments and without what is compiled for tests only.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::source::Source;

/// A word or a mark, and its line. A literal is a quotation mark.
pub type Token = (String, usize);

/// A file of Rust.
pub struct Rust {
    pub path: String,
    /// What stands in no braces, parentheses or brackets, with these groups as trees.
    pub trees: Vec<TokenTree>,
    /// All tokens in their order.
    pub tokens: Vec<Token>,
}

/// Files of Rust below a folder. Files that are modules for tests only are left out.
pub fn rust_sources(all: &[Source], folder: &str) -> Vec<Rust> {
    let (mut found, mut tests) = (Vec::new(), Vec::new());
    for source in all.iter().filter(|source| source.path.starts_with(folder) && source.path.ends_with(".rs")) {
        let mut modules = Vec::new();
        let trees = without_tests(parse(source), &mut modules);
        tests.extend(modules.into_iter().map(|name| child(&source.path, &name)));
        let mut tokens = Vec::new();
        flatten(&trees, &mut tokens);
        found.push(Rust { path: source.path.clone(), trees, tokens });
    }
    found.retain(|Rust { path, .. }| {
        !tests.iter().any(|test| *path == format!("{test}.rs") || path.starts_with(&format!("{test}/")))
    });
    found
}

/// The tokens of a file.
pub fn parse(source: &Source) -> TokenStream {
    source.text.parse().unwrap_or_else(|error| panic!("{}: {error}", source.path))
}

/// The path of a module that a file declares, without `.rs` or `/mod.rs`.
fn child(file: &str, name: &str) -> String {
    let folder = file.strip_suffix("/mod.rs").or(file.strip_suffix("/lib.rs")).or(file.strip_suffix(".rs"));
    format!("{}/{name}", folder.expect("a file of Rust"))
}

/// Leave out what is marked `#[cfg(test)]`, and name the modules so marked that are files of their own.
fn without_tests(stream: TokenStream, modules: &mut Vec<String>) -> Vec<TokenTree> {
    let mut kept = Vec::new();
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        let is_mark = is_mark(&tree, '#') && trees.peek().is_some_and(|next| next.to_string() == "[cfg (test)]");
        if is_mark {
            let mut last = String::new();
            for skipped in trees.by_ref().skip(1) {
                if is_mark_of_end(&skipped) {
                    if last != "}" && matches!(&skipped, TokenTree::Punct(_)) {
                        modules.push(last);
                    }
                    break;
                }
                last = skipped.to_string();
            }
            continue;
        }
        kept.push(match tree {
            TokenTree::Group(group) => {
                let inner = without_tests(group.stream(), modules).into_iter().collect();
                let mut without = Group::new(group.delimiter(), inner);
                without.set_span(group.span());
                TokenTree::Group(without)
            }
            other => other,
        });
    }
    kept
}

/// Whether a tree ends an item: its braces or its semicolon.
fn is_mark_of_end(tree: &TokenTree) -> bool {
    is_mark(tree, ';') || matches!(tree, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

fn is_mark(tree: &TokenTree, mark: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn flatten(trees: &[TokenTree], found: &mut Vec<Token>) {
    let mut after_colon = false;
    for tree in trees {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = marks(group.delimiter());
                found.extend((!open.is_empty()).then(|| (open.into(), line)));
                flatten(&group.stream().into_iter().collect::<Vec<_>>(), found);
                found.extend((!close.is_empty()).then(|| (close.into(), tree.span().end().line)));
            }
            TokenTree::Literal(_) => found.push(("\"".into(), line)),
            TokenTree::Punct(punct) if punct.as_char() == ':' && after_colon => {
                found.last_mut().expect("the first colon").0.push(':');
            }
            other => found.push((other.to_string().trim_start_matches("r#").into(), line)),
        }
        let is_first = matches!(tree, TokenTree::Punct(punct) if punct.spacing() == proc_macro2::Spacing::Joint);
        after_colon = is_mark(tree, ':') && is_first && !after_colon;
    }
}

fn marks(delimiter: Delimiter) -> (&'static str, &'static str) {
    match delimiter {
        Delimiter::Brace => ("{", "}"),
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::None => ("", ""),
    }
}

/// The functions of a file, those in macros too: their lines, names and lengths from `fn` to the closing brace.
pub fn functions(stream: TokenStream) -> Vec<(usize, String, usize)> {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    let mut found = Vec::new();
    for (at, tree) in trees.iter().enumerate() {
        if let TokenTree::Group(group) = tree {
            found.extend(functions(group.stream()));
        }
        let (TokenTree::Ident(word), Some(TokenTree::Ident(name))) = (tree, trees.get(at + 1)) else { continue };
        if word == "fn"
            && let Some(end) = trees[at..].iter().find(|tree| is_mark_of_end(tree))
        {
            let (first, last) = (word.span().start().line, end.span().end().line);
            found.push((first, name.to_string(), last - first + 1));
        }
    }
    found
}

/// An item that stands in no braces.
#[derive(Debug, PartialEq)]
pub struct Item {
    pub kind: String,
    pub name: String,
    pub line: usize,
    pub public: bool,
}

/// The items of a file that stand in no braces.
pub fn items(trees: &[TokenTree]) -> Vec<Item> {
    const KINDS: [&str; 10] =
        ["fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod", "macro_rules"];
    let (mut found, mut public, mut kind) = (Vec::new(), false, None::<String>);
    for tree in trees {
        match tree {
            TokenTree::Ident(word) => {
                let text = word.to_string();
                let is_modifier = ["mut", "unsafe", "extern", "async", "fn"].contains(&text.as_str());
                match &kind {
                    _ if text == "pub" => public = true,
                    // A `const fn` is a function.
                    Some(kind_) if is_modifier => kind = Some(if text == "fn" { text } else { kind_.clone() }),
                    Some(kind_) if kind_ != "an expression" => {
                        let line = word.span().start().line;
                        found.push(Item { kind: kind_.clone(), name: text, line, public });
                        kind = Some("an expression".into());
                    }
                    Some(_) => {}
                    None if KINDS.contains(&text.as_str()) => kind = Some(text),
                    None if text == "impl" || text == "use" => kind = Some("an expression".into()),
                    None => {}
                }
            }
            _ if is_mark_of_end(tree) => (public, kind) = (false, None),
            _ => {}
        }
    }
    found
}

#[test]
fn comments_literals_and_tests_are_left_out() {
    let text = "a /* b */ \"c \\\" //\n}\" d // e\n'f' '\\'' 'g r#\"h\"#\n\
                #[cfg(test)]\nmod i {\n j { k }\n}\nl '…' m\n#[cfg(test)] mod n;\no::p: q";
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let all = [source("src/a.rs", text), source("src/a/n.rs", "x"), source("src/n.rs", "y")];
    let files = rust_sources(&all, "src/");
    let paths: Vec<&str> = files.iter().map(|file| &*file.path).collect();
    assert_eq!(paths, ["src/a.rs", "src/n.rs"]);
    let words: Vec<&str> = files[0].tokens.iter().map(|(token, _)| &**token).collect();
    assert_eq!(words, ["a", "\"", "d", "\"", "\"", "'", "g", "\"", "l", "\"", "m", "o", "::", "p", ":", "q"]);
    assert_eq!(files[0].tokens[8].1, 8);
}

#[test]
fn items_are_found_however_they_are_written() {
    let text = "pub(in crate::a)\nstruct\nB<T> { c: d }\nimpl B { pub fn e() {} const F: u8 = 1; }\n\
                const unsafe extern \"system\" fn g() {}\npub static mut H: [u8; 2] = { 1 };\n\
                macro_rules! i { () => {} }\n\
                pub trait J where K: L { type M; }";
    let found = items(&text.parse::<TokenStream>().unwrap().into_iter().collect::<Vec<_>>());
    let found: Vec<_> = found.iter().map(|item| (&*item.kind, &*item.name, item.line, item.public)).collect();
    assert_eq!(
        found,
        [
            ("struct", "B", 3, true),
            ("fn", "g", 5, false),
            ("static", "H", 6, true),
            ("macro_rules", "i", 7, false),
            ("trait", "J", 8, true)
        ]
    );
}
