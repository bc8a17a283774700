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
                // What a broker for tests has downloaded and written is not ours.
                let is_of_broker = path.ends_with("kafka/libs") || path.ends_with("kafka/state");
                if !is_of_broker && !["target", ".git"].contains(&name.as_str()) {
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

/// What a file imports, as paths from the root of its crate: `use crate::{api::Job, io}` is two of
/// them, and `super` is resolved. Imports of its tests count too.
fn imports(path: &str, text: &str) -> Vec<String> {
    let inside = path.split_once("/src/").map_or(path, |(_, inside)| inside).trim_end_matches(".rs");
    let mut module: Vec<&str> = inside.split('/').filter(|part| *part != "lib").collect();
    if module.last() == Some(&"mod") {
        module.pop();
    }
    let mut found = Vec::new();
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join(" ");
    for statement in code.split("use ").skip(1) {
        let statement = statement.split(';').next().unwrap_or_default().replace(' ', "");
        expand(&statement, "", &mut found);
    }
    found.retain(|import| import.starts_with("crate::") || import.starts_with("super::"));
    for import in &mut found {
        let mut base = module.clone();
        let mut rest = import.as_str();
        while let Some(above) = rest.strip_prefix("super::") {
            base.pop();
            rest = above;
        }
        let absolute = match rest.strip_prefix("crate::") {
            Some(inside) => inside.to_owned(),
            None => base.into_iter().chain([rest]).collect::<Vec<_>>().join("::"),
        };
        *import = absolute;
    }
    found
}

/// The paths of a use tree.
fn expand(tree: &str, before: &str, found: &mut Vec<String>) {
    let Some((head, rest)) = tree.split_once('{') else {
        found.push(format!("{before}{tree}"));
        return;
    };
    let rest = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut begin) = (0, 0);
    let mut parts = Vec::new();
    for (at, letter) in rest.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&rest[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&rest[begin..]);
    parts.into_iter().filter(|part| !part.is_empty()).for_each(|part| expand(part, &format!("{before}{head}"), found));
}

#[test]
fn imports_are_read_whatever_their_form() {
    let text = "use crate::{api::{Job, job::Spec}, io};\nuse super::super::run;\nuse super::handle::Handle;\n#[cfg(test)] mod tests { use super::*; }";
    assert_eq!(
        imports("engine/src/run/server.rs", text),
        ["api::Job", "api::job::Spec", "io", "run", "run::handle::Handle", "run::*"]
    );
}

const FLOORS: [&str; 7] = ["words", "io", "state", "operator", "epoch", "run", "api"];

#[test]
fn a_module_of_the_engine_imports_from_its_own_floor_and_below() {
    for (path, text) in files("engine/src", ".rs") {
        let Some(own) = FLOORS.iter().position(|floor| path.starts_with(&format!("engine/src/{floor}/"))) else {
            continue;
        };
        for import in imports(&path, &text) {
            let floor = FLOORS.iter().position(|floor| import.split("::").next() == Some(floor));
            assert!(floor.is_none_or(|floor| floor <= own), "{path} imports {import} from a floor above its own");
        }
        for (line, text) in code(&text) {
            for (floor, name) in FLOORS.iter().enumerate().skip(own + 1) {
                let is_named = text.contains(&format!("crate::{name}::"));
                assert!(!is_named, "{path}:{line} names floor {floor}, above its own");
            }
        }
    }
}

/// Files of a folder whose imports go in a circle, unless they are a pair that cannot be told
/// apart.
fn check_circles(folder: &str, pairs: &[(&str, &str)]) {
    let (_, inside) = folder.split_once("/src/").expect("a folder of a crate");
    let inside: Vec<&str> = inside.split('/').collect();
    let mut edges: std::collections::BTreeMap<String, std::collections::BTreeSet<String>> = Default::default();
    let all = files(folder, ".rs");
    let names: Vec<String> = all
        .iter()
        .filter_map(|(path, _)| path.strip_prefix(&format!("{folder}/"))?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    for (path, text) in &all {
        let own = path[folder.len() + 1..].trim_end_matches(".rs").to_owned();
        // What a folder's `mod.rs` re-exports is not an import of its own.
        if own == "mod" || own.ends_with("/mod") {
            continue;
        }
        // Tests may import from anywhere.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for import in imports(path, text) {
            let parts: Vec<&str> = import.split("::").collect();
            let Some(rest) = parts.strip_prefix(&inside[..]) else { continue };
            let name = (1..=rest.len()).rev().map(|len| rest[..len].join("/")).find(|name| names.contains(name));
            if let Some(name) = name.filter(|name| *name != own) {
                edges.entry(own.clone()).or_default().insert(name);
            }
        }
    }
    let is_pair = |a: &str, b: &str| pairs.contains(&(a, b)) || pairs.contains(&(b, a));
    for start in edges.keys() {
        let (mut open, mut seen) = (vec![start.clone()], std::collections::BTreeSet::new());
        while let Some(at) = open.pop() {
            for next in edges.get(&at).into_iter().flatten().filter(|next| !is_pair(&at, next)) {
                assert!(next != start, "in {folder} the imports of {start} come back to it from {at}");
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
    }
}

#[test]
fn the_files_of_a_folder_have_an_order() {
    check_circles("engine/src/run", &[]);
    check_circles("engine/src/epoch", &[]);
    check_circles("engine/src/api", &[("flow", "stream")]);
    check_circles("connectors/src/kafka", &[("client", "client_events"), ("read/reader", "read/source")]);
}

/// rustfmt leaves comments alone.
#[test]
fn comments_are_at_most_100_columns_wide() {
    for folder in ["engine/src", "connectors/src", "connectors/tests", "examples", "benches", "tests"] {
        for (path, text) in files(folder, ".rs") {
            let mut is_code = false;
            for (line, text) in text.lines().enumerate() {
                let comment = text.trim_start();
                if !comment.starts_with("//") {
                    continue;
                }
                let inside = comment.trim_start_matches(['/', '!']).trim_start();
                is_code ^= inside.starts_with("```");
                // Code of examples is as wide as code, and rows of tables and links cannot be
                // wrapped.
                let is_whole = is_code || inside.starts_with('|') || !inside.contains(' ') || inside.starts_with('[');
                assert!(is_whole || text.chars().count() <= 100, "{path}:{} is too wide", line + 1);
            }
        }
    }
}

/// A sample of the words that plain English does without; see the style guide.
#[test]
fn messages_are_plain_english() {
    for folder in ["engine/src", "connectors/src"] {
        for (path, text) in files(folder, ".rs") {
            for (line, text) in text.lines().enumerate() {
                let lower = text.to_lowercase();
                for word in ["nobody", "somebody", "anybody", "whoever", "more than nothing", " anew", "is no utf"] {
                    assert!(!lower.contains(word), "{path}:{} says `{word}`", line + 1);
                }
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
    may_name("std::fs", &["connectors/src/file/", "connectors/src/security/"], "connectors/src");
    may_name("serde_json", &["engine/src/inspect", "engine/src/state/show"], "engine/src");
    may_name("clap", &["engine/src/inspect"], "engine/src");
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
            let most = if folder == "tests" { 600 } else { 520 };
            assert!(lines <= most, "{path} has {lines} lines: look for the seam");
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
