//! A schema registry on loopback that tests can break. It takes schemas, returns them by id, and
//! answers as Confluent's does.

use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// What the registry does instead of answering.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Answers with a status and a text.
    Says(u16, &'static str),
    /// Never answers.
    Hangs,
    /// Closes the connection.
    Closes,
}

/// A registry, as the module says.
#[derive(Clone)]
pub struct TestRegistry {
    pub address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Each schema as it is returned. Its id is its position, counted from 1.
    schemas: Vec<Value>,
    /// A subject, and the id of one of its schemas.
    subjects: Vec<(String, usize)>,
    requests: Vec<String>,
    fault: Option<Fault>,
    /// The part of a request that the fault applies to; empty for all.
    fault_at: &'static str,
    authorization: Option<String>,
    incompatible: Option<&'static str>,
}

impl TestRegistry {
    pub fn start() -> TestRegistry {
        TestRegistry::start_with("http", Ok)
    }

    /// Starts a registry behind TLS with this configuration.
    #[cfg(feature = "tls")]
    pub fn start_tls(config: rustls::ServerConfig) -> TestRegistry {
        let config = Arc::new(config);
        TestRegistry::start_with("https", move |stream| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).expect("the settings are valid");
            Ok(rustls::StreamOwned::new(connection, stream))
        })
    }

    fn start_with<S: Read + Write>(
        scheme: &str,
        dressed: impl Fn(TcpStream) -> Result<S> + Clone + Send + 'static,
    ) -> TestRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = format!("{scheme}://{}", listener.local_addr().expect("it is bound"));
        let registry = TestRegistry { address, state: Arc::default() };
        let served = registry.clone();
        // The thread ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (served, dressed) = (served.clone(), dressed.clone());
                thread::spawn(move || dressed(stream).and_then(|stream| served.serve(stream)));
            }
        });
        registry
    }

    /// Breaks the registry, or repairs it.
    pub fn fault(&self, fault: impl Into<Option<Fault>>) {
        let mut state = self.state.lock().unwrap();
        (state.fault, state.fault_at) = (fault.into(), "");
    }

    /// Breaks the registry only for requests that contain `part`.
    pub fn fault_at(&self, part: &'static str, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        (state.fault, state.fault_at) = (Some(fault), part);
    }

    /// Accepts only requests with this authorization.
    pub fn wants(&self, authorization: &str) {
        self.state.lock().unwrap().authorization = Some(authorization.to_owned());
    }

    /// Refuses every schema from now on, with this message.
    pub fn finds_incompatible(&self, message: &'static str) {
        self.state.lock().unwrap().incompatible = Some(message);
    }

    /// Adds a schema under a subject, and returns its id.
    pub fn add(&self, subject: &str, schema: &Value) -> u32 {
        let mut state = self.state.lock().unwrap();
        let id = state.id_of(schema).unwrap_or_else(|| {
            state.schemas.push(schema.clone());
            state.schemas.len()
        });
        if !state.subjects.contains(&(subject.to_owned(), id)) {
            state.subjects.push((subject.to_owned(), id));
        }
        id as u32
    }

    pub fn add_avro(&self, schema: &str) -> u32 {
        self.add("any", &json!({ "schema": schema }))
    }

    /// The ids of a subject's versions.
    pub fn versions(&self, subject: &str) -> Vec<u32> {
        let state = self.state.lock().unwrap();
        state.subjects.iter().filter(|(name, _)| name == subject).map(|(_, id)| *id as u32).collect()
    }

    /// How many requests contained `part`.
    pub fn asked(&self, part: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|request| request.contains(part)).count()
    }

    fn serve(&self, stream: impl Read + Write) -> Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let mut first = String::new();
            if reader.read_line(&mut first)? == 0 {
                return Ok(());
            }
            let (mut length, mut authorization) = (0, None);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                let Some((name, value)) = line.trim().split_once(": ") else { break };
                match name.to_lowercase().as_str() {
                    "content-length" => length = value.parse().expect("a number"),
                    "authorization" => authorization = Some(value.to_owned()),
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let request = first.rsplit_once(' ').expect("a version follows").0.to_owned();
            let answer = {
                let mut state = self.state.lock().unwrap();
                state.requests.push(request.clone());
                match state.fault.clone().filter(|_| request.contains(state.fault_at)) {
                    Some(Fault::Says(status, text)) => Some((status, text.to_owned())),
                    Some(Fault::Closes) => return Ok(()),
                    Some(Fault::Hangs) => None,
                    None if state.authorization.is_some() && authorization != state.authorization => {
                        Some(complaint(401, 40101, "who are you?"))
                    }
                    None => Some(state.answer(&request, &serde_json::from_slice(&body).unwrap_or_default())),
                }
            };
            let Some((status, text)) = answer else {
                // Waits until the client gives up.
                reader.read_line(&mut String::new())?;
                return Ok(());
            };
            let head = format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n", text.len());
            reader.get_mut().write_all((head + &text).as_bytes())?;
            reader.get_mut().flush()?;
        }
    }
}

fn complaint(status: u16, code: u32, message: &str) -> (u16, String) {
    (status, json!({ "error_code": code, "message": message }).to_string())
}

impl State {
    fn id_of(&self, schema: &Value) -> Option<usize> {
        self.schemas.iter().position(|known| known == schema).map(|at| at + 1)
    }

    fn answer(&mut self, request: &str, body: &Value) -> (u16, String) {
        let path = request.split_once(' ').expect("a method and a path").1;
        let parts: Vec<&str> = path.split('?').next().unwrap_or_default().split('/').skip(1).collect();
        match (request.starts_with("POST"), parts.as_slice()) {
            (false, ["schemas", "ids", id]) => {
                let known = id.parse::<usize>().ok().and_then(|id| self.schemas.get(id.checked_sub(1)?));
                known.map_or_else(|| complaint(404, 40403, "Schema not found"), |schema| (200, schema.to_string()))
            }
            (false, ["subjects", subject, "versions", version]) => {
                let mut ids = self.subjects.iter().filter(|(name, _)| name == &decoded(subject)).map(|(_, id)| *id);
                let id = version.parse::<usize>().ok().and_then(|version| ids.nth(version - 1));
                id.map_or_else(
                    || complaint(404, 40402, "Version not found"),
                    |id| (200, self.schemas[id - 1].to_string()),
                )
            }
            (true, ["subjects", _, "versions"]) if self.incompatible.is_some() => {
                complaint(409, 409, self.incompatible.unwrap_or_default())
            }
            (true, ["subjects", subject, "versions"]) => {
                if body["schema"].as_str().is_none_or(|schema| schema.contains("import \"other.proto\"")) {
                    return complaint(422, 42201, "Invalid schema: other.proto is not there");
                }
                let id = self.id_of(body).unwrap_or_else(|| {
                    self.schemas.push(body.clone());
                    self.schemas.len()
                });
                let subject = decoded(subject);
                if !self.subjects.contains(&(subject.clone(), id)) {
                    self.subjects.push((subject, id));
                }
                (200, json!({ "id": id }).to_string())
            }
            (true, ["subjects", subject]) => {
                let id = self.id_of(body).filter(|id| self.subjects.contains(&(decoded(subject), *id)));
                id.map_or_else(
                    || complaint(404, 40403, "Schema not found"),
                    |id| (200, json!({ "subject": subject, "id": id, "version": 1 }).to_string()),
                )
            }
            _ => (404, "<html>nothing here</html>".to_owned()),
        }
    }
}

/// Decodes a part of a path that was percent-encoded.
fn decoded(part: &str) -> String {
    let mut parts = part.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let byte = u8::from_str_radix(&part[..2], 16).expect("two digits");
        format!("{text}{}{}", char::from(byte), &part[2..])
    })
}
