//! Which messages the text of a `.proto` file has, and at which places: all that is needed of it here. The registry reads
//! all of it when a schema is registered, and says what it does not like.

use std::fmt;

use crate::format::Cause;
use crate::format::registry::Path;

/// A message of a file, by its name without the package.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: String,
    path: Path,
    /// As those count who take a file's descriptor: maps and groups are messages there.
    descriptor: Path,
}

/// The messages of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) text: String,
    package: String,
    places: Vec<Place>,
}

/// A message that is open: its name, its paths, and how many messages it has so far, counted in both ways.
#[derive(Default)]
struct Open {
    name: Vec<String>,
    path: Path,
    descriptor: Path,
    messages: i32,
    described: i32,
    /// How many braces are open inside of it, its own among them.
    depth: usize,
}

impl File {
    /// Reads the text of a `.proto` file.
    pub(super) fn parse(text: &str) -> Result<File, Cause> {
        let tokens = tokens(text)?;
        let mut file = File { text: text.to_owned(), package: String::new(), places: Vec::new() };
        let mut open = vec![Open::default()];
        let mut depth = 0_usize;
        for (at, token) in tokens.iter().enumerate() {
            let follows = |ahead: usize| tokens.get(at + ahead).copied().unwrap_or_default();
            // Only where a statement of the file or of a message begins is a word what it says.
            let begins = at == 0 || matches!(tokens[at - 1], "{" | "}" | ";" | "]");
            let inner = open.last_mut().expect("the file is open to the end");
            match *token {
                "message" if begins && follows(2) == "{" => {
                    let name = inner.name.iter().cloned().chain([follows(1).to_owned()]).collect::<Vec<_>>();
                    let path = [&inner.path[..], &[inner.messages]].concat();
                    let descriptor = [&inner.descriptor[..], &[inner.described]].concat();
                    (inner.messages, inner.described) = (inner.messages + 1, inner.described + 1);
                    file.places.push(Place {
                        name: name.join("."),
                        path: path.clone(),
                        descriptor: descriptor.clone(),
                    });
                    open.push(Open { name, path, descriptor, messages: 0, described: 0, depth: depth + 1 });
                }
                "map" if follows(1) == "<" => inner.described += 1,
                "group" if follows(2) == "=" => inner.described += 1,
                "package" if begins && depth == 0 => file.package = package(&tokens[at + 1..]),
                "{" => depth += 1,
                "}" => {
                    depth = depth.checked_sub(1).ok_or("a brace is closed that none has opened")?;
                    if open.len() > 1 && open[open.len() - 1].depth > depth {
                        open.pop();
                    }
                }
                _ => {}
            }
        }
        match (depth, file.places.is_empty()) {
            (0, false) => Ok(file),
            (0, true) => Err("it has no message".into()),
            (_, _) => Err("a brace is opened that none closes".into()),
        }
    }

    /// The place of a message, by its name with the package or without; of the first when none is named.
    fn place(&self, message: Option<&str>) -> Result<&Place, Cause> {
        let Some(name) = message else { return Ok(&self.places[0]) };
        let in_package = name.strip_prefix(&self.package).and_then(|name| name.strip_prefix('.'));
        let found = |name: &str| self.places.iter().find(|place| place.name == name);
        found(name)
            .or_else(|| found(in_package?))
            .ok_or_else(|| format!("it has no message `{name}`, but {self}").into())
    }

    /// The path that is written for a message.
    pub(super) fn path(&self, message: Option<&str>) -> Result<&Path, Cause> {
        self.place(message).map(|place| &place.path)
    }

    /// The paths that others may have written for a message.
    pub(super) fn paths(&self, message: Option<&str>) -> Result<[Path; 2], Cause> {
        self.place(message).map(|place| [place.path.clone(), place.descriptor.clone()])
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.places.iter().map(|place| format!("`{}`", place.name)).collect();
        f.write_str(&names.join(", "))
    }
}

/// What stands behind the word, up to its semicolon.
fn package(tokens: &[&str]) -> String {
    tokens.iter().take_while(|token| **token != ";").copied().collect()
}

/// Words and signs, without comments and without what stands in quotes.
fn tokens(text: &str) -> Result<Vec<&str>, Cause> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").ok_or("a comment does not end")? + 2,
            '"' | '\'' => quoted(rest, first).ok_or("a quote does not end")?,
            _ => {
                let is_word = |char: char| char.is_alphanumeric() || char == '_' || char == '.';
                let word = rest.find(|char| !is_word(char)).unwrap_or(rest.len()).max(first.len_utf8());
                tokens.push(&rest[..word]);
                word
            }
        };
        rest = rest[end..].trim_start();
    }
    Ok(tokens)
}

/// Where a text in quotes ends.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut is_escaped = false;
    text.char_indices().skip(1).find_map(|(at, char)| {
        let ends = char == quote && !is_escaped;
        is_escaped = char == '\\' && !is_escaped;
        ends.then_some(at + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        syntax = "proto3"; // message A {
        package shop.orders;
        option (note) = { text: "message B {" };
        /* message C { } */
        enum Size { message = 0; }
        message Order {
            map<string, Item> items = 1;
            oneof message { string text = 2; }
            message Item {
                string message = 1;
                message Price { int64 cents = 1 [(hint) = "}"]; }
            }
            enum Kind { SMALL = 0; }
            message Note { }
        }
        message Cancelled { Order.Item item = 1; }
        service Orders { rpc Get(Order) returns (Order) { option (x) = "{"; } }
    "#;

    #[test]
    fn messages_are_found_where_others_count_them() {
        let file = File::parse(FILE).expect("it is one");
        let paths = |name| file.paths(Some(name)).expect("it is there");
        assert_eq!(file.path(None).expect("the first"), &[0]);
        assert_eq!(paths("Order"), [vec![0], vec![0]]);
        assert_eq!(paths("Order.Item"), [vec![0, 0], vec![0, 1]], "a map is a message of the descriptor");
        assert_eq!(paths("Order.Item.Price"), [vec![0, 0, 0], vec![0, 1, 0]]);
        assert_eq!(paths("shop.orders.Order.Note"), [vec![0, 1], vec![0, 2]]);
        assert_eq!(paths("Cancelled"), [vec![1], vec![1]]);
        let error = file.path(Some("Price")).expect_err("it is nested").to_string();
        assert_eq!(
            error,
            "it has no message `Price`, but `Order`, `Order.Item`, `Order.Item.Price`, `Order.Note`, `Cancelled`"
        );
    }

    #[test]
    fn what_is_no_file_is_refused() {
        for text in
            ["", "syntax = \"proto3\";", "message A {", "message A { } }", "message A { /* }", "message A { \" }"]
        {
            assert!(File::parse(text).is_err(), "{text}");
        }
    }
}
