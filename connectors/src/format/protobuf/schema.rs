//! Finds the messages in the text of a `.proto` file, and their paths; nothing else of the file is
//! needed here. The registry parses the whole file when a schema is registered, and reports what is
//! wrong with it.

use std::fmt;

use crate::format::Cause;
use crate::format::registry::Path;

/// A message of a file, by its name without the package.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: String,
    path: Path,
    /// The path as counted by clients that use the file's descriptor, where maps and groups are
    /// messages too.
    descriptor: Path,
}

/// The messages of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) text: String,
    package: String,
    places: Vec<Place>,
}

impl File {
    /// Reads the text of a `.proto` file.
    pub(super) fn parse(text: &str) -> Result<File, Cause> {
        let tokens = tokens(text)?;
        let file = File { text: text.to_owned(), package: String::new(), places: Vec::new() };
        let mut parser = Parser { rest: &tokens, depth: 0, file };
        parser.file()?;
        if parser.file.places.is_empty() { Err("it has no message".into()) } else { Ok(parser.file) }
    }

    /// Finds a message by its name, with or without the package; the first message if no name is
    /// given.
    fn place(&self, message: Option<&str>) -> Result<&Place, Cause> {
        let Some(name) = message else { return Ok(&self.places[0]) };
        let in_package = name.strip_prefix(&self.package).and_then(|name| name.strip_prefix('.'));
        let found = |name: &str| self.places.iter().find(|place| place.name == name);
        found(name)
            .or_else(|| found(in_package?))
            .ok_or_else(|| format!("it has no message `{name}`, only {self}").into())
    }

    /// The path to write for a message.
    pub(super) fn path(&self, message: Option<&str>) -> Result<&Path, Cause> {
        self.place(message).map(|place| &place.path)
    }

    /// The paths that other clients may have written for a message.
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

/// How many levels deep messages may be nested.
const DEPTH_MAX: usize = 64;

/// The scope in which messages are counted: a file, or a message.
#[derive(Default)]
struct Scope {
    name: Vec<String>,
    path: Path,
    descriptor: Path,
    /// The number of messages so far, counted in both ways.
    messages: i32,
    described: i32,
}

/// Follows the statements of a file as the compiler does: the first word says what a statement is,
/// and a statement of no interest is skipped to its end. So no name, option or default can be taken
/// for a message.
struct Parser<'t> {
    rest: &'t [&'t str],
    depth: usize,
    file: File,
}

impl<'t> Parser<'t> {
    fn file(&mut self) -> Result<(), Cause> {
        let mut scope = Scope::default();
        while let Some(word) = self.rest.first().copied() {
            match word {
                "package" => {
                    self.next()?;
                    let name = self.pass_statement()?;
                    self.file.package = name.concat();
                }
                "message" => self.message(&mut scope)?,
                "enum" | "service" => self.pass_until_closed("{", "}")?,
                "extend" => self.extend(&mut scope)?,
                // The visibility of the definition that follows.
                "export" | "local" => drop(self.next()?),
                "}" => return Err("a closing bracket has no opening one".into()),
                _ => drop(self.pass_statement()?),
            }
        }
        Ok(())
    }

    fn message(&mut self, outer: &mut Scope) -> Result<(), Cause> {
        self.expect("message")?;
        let name = [&outer.name[..], &[self.next()?.to_owned()]].concat();
        let path = [&outer.path[..], &[outer.messages]].concat();
        let descriptor = [&outer.descriptor[..], &[outer.described]].concat();
        (outer.messages, outer.described) = (outer.messages + 1, outer.described + 1);
        self.file.places.push(Place { name: name.join("."), path: path.clone(), descriptor: descriptor.clone() });
        self.body(&mut Scope { name, path, descriptor, ..Scope::default() })
    }

    /// The statements of a message, or of a part of one, between braces.
    fn body(&mut self, scope: &mut Scope) -> Result<(), Cause> {
        self.expect("{")?;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("its messages are nested more than {DEPTH_MAX} deep").into());
        }
        loop {
            let word = *self.rest.first().ok_or(OPEN)?;
            match word {
                "}" => break,
                "message" => self.message(scope)?,
                "enum" => self.pass_until_closed("{", "}")?,
                "extend" => self.extend(scope)?,
                "oneof" => {
                    self.rest = self.rest.get(2..).ok_or(OPEN)?;
                    self.body(scope)?;
                }
                "export" | "local" | "optional" | "required" | "repeated" => drop(self.next()?),
                "map" if self.rest.get(1) == Some(&"<") => {
                    scope.described += 1;
                    self.pass_statement()?;
                }
                "group" => self.group(scope)?,
                _ => drop(self.pass_statement()?),
            }
        }
        self.depth -= 1;
        self.expect("}")
    }

    /// A group: a field that is also a message with fields of its own.
    fn group(&mut self, outer: &mut Scope) -> Result<(), Cause> {
        self.expect("group")?;
        let index = outer.described;
        outer.described += 1;
        let name = [&outer.name[..], &[self.next()?.to_owned()]].concat();
        let within = |path: &Path| [&path[..], &[index]].concat();
        let (path, descriptor) = (within(&outer.path), within(&outer.descriptor));
        self.expect("=")?;
        self.next()?;
        if self.rest.first() == Some(&"[") {
            self.pass_until_closed("[", "]")?;
        }
        self.body(&mut Scope { name, path, descriptor, ..Scope::default() })
    }

    /// Fields that extend another message. Groups among them are counted in the scope where they
    /// are written.
    fn extend(&mut self, scope: &mut Scope) -> Result<(), Cause> {
        self.rest = self.rest.get(2..).ok_or(OPEN)?;
        self.body(scope)
    }

    /// Skips a statement and the semicolon that ends it; returns its tokens.
    fn pass_statement(&mut self) -> Result<&'t [&'t str], Cause> {
        let mut depth = 0_usize;
        for (at, token) in self.rest.iter().enumerate() {
            match *token {
                "{" | "[" => depth += 1,
                "}" | "]" => depth = depth.checked_sub(1).ok_or("a closing bracket has no opening one")?,
                ";" if depth == 0 => {
                    let (statement, rest) = self.rest.split_at(at);
                    self.rest = &rest[1..];
                    return Ok(statement);
                }
                _ => {}
            }
        }
        Err("a statement does not end".into())
    }

    /// Skips to after the bracket that closes the first one opened.
    fn pass_until_closed(&mut self, open: &str, close: &str) -> Result<(), Cause> {
        let mut depth = 0_usize;
        for (at, token) in self.rest.iter().enumerate() {
            if *token == open {
                depth += 1;
            } else if *token == close {
                depth = depth.checked_sub(1).ok_or("a closing bracket has no opening one")?;
            } else {
                continue;
            }
            if depth == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(());
            }
        }
        Err(OPEN.into())
    }

    fn next(&mut self) -> Result<&'t str, Cause> {
        let (token, rest) = self.rest.split_first().ok_or(OPEN)?;
        self.rest = rest;
        Ok(token)
    }

    fn expect(&mut self, token: &str) -> Result<(), Cause> {
        let next = self.next()?;
        if next == token { Ok(()) } else { Err(format!("expected `{token}`, found `{next}`").into()) }
    }
}

const OPEN: &str = "an opening bracket has no closing one";

/// Words and punctuation, without comments and quoted text.
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

/// The index after the closing quote of a quoted text.
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
        let file = File::parse(FILE).expect("the file is valid");
        let paths = |name| file.paths(Some(name)).expect("the message exists");
        assert_eq!(file.path(None).expect("the file has a message"), &[0]);
        assert_eq!(paths("Order"), [vec![0], vec![0]]);
        assert_eq!(paths("Order.Item"), [vec![0, 0], vec![0, 1]], "a map is a message of the descriptor");
        assert_eq!(paths("Order.Item.Price"), [vec![0, 0, 0], vec![0, 1, 0]]);
        assert_eq!(paths("shop.orders.Order.Note"), [vec![0, 1], vec![0, 2]]);
        assert_eq!(paths("Cancelled"), [vec![1], vec![1]]);
        let error = file.path(Some("Price")).expect_err("it is nested in another message").to_string();
        assert_eq!(
            error,
            "it has no message `Price`, only `Order`, `Order.Item`, `Order.Item.Price`, `Order.Note`, `Cancelled`"
        );
    }

    /// Words used to be matched anywhere: the content of an option or a default was counted as a
    /// map or a group, and records of the messages after it were taken for those of another
    /// message.
    #[test]
    fn what_is_said_within_a_statement_is_no_message() {
        let file = File::parse(
            r#"
            edition = "2023";
            import "google/protobuf/timestamp.proto";
            option (about) = { map < key: 1 > message { name: 1 } };
            extend google.protobuf.FieldOptions { optional group Hint = 51000 { optional int32 map = 1; } }
            message Order {
                option (hint) = { group: x = 1; map <a: 1> };
                reserved map, group, message;
                extensions 100 to max [declaration = { message: 1 }];
                optional group Part = 1 [(x) = { message: 1 }] { optional int32 a = 1; message Inner { } }
                oneof which { option (y) = { map < z: 1 > }; group.Type a = 2; message.Type b = 3; }
                repeated int32 message_count = 4 [default = group = 1];
                export message Item { }
            }
            local message Last { }
        "#,
        );
        let file = file.expect("the file is valid");
        let paths = |name| file.paths(Some(name)).expect("the message exists");
        assert_eq!(paths("Order"), [vec![0], vec![1]], "a group among extensions is a message of the descriptor");
        assert_eq!(paths("Order.Item"), [vec![0, 0], vec![1, 1]]);
        assert_eq!(paths("Order.Part.Inner")[1], [1, 0, 0]);
        assert_eq!(paths("Last"), [vec![1], vec![2]]);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        for text in
            ["", "syntax = \"proto3\";", "message A {", "message A { } }", "message A { /* }", "message A { \" }"]
        {
            assert!(File::parse(text).is_err(), "{text}");
        }
        let deep = "message A { ".repeat(100_000);
        assert!(File::parse(&deep).expect_err("it is too deep").to_string().contains("nested more than"));
    }
}
