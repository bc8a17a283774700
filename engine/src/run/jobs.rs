//! The jobs of this process: each is listed from its start to its end. Jobs of the same name are
//! told apart by a number, which is in the labels of their metrics.

use std::sync::{Arc, Mutex, Weak};

use crate::words::lock;

use super::handle::Handle;
use super::labels::Labels;

static JOBS: Mutex<Vec<Listed>> = Mutex::new(Vec::new());

struct Listed {
    name: String,
    number: u32,
    handle: Weak<Handle>,
}

/// The place of a job in the list; the job is removed when this is dropped.
#[derive(Debug)]
struct Place {
    name: String,
    number: u32,
}

/// Lists a job until it ends, under the smallest number that no other job of its name has.
pub(crate) fn list(handle: &Arc<Handle>) {
    let name = handle.job();
    let mut jobs = lock(&JOBS);
    let is_taken = |number: &u32| jobs.iter().any(|listed| listed.name == name && listed.number == *number);
    let number = (1..).find(|number| !is_taken(number)).expect("a process has fewer jobs than there are numbers");
    jobs.push(Listed { name: name.clone(), number, handle: Arc::downgrade(handle) });
    // Released first: `Handle::end` takes this lock while it holds that of its place.
    drop(jobs);
    handle.is_listed(Labels::new(&name, number), Box::new(Place { name, number }));
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&JOBS).retain(|listed| listed.name != self.name || listed.number != self.number);
    }
}

/// The listed jobs, the oldest first.
pub(crate) fn all() -> Vec<Arc<Handle>> {
    lock(&JOBS).iter().filter_map(|listed| listed.handle.upgrade()).collect()
}
