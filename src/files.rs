//! Reads the files of users, and recognises what was put in place of a file.
//!
//! Every error message is a sentence that names the file and how to mend it.

use std::borrow::Cow;
use std::fmt::Display;
use std::fs::{File, FileType};
use std::io::Read;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

/// Most bytes of a configuration. The largest configurations of known models have less than a million.
pub const CONFIGURATION: u64 = 1 << 24;

/// Most bytes of a `tokenizer.json`. The largest files of known models have about 40 million.
const TOKENIZER: u64 = 1 << 29;

fn cannot_read(path: &Path, why: impl Display) -> String {
    format!("cannot read {}: {why}", path.display())
}

/// Whether anything is at a path. A link to a path that does not exist counts.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The paths in a folder that have this extension, in order. A folder that does not exist has none.
pub fn with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let paths = folder.read_dir().map_err(|error| cannot_read(folder, error))?.map(|entry| entry.map(|it| it.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(|error| cannot_read(folder, error))?;
    paths.retain(|path| path.extension().is_some_and(|its| its == extension));
    paths.sort();
    Ok(paths)
}

/// Open a regular file. It is an error if the file begins like something that was put in its place, such as a web page.
///
/// Only regular files are opened: reading a pipe may never return, a device may never end, and opening a device may
/// have effects.
pub fn open(path: &Path) -> Result<File, String> {
    let refuse = |error: std::io::Error| match path.read_link() {
        Ok(target) if error.kind() == std::io::ErrorKind::NotFound => {
            cannot_read(path, format_args!("it is a link to {}, which does not exist", target.display()))
        }
        _ => cannot_read(path, error),
    };
    check_kind(path, path.metadata().map_err(refuse)?.file_type())?;
    // Another file may have taken the path since the check. So it is opened without waiting, and checked again.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(refuse)?;
    check_kind(path, file.metadata().map_err(refuse)?.file_type())?;
    let mut start = [0; START];
    let length = file.read_at(&mut start, 0).map_err(refuse)?;
    impostor(&start[..length]).map_or(Ok(file), |what| Err(cannot_read(path, what)))
}

fn check_kind(path: &Path, kind: FileType) -> Result<(), String> {
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a folder",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(cannot_read(path, format_args!("it is {what}, not a regular file")))
}

/// The content of a regular file, which must be UTF-8 and have at most `limit` bytes. Drops a byte order mark.
pub fn text(path: &Path, limit: u64) -> Result<String, String> {
    let (file, mut bytes) = (open(path)?, Vec::new());
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| cannot_read(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(cannot_read(
            path,
            format_args!(
                "it has more than {limit} bytes, which is the limit for such a file; check that it is the right file"
            ),
        ));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(cannot_read(path, "it begins with a byte order mark of UTF-16; save it as UTF-8"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| cannot_read(path, format_args!("it is not UTF-8 ({error}); save it as UTF-8")))?;
    Ok(without_mark(&text).to_owned())
}

/// A text without the byte order mark that some programs for Windows write before UTF-8.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The first bytes of archives and compressed files, and their formats.
const PACKED: [(&[u8], &str); 6] = [
    (b"\x1f\x8b\x08", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh91AY&SY", "bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
];

/// How many bytes at the start of a file are examined.
const START: usize = 256;

/// What was put in place of a file that begins with these bytes, and how to mend that. `None` if nothing is recognised.
fn impostor(start: &[u8]) -> Option<String> {
    let is_whole = start.len() < START;
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let text = start.trim_ascii_start().to_ascii_lowercase();
    if start.is_empty() {
        Some("it is empty; download or export it again".into())
    } else if text.starts_with(b"version https://git-lfs") {
        Some("it is a pointer of Git LFS, not the file itself; run `git lfs pull` in the cloned repository".into())
    } else if [&b"<!doctype html"[..], b"<html", b"<?xml"].iter().any(|page| text.starts_with(page)) {
        let what = "it is a page (HTML or XML), such as a server sends for an error or a login";
        Some(format!("{what}; download the file again"))
    } else if let Some((_, kind)) = PACKED.iter().find(|(bytes, _)| start.starts_with(bytes)) {
        Some(format!("it is packed ({kind}); unpack it, and put the content in its place"))
    } else {
        let message = server_message(start).filter(|_| is_whole)?;
        Some(format!(
            "it holds only the text {message:?}, such as a server sends in place of a file; download it again"
        ))
    }
}

/// The text of a file if it is readable, and neither JSON nor the beginning of JSON.
fn server_message(content: &[u8]) -> Option<&str> {
    let text = prose(content)?;
    (!text.contains(['{', '[']) && serde_json::from_str::<IgnoredAny>(text).is_err()).then_some(text)
}

/// Bytes as text, trimmed, if they are a text that people can read.
pub fn prose(content: &[u8]) -> Option<&str> {
    let text = str::from_utf8(content).ok()?.trim();
    let is_prose = text.chars().all(|c| !c.is_control() || c.is_whitespace());
    (is_prose && text.chars().filter(|c| c.is_alphabetic()).count() >= 4).then_some(text)
}

/// The JSON of a model's configuration. NaN and infinities become null: Python writes them, but JSON has no such
/// numbers.
pub fn configuration(path: &Path) -> Result<Value, String> {
    parse(path, &without_bare_numbers(&text(path, CONFIGURATION)?))
}

/// The text of a `tokenizer.json`, checked to be JSON.
pub fn tokenizer(path: &Path) -> Result<String, String> {
    let text = text(path, TOKENIZER)?;
    parse::<IgnoredAny>(path, &text)?;
    Ok(text)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| {
        let mend = if error.is_eof() { "; it is cut off, so download or copy it again" } else { "" };
        format!("{} is not JSON: {error}{mend}", path.display())
    })
}

/// Replaces `NaN`, `Infinity` and `-Infinity` by `null`, except in strings.
fn without_bare_numbers(text: &str) -> String {
    // Quotes cut the text into pieces that are outside and inside of strings, in turn. A quote behind an odd number of
    // backslashes does not end its string.
    let mut inside = false;
    let pieces = text.split('"').map(|piece| {
        let backslashes = piece.len() - piece.trim_end_matches('\\').len();
        let was_inside = inside;
        inside = !was_inside || backslashes % 2 == 1;
        if was_inside { Cow::Borrowed(piece) } else { Cow::Owned(without_numbers(piece)) }
    });
    pieces.collect::<Vec<_>>().join("\"")
}

fn without_numbers(piece: &str) -> String {
    ["-Infinity", "Infinity", "NaN"].iter().fold(piece.to_owned(), |piece, number| piece.replace(number, "null"))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn numbers_of_python_are_read() {
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity, 1], "c \" NaN": "NaN \\", "d": NaN}"#;
        let expected = r#"{"a": null, "b": [null, null, 1], "c \" NaN": "NaN \\", "d": null}"#;
        assert_eq!(without_bare_numbers(text), expected);
    }

    #[test]
    fn messages_say_what_a_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let read = |content: &[u8]| {
            std::fs::write(&file, content).unwrap();
            configuration(&file)
        };
        assert_eq!(read(b"\xef\xbb\xbf{}"), Ok(serde_json::json!({})), "a byte order mark");
        assert_eq!(read(b"{\"a\": NaN}"), Ok(serde_json::json!({ "a": null })));
        let long = vec![b' '; CONFIGURATION as usize + 1];
        assert_eq!(read(b"null"), Ok(Value::Null), "a short text that is JSON");
        let refused: [(&[u8], &[&str]); 18] = [
            (b"", &["it is empty", "download"]),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", &["Git LFS", "git lfs pull"]),
            (b"\n<!DOCTYPE html><html>404</html>", &["HTML", "download the file again"]),
            (b"\xef\xbb\xbf\r\n<!doctype HTML>", &["HTML"]),
            (b"\xef\xbb\xbf", &["it is empty"]),
            (b"\x1f\x8b\x08\0\0\0\0\0", &["packed (gzip)"]),
            (b"PK\x03\x04\x14\0", &["packed (zip)"]),
            (b"\x28\xb5\x2f\xfd\x04", &["packed (zstd)"]),
            (b"\xfd7zXZ\0\0", &["packed (xz)"]),
            (b"Not Found", &["the text \"Not Found\"", "download it again"]),
            (b"Invalid username or password.\n", &["the text \"Invalid username or password.\""]),
            (b"{Not Found", &["not JSON"]),
            (b"<?xml version=\"1.0\"?><Error/>", &["XML"]),
            (b"\xff\xfe{\0}\0", &["UTF-16", "byte order mark", "UTF-8"]),
            (b"{\"a\": \"\xe4\"}", &["not UTF-8"]),
            (b"{\"a\": [1, 2", &["not JSON", "cut off"]),
            (b"{\"a\": 1,}", &["not JSON: trailing comma"]),
            (&long, &["more than 16777216 bytes"]),
        ];
        for (content, says) in refused {
            let message = read(content).unwrap_err();
            assert!(message.contains("/config.json") && says.iter().all(|says| message.contains(says)), "{message}");
        }
    }

    /// Such paths must not block, must not be read without end, and must not be reported as missing.
    #[test]
    fn only_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let pipe = CString::new(path("pipe").as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a C string.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        symlink("/dev/zero", path("zeros")).unwrap();
        symlink("gone", path("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (name, what) in [
            ("pipe", "a named pipe"),
            ("zeros", "a device"),
            ("socket", "a socket"),
            (".", "a folder"),
            ("dangling", "a link to gone, which does not exist"),
            ("none", "No such file"),
        ] {
            let message = text(&path(name), 9).unwrap_err();
            assert!(message.contains(what) && message.contains(name), "{message}");
            assert_eq!(is_there(&path(name)), name != "none");
        }
    }
}
