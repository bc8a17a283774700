//! Models of the protocols by which a thread sleeps and is woken, under a checker that tries
//! thousands of interleavings. The protocols are compiled from their own files, with the checker's
//! primitives in place of the standard library's. A lost wake-up is a deadlock, which the checker
//! reports.
//!
//! Nothing here times out: in a job a safety look several times a second would hide a lost wake-up.

// Only a part of each file is used here.
#![allow(dead_code, unused_imports, missing_docs)]

mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    pub(crate) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[path = "../../engine/src/words/bell.rs"]
mod bell;
#[path = "../../engine/src/words/budget.rs"]
mod budget;
#[path = "../../engine/src/words/epoch.rs"]
mod epoch;
#[path = "../../engine/src/words/flight.rs"]
mod flight;
#[path = "../../engine/src/words/quantity.rs"]
mod quantity;
#[path = "../../connectors/src/kafka/write/sending.rs"]
mod sending;
#[path = "../../engine/src/words/wake.rs"]
mod wake;

use shuttle::thread;

use bell::Bell;
use budget::Budget;
use epoch::CheckpointId;
use flight::Flight;
use quantity::ByteSize;
use sending::Sending;
use sync::{Arc, AtomicBool, AtomicU64, Condvar, Mutex, SeqCst, lock};
use wake::Wake;

/// Runs a model under that many random interleavings.
fn check(model: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(model, 20_000);
}

/// A sleeper that is parked until it is unparked, as a worker is. An early unpark is kept.
#[derive(Clone)]
struct Parker(Arc<(Mutex<bool>, Condvar)>);

impl Parker {
    fn new() -> Parker {
        Parker(Arc::new((Mutex::new(false), Condvar::new())))
    }

    fn park(&self) {
        let mut is_unparked = lock(&self.0.0);
        while !*is_unparked {
            is_unparked = self.0.1.wait(is_unparked).unwrap();
        }
        *is_unparked = false;
    }

    fn unpark(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_one();
    }

    fn wake(&self) -> Wake {
        let parker = self.clone();
        Wake::new(move || parker.unpark())
    }
}

#[test]
fn a_wake_is_not_lost() {
    check(|| {
        let (parker, work) = (Parker::new(), Arc::new(AtomicU64::new(0)));
        let wake = parker.wake();
        let call = |_| {
            let (wake, work) = (wake.clone(), Arc::clone(&work));
            thread::spawn(move || {
                for _ in 0..2 {
                    work.fetch_add(1, SeqCst);
                    wake.wake();
                }
            })
        };
        let callers: Vec<_> = (0..2).map(call).collect();
        let mut done = 0;
        loop {
            wake.listen();
            done += work.swap(0, SeqCst);
            if done == 4 {
                break;
            }
            parker.park();
        }
        callers.into_iter().for_each(|caller| caller.join().unwrap());
    });
}

#[test]
fn a_reason_reaches_a_ticker_that_falls_asleep() {
    check(|| {
        let (bell, work) = (Arc::new(Bell::default()), Arc::new(AtomicU64::new(0)));
        let note = |_| {
            let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
            thread::spawn(move || {
                for _ in 0..2 {
                    work.fetch_add(1, SeqCst);
                    bell.note();
                }
            })
        };
        let workers: Vec<_> = (0..2).map(note).collect();
        // As the ticker: it says that it falls asleep, and looks again.
        let mut done = 0;
        while done < 4 {
            bell.set_asleep(true);
            match bell.take() {
                true => done += work.swap(0, SeqCst),
                false => bell.wait(|rung, changed| changed.wait(rung).unwrap()),
            }
            bell.set_asleep(false);
        }
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

#[test]
fn freed_memory_reaches_a_source_that_found_none() {
    check(|| {
        let (budget, parker) = (Budget::new(ByteSize(2)), Parker::new());
        let wake = parker.wake();
        let woken = wake.clone();
        budget.on_freed(move || woken.wake());
        budget.charge(2);
        let free = |_| {
            let budget = Arc::clone(&budget);
            thread::spawn(move || budget.give_back(1))
        };
        let sinks: Vec<_> = (0..2).map(free).collect();
        // As an ingest: it reads a record whenever there is room.
        let mut read = 0;
        while read < 2 {
            wake.listen();
            match budget.room(0) {
                Some(_) => {
                    budget.charge(1);
                    read += 1;
                }
                None => parker.park(),
            }
        }
        sinks.into_iter().for_each(|sink| sink.join().unwrap());
    });
}

#[test]
fn the_last_acknowledgement_of_a_cut_checkpoint_reaches_its_egress() {
    check(|| {
        let (parker, is_cut) = (Parker::new(), Arc::new(AtomicBool::new(false)));
        let wake = parker.wake();
        let (landed, cut) = (wake.clone(), Arc::clone(&is_cut));
        let flight = Flight::new(CheckpointId::new(1), move |_| {
            if cut.load(SeqCst) {
                landed.wake();
            }
        });
        flight.depart(2);
        let report = |_| {
            let flight = Arc::clone(&flight);
            thread::spawn(move || flight.land(1))
        };
        let reports: Vec<_> = (0..2).map(report).collect();
        let (cut, cuts) = (Arc::clone(&is_cut), wake.clone());
        let ticker = thread::spawn(move || {
            cut.store(true, SeqCst);
            cuts.wake();
        });
        // As an egress: it lets go of the checkpoint when it is cut and nothing of it is open.
        loop {
            wake.listen();
            if is_cut.load(SeqCst) && flight.open() == 0 {
                break;
            }
            parker.park();
        }
        ticker.join().unwrap();
        reports.into_iter().for_each(|report| report.join().unwrap());
    });
}

#[test]
fn a_sent_record_reaches_a_delivery_thread_that_falls_asleep() {
    check(|| {
        let (sending, in_flight) = (Arc::new(Sending::default()), Arc::new(AtomicU64::new(0)));
        let send = |_| {
            let (sending, in_flight) = (Arc::clone(&sending), Arc::clone(&in_flight));
            thread::spawn(move || {
                in_flight.fetch_add(1, SeqCst);
                sending.wake();
            })
        };
        let writers: Vec<_> = (0..2).map(send).collect();
        let mut delivered = 0;
        while delivered < 2 {
            match in_flight.load(SeqCst) {
                0 => sending.sleep_if(|| in_flight.load(SeqCst) == 0, |guard, changed| changed.wait(guard).unwrap()),
                _ => {
                    in_flight.fetch_sub(1, SeqCst);
                    delivered += 1;
                }
            }
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}
