//! Captures everything that is logged in this process, by `tracing` or by `log`, at every level.
//! Tests can search it, and it is checked for words that must not be in it.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::{Mutex, Once};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_core::span::Current;

/// Words that must not be logged, and the lines that contain them.
struct Watched {
    words: Vec<String>,
    found: Vec<String>,
    /// Lines of our own log, each after the spans in which it was logged.
    lines: Vec<String>,
    /// Spans that were opened, each after the spans in which it was.
    spans: Vec<String>,
    /// A thread, and part of a line: the thread panics when it logs that.
    fatal: Vec<[String; 2]>,
}

static WATCHED: Mutex<Watched> = Mutex::new(Watched {
    words: Vec::new(),
    found: Vec::new(),
    lines: Vec::new(),
    spans: Vec::new(),
    fatal: Vec::new(),
});
static SPANS: Mutex<Vec<(String, &'static Metadata<'static>)>> = Mutex::new(Vec::new());

thread_local! {
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

/// Starts to capture.
pub fn begin() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        tracing::subscriber::set_global_default(Traced).unwrap();
        log::set_logger(&Logged).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

/// Watches for this word as well.
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "only the tests of TLS have secrets"))]
pub fn watch_for(word: &str) {
    WATCHED.lock().unwrap().words.push(word.to_owned());
}

/// Makes the thread with this name panic when it logs a line that contains `part`.
pub fn panic_at(thread: &str, part: &str) {
    WATCHED.lock().unwrap().fatal.push([thread.to_owned(), part.to_owned()]);
}

/// The lines of our own log so far that contain one of these.
pub fn lines_with(parts: &[&str]) -> Vec<String> {
    let watched = WATCHED.lock().unwrap();
    watched.lines.iter().filter(|line| parts.iter().any(|part| line.contains(part))).cloned().collect()
}

/// Checks a text that is not a line of a log.
pub fn look(text: &str) {
    WATCHED.lock().unwrap().look(text, false);
}

/// The lines with `part` that contain a word that must not be in them.
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "only the tests of TLS have secrets"))]
pub fn found(part: &str) -> Vec<String> {
    WATCHED.lock().unwrap().found.iter().filter(|line| line.contains(part)).cloned().collect()
}

/// Whether a line of our own log contains all of these.
pub fn was_logged(parts: &[&str]) -> bool {
    times_logged(parts) > 0
}

/// How many lines of our own log contain all of these.
pub fn times_logged(parts: &[&str]) -> usize {
    let watched = WATCHED.lock().unwrap();
    watched.lines.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

/// Whether a span was opened that, after the spans in which it was, contains all of these.
pub fn was_opened(parts: &[&str]) -> bool {
    WATCHED.lock().unwrap().spans.iter().any(|span| parts.iter().all(|part| span.contains(part)))
}

impl Watched {
    fn look(&mut self, line: &str, is_ours: bool) {
        if self.words.iter().any(|word| line.contains(word.as_str())) {
            self.found.push(line.to_owned());
        }
        if is_ours {
            self.lines.push(line.to_owned());
        }
    }
}

struct Traced;

/// The spans that this thread is in.
fn within(spans: &[(String, &'static Metadata<'static>)]) -> String {
    ENTERED.with_borrow(|entered| entered.iter().map(|id| spans[id.into_u64() as usize - 1].0.clone() + ": ").collect())
}

/// The fields of an event or a span, in one line.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Traced {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut line = Line(span.metadata().name().to_owned());
        span.record(&mut line);
        look(&line.0);
        let mut spans = SPANS.lock().unwrap();
        let within = within(&spans);
        spans.push((line.0.clone(), span.metadata()));
        let id = Id::from_u64(spans.len() as u64);
        drop(spans);
        WATCHED.lock().unwrap().spans.push(within + &line.0);
        id
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        let mut line = Line(String::new());
        values.record(&mut line);
        look(&line.0);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let spans = SPANS.lock().unwrap();
        let within = within(&spans);
        drop(spans);
        let mut line = Line(format!("{within}{} {}", event.metadata().level(), event.metadata().target()));
        event.record(&mut line);
        let mut watched = WATCHED.lock().unwrap();
        watched.look(&line.0, event.metadata().target().starts_with("millstream"));
        let here = std::thread::current();
        let is_fatal = |[thread, part]: &[String; 2]| here.name() == Some(thread) && line.0.contains(part.as_str());
        let dies = watched.fatal.iter().any(is_fatal);
        drop(watched);
        assert!(!dies, "a test makes this thread panic here");
    }

    fn current_span(&self) -> Current {
        ENTERED.with_borrow(|entered| match entered.last() {
            Some(id) => Current::new(id.clone(), SPANS.lock().unwrap()[id.into_u64() as usize - 1].1),
            None => Current::none(),
        })
    }

    fn enter(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.clone()));
    }

    fn exit(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| {
            let at = entered.iter().rposition(|one| one == id).expect("it was entered");
            entered.remove(at);
        });
    }
}

struct Logged;

impl log::Log for Logged {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        look(&format!("{} {} {}", record.level(), record.target(), record.args()));
    }

    fn flush(&self) {}
}
