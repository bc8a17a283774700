//! Where entries of a table are, by when their operator looks at them: the start of their window,
//! or an event time.

use std::collections::BTreeMap;
use std::vec::IntoIter;

use crate::state::table::Place;

/// See the module. An entry may be there several times.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    waiting: BTreeMap<i64, Vec<Place>>,
    /// What is looked at now.
    now: Option<(i64, IntoIter<Place>)>,
    len: usize,
}

impl Agenda {
    pub(super) fn add(&mut self, at: i64, place: Place) {
        self.waiting.entry(at).or_default().push(place);
        self.len += 1;
    }

    /// Takes the next entry, if its time has come: those of one time in the order in which they
    /// were added.
    pub(super) fn next(&mut self, has_come: impl Fn(i64) -> bool) -> Option<(i64, Place)> {
        loop {
            if let Some((at, places)) = &mut self.now {
                if let Some(place) = places.next() {
                    self.len -= 1;
                    return Some((*at, place));
                }
                self.now = None;
            }
            let first = self.waiting.first_entry().filter(|first| has_come(*first.key()))?;
            let (at, places) = first.remove_entry();
            self.now = Some((at, places.into_iter()));
        }
    }

    /// Those of the same time that are taken next.
    pub(super) fn ahead(&self) -> &[Place] {
        self.now.as_ref().map_or(&[], |(_, places)| places.as_slice())
    }

    /// When the next entries are to be looked at, those that are looked at now aside.
    pub(super) fn first(&self) -> Option<i64> {
        self.waiting.first_key_value().map(|(first, _)| *first)
    }

    /// The memory of the lists, half of which may be empty.
    pub(super) fn bytes(&self) -> usize {
        2 * self.len * size_of::<Place>()
    }
}
