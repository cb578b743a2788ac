//! Where functions begin and end, in every language of the project.

use crate::rust;
use crate::source::Source;

/// The functions of a file: their lines, names and lengths.
pub fn functions(source: &Source) -> Vec<(usize, String, usize)> {
    match source.path.rsplit_once('.').map_or("", |(_, kind)| kind) {
        "rs" => rust::functions(rust::parse(source)),
        "c" | "h" | "cpp" | "hpp" | "cu" | "cuh" | "go" | "java" => in_braces(&source.text),
        "py" => in_python(&source.text),
        _ if source.text.starts_with("#!/usr/bin/env python") => in_python(&source.text),
        _ => Vec::new(),
    }
}

/// Functions of C, C++, Go and Java: what stands before a brace has parentheses, and is no other construct.
fn in_braces(text: &str) -> Vec<(usize, String, usize)> {
    const STATEMENTS: [&str; 9] = ["if", "for", "while", "switch", "catch", "else", "synchronized", "select", "record"];
    const TYPES: [&str; 7] = ["class", "struct", "union", "enum", "interface", "namespace", "type"];
    let text = blank(text);
    let line = |at: usize| text[..at].matches('\n').count() + 1;
    let (mut found, mut depth, mut begun) = (Vec::new(), 0usize, 0);
    // The depth around the function that is open, its line and its name.
    let mut open: Option<(usize, usize, String)> = None;
    for (at, mark) in text.char_indices().filter(|(_, c)| "{};".contains(*c)) {
        // Imports of Go end with a parenthesis at the beginning of a line.
        let head = text[begun..at].rsplit("\n)\n").next().unwrap_or_default().trim_start();
        let start = at - head.len();
        let head = head.trim_end();
        begun = at + 1;
        if mark == '{' {
            let mut words = head.split(|c: char| c.is_whitespace() || c == '(');
            let is_statement = words.clone().next().is_some_and(|first| STATEMENTS.contains(&first));
            let is_type = !head.ends_with(')') && words.any(|word| TYPES.contains(&word));
            if open.is_none() && head.contains('(') && !head.ends_with(['=', ',', '(']) && !is_statement && !is_type {
                let before = head.split_once('(').map_or("", |(before, _)| before);
                open = Some((depth, line(start), before.split_whitespace().last().unwrap_or(head).into()));
            }
            depth += 1;
        } else if mark == '}' {
            depth = depth.saturating_sub(1);
            if let Some((_, first, name)) = open.take_if(|(outside, ..)| *outside == depth) {
                found.push((first, name, line(at) - first + 1));
            }
        }
    }
    found
}

/// Code with spaces in place of comments, strings, characters and lines of the preprocessor; lines stay where they are.
fn blank(text: &str) -> String {
    const QUOTES: [(&str, &str); 6] =
        [("//", "\n"), ("/*", "*/"), ("\"\"\"", "\"\"\""), ("\"", "\""), ("'", "'"), ("`", "`")];
    let (mut out, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let is_directive =
            first == '#' && out.lines().next_back().is_none_or(|line| line.trim().is_empty() || out.ends_with('\n'));
        let quote = QUOTES.iter().find(|(open, _)| rest.starts_with(open));
        let length = match quote {
            _ if is_directive => {
                // It goes on behind a backslash at the end of a line.
                let ends = rest.match_indices('\n').map(|(at, _)| at).find(|&at| !rest[..at].ends_with('\\'));
                ends.unwrap_or(rest.len())
            }
            Some((open, close)) => {
                let mut at = open.len();
                while at < rest.len() && !rest[at..].starts_with(close) {
                    let escaped = rest[at..].starts_with('\\') && ["\"", "'"].contains(open);
                    at += usize::from(escaped);
                    at += rest[at..].chars().next().map_or(0, char::len_utf8);
                }
                (at + close.len()).min(rest.len())
            }
            None => {
                out.push(if first.is_ascii() { first } else { ' ' });
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        out.extend(rest[..length].chars().map(|c| if c == '\n' { c } else { ' ' }));
        rest = &rest[length..];
    }
    out
}

/// Functions of Python, which end before a line that is indented no more than they are.
fn in_python(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let head = line.trim_start();
        let Some(rest) = head.strip_prefix("async ").unwrap_or(head).strip_prefix("def ") else { continue };
        let ends = |other: &&&str| {
            let other = other.trim_end();
            !other.is_empty() && indent(other) <= indent(line) && !other.trim_start().starts_with(')')
        };
        let below = lines[index + 1..].iter().take_while(|other| !ends(other));
        let blank = below.clone().collect::<Vec<_>>().iter().rev().take_while(|line| line.trim().is_empty()).count();
        let name = rest.split('(').next().unwrap_or_default();
        found.push((index + 1, name.into(), 1 + below.count() - blank));
    }
    found
}

#[test]
fn functions_are_measured() {
    let of = |path: &str, text: &str| -> Vec<(usize, String, usize)> {
        functions(&Source { path: path.into(), text: text.into() })
    };
    let named = |all: &[(usize, &str, usize)]| -> Vec<(usize, String, usize)> {
        all.iter().map(|(line, name, length)| (*line, (*name).into(), *length)).collect()
    };
    let rust = "fn a() {}\nimpl A {\n    pub(in crate::b) unsafe\n    extern \"system\" fn b(\n\
                ) -> c {\n\"\n}\n\"\n    }\n\
                type D = fn(u8);\n}\nproptest! { fn e() {\n} }\n";
    assert_eq!(of("a.rs", rust), named(&[(1, "a", 1), (4, "b", 6), (12, "e", 2)]));
    let c = "#define A(x) do { \\\n    x; } while (0)\n/* a() { */\nstruct s {\n    int a;\n};\n\
             static const struct s *const\nb(int c,\n  char d)\n{\n    if (c) {\n        f(\"}\", '}');\n    }\n}\n\
             int g[] = {\n    1 };\nextern \"C\" {\nstruct s h(void) { }\n}\n";
    assert_eq!(of("a.c", c), named(&[(7, "b", 8), (18, "h", 1)]));
    let java = "class A {\n    /** It's {. */\n    @Override\n    public int b(int c) throws D {\n\
                        return 1;\n    }\n}\n";
    assert_eq!(of("A.java", java), named(&[(3, "b", 4)]));
    let go = "package a\n\nimport (\n\t\"b\"\n)\n\ntype A struct {\n\tb int\n}\n\nfunc (a *A) c(d int) (e, error) {\n\
                      \tif x := `}\n`; x {\n\t}\n}\n";
    assert_eq!(of("a.go", go).iter().map(|(line, _, length)| (*line, *length)).collect::<Vec<_>>(), [(11, 5)]);
    let python = "class A:\n    def b(\n        c,\n    ):\n        \"\"\"d\"\"\"\n\n        return 1\n\n\
                  \x20   def e(self): pass\nx = 1\n";
    assert_eq!(of("a.py", python), named(&[(2, "b", 6), (9, "e", 1)]));
    assert_eq!(of("scripts/a", &format!("#!/usr/bin/env python3\n{python}")).len(), 2);
}
