//! What bounds memory: a token for each record on its way, which gives its share back when the last
//! clone of it is gone. Firings have a reserve of their own, for the records that wait behind a cut
//! hold the rest of the budget, and they wait for this very firing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// How many rows of firings a worker may have on their way, for each checkpoint.
const RESERVE: usize = 6;

/// The budget of a worker.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    records: Cell<usize>,
    /// By checkpoint.
    reserve: RefCell<BTreeMap<u64, usize>>,
}

impl Budget {
    pub(crate) fn records(&self) -> usize {
        self.records.get()
    }

    /// Whether a firing of this checkpoint may emit a row. Rows of later checkpoints do not count:
    /// they may be set aside until this firing is over.
    pub(crate) fn has_reserve(&self, checkpoint: u64) -> bool {
        self.reserve.borrow().range(..=checkpoint).map(|(_, rows)| rows).sum::<usize>() < RESERVE
    }

    pub(crate) fn has_reserve_of_all(&self) -> bool {
        self.reserve.borrow().values().sum::<usize>() < RESERVE
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Charge {
    Record,
    Firing { checkpoint: u64 },
}

#[derive(Debug)]
struct Charged {
    budget: Rc<Budget>,
    charge: Charge,
}

/// The token of a record or of a row of a firing; clones are the same token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    /// Only its drop is used.
    _charged: Rc<Charged>,
}

impl Token {
    pub(crate) fn new(budget: &Rc<Budget>, charge: Charge) -> Token {
        match charge {
            Charge::Record => budget.records.set(budget.records.get() + 1),
            Charge::Firing { checkpoint } => *budget.reserve.borrow_mut().entry(checkpoint).or_default() += 1,
        }
        Token { _charged: Rc::new(Charged { budget: Rc::clone(budget), charge }) }
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        match self.charge {
            Charge::Record => self.budget.records.set(self.budget.records.get() - 1),
            Charge::Firing { checkpoint } => {
                let mut reserve = self.budget.reserve.borrow_mut();
                if let Some(rows) = reserve.get_mut(&checkpoint) {
                    *rows -= 1;
                }
            }
        }
    }
}
