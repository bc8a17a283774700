//! Checks of the source tree: imports between floors, secrets, file sizes, and words that do not
//! belong in a library.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

/// All files under a folder of the workspace, with their paths from the root and their text.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("the entry can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                if !["target", "libs", "state", ".git"].contains(&name.as_str()) {
                    walk(&path, extension, found);
                }
            } else if name.ends_with(extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), extension, &mut found);
    let named = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("it is text");
        (path.strip_prefix(root()).expect("it lies under the root").to_str().expect("it is text").to_owned(), text)
    };
    let files: Vec<_> = found.into_iter().map(named).collect();
    assert!(!files.is_empty(), "no {extension} files under {folder}");
    files
}

/// The lines of a file before its tests, without comment lines.
fn code(text: &str) -> Vec<(usize, &str)> {
    let body = text.split("#[cfg(test)]").next().unwrap_or_default();
    body.lines()
        .enumerate()
        .map(|(line, text)| (line + 1, text))
        .filter(|(_, text)| !text.trim_start().starts_with("//"))
        .collect()
}

#[test]
fn a_module_of_the_engine_imports_from_its_own_floor_and_below() {
    const FLOORS: [&str; 6] = ["words", "io", "operator", "epoch", "run", "api"];
    for (path, text) in files("engine/src", ".rs") {
        let Some(own) = FLOORS.iter().position(|floor| path.starts_with(&format!("engine/src/{floor}/"))) else {
            continue;
        };
        for (line, text) in code(&text) {
            for (floor, name) in FLOORS.iter().enumerate().skip(own + 1) {
                assert!(
                    !text.contains(&format!("crate::{name}::")),
                    "{path}:{line} imports from floor {floor}, above its own"
                );
            }
        }
    }
}

#[test]
fn what_others_may_not_name() {
    let may_name = |word: &str, places: &[&str], folder: &str| {
        for (path, text) in files(folder, ".rs") {
            for (line, text) in code(&text) {
                let is_named = text.contains(&format!("{word}::")) || text.contains(&format!("use {word}"));
                assert!(
                    !is_named || places.iter().any(|place| path.starts_with(place)),
                    "{path}:{line} names {word}: {text}"
                );
            }
        }
    };
    let timely = ["engine/src/operator/", "engine/src/epoch/gather", "engine/src/run/", "engine/src/api/"];
    may_name("timely", &timely, "engine/src");
    may_name("rdkafka", &["connectors/src/kafka/"], "connectors/src");
    may_name("std::fs", &["engine/src/state/"], "engine/src");
    may_name("std::fs", &["connectors/src/file/", "connectors/src/kafka/security"], "connectors/src");
    may_name("serde_json", &[], "engine/src");
    may_name("rdkafka", &[], "engine/src");
}

#[test]
fn a_library_prints_nothing_and_leaves_nothing_undone() {
    for folder in ["engine/src", "connectors/src"] {
        for (path, text) in files(folder, ".rs") {
            for (line, text) in code(&text) {
                for word in
                    ["println!", "eprintln!", "print!(", "dbg!", "todo!", "unimplemented!", "unsafe ", "TODO", "FIXME"]
                {
                    assert!(!text.contains(word), "{path}:{line} has `{word}`");
                }
            }
        }
    }
}

#[test]
fn a_file_opens_with_what_it_is_and_is_not_too_long() {
    for folder in ["engine/src", "connectors/src", "examples", "benches", "tests"] {
        for (path, text) in files(folder, ".rs") {
            assert!(text.starts_with("//!"), "{path} does not open with what it is");
            let lines = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
            assert!(lines <= 520, "{path} has {lines} lines: look for the seam");
        }
    }
}

#[test]
fn no_secret_host_or_path_of_a_machine_is_in_the_project() {
    for extension in [".rs", ".toml", ".md", ".xml", "broker", "run"] {
        for (path, text) in files(".", extension) {
            if path == "tests/tidy.rs" {
                continue;
            }
            for word in [
                "/root/",
                "/home/",
                "/work/",
                "BEGIN PRIVATE KEY",
                "BEGIN RSA",
                "index.crates.io",
                "repo1.maven",
                "AKIA",
            ] {
                assert!(!text.contains(word), "{path} has `{word}`");
            }
        }
    }
}
