//! How what an earlier version of a program has kept is converted.

use std::marker::PhantomData;

use crate::operator::aggregate::{Form, Shell};
use crate::operator::panes::Parts;
use crate::operator::sessions::Sessions;
use crate::state::delta::{NotEntries, decode};
use crate::state::describe::Look;
use crate::words::EventTime;

use super::key::{Key, State};

/// A value, with its time where the state has it.
pub(super) type Read<V> = (V, Option<EventTime>);

/// A value of a stretch of event time: two times, and the value.
pub(super) type ReadPart<V> = (i64, i64, Read<V>);

/// Converts values of one type.
pub(super) trait Convert<V> {
    /// What was kept of each key.
    fn look(&self, form: Form) -> Look;

    fn read(&self, form: Form, state: &[u8]) -> Result<Read<V>, NotEntries>;

    /// What was kept of each key, where values are kept in parts.
    fn look_in(&self, shell: Shell, form: Form) -> Look;

    fn read_in(&self, form: Form, state: &[u8]) -> Result<Vec<ReadPart<V>>, NotEntries>;
}

/// Values were of type `Old`. Where they are kept alone it is under keys of type `K`, and in parts
/// under those of type `Own`.
pub(super) struct Conversion<K, Own, Old, F> {
    version: u32,
    f: F,
    of: PhantomData<fn(K, Own, Old)>,
}

impl<K, Own, Old, F> Conversion<K, Own, Old, F> {
    pub(super) fn new(version: u32, f: F) -> Conversion<K, Own, Old, F> {
        Conversion { version, f, of: PhantomData }
    }
}

/// A value behind its time, as states with times are encoded.
type Timed<V> = (Option<EventTime>, V);

/// Two times and a state, as a part is encoded.
type Part<S> = (i64, i64, S);

impl<K: Key, Own: Key, V, Old: State, F: Fn(Old) -> V> Convert<V> for Conversion<K, Own, Old, F> {
    fn look(&self, form: Form) -> Look {
        match form {
            Form::Value => Look::at::<K, Old>(self.version),
            Form::Option => Look::at::<K, Option<Old>>(self.version),
            Form::Timed => Look::at::<K, Option<Timed<Old>>>(self.version),
        }
    }

    fn read(&self, form: Form, state: &[u8]) -> Result<Read<V>, NotEntries> {
        let (time, old) = match form {
            Form::Value => (None, decode(state).map_err(|_| NotEntries)?),
            Form::Option => (None, decode::<Option<Old>>(state).ok().flatten().ok_or(NotEntries)?),
            Form::Timed => decode::<Option<Timed<Old>>>(state).ok().flatten().ok_or(NotEntries)?,
        };
        Ok(((self.f)(old), time))
    }

    fn look_in(&self, shell: Shell, form: Form) -> Look {
        match (shell, form) {
            (Shell::Panes, Form::Value) => Look::at::<Own, Parts<Old>>(self.version),
            (Shell::Panes, Form::Option) => Look::at::<Own, Parts<Option<Old>>>(self.version),
            (Shell::Panes, Form::Timed) => Look::at::<Own, Parts<Option<Timed<Old>>>>(self.version),
            (Shell::Sessions, Form::Value) => Look::at::<Own, Sessions<Old>>(self.version),
            (Shell::Sessions, Form::Option) => Look::at::<Own, Sessions<Option<Old>>>(self.version),
            (Shell::Sessions, Form::Timed) => Look::at::<Own, Sessions<Option<Timed<Old>>>>(self.version),
        }
    }

    fn read_in(&self, form: Form, state: &[u8]) -> Result<Vec<ReadPart<V>>, NotEntries> {
        let all: Vec<Part<Timed<Old>>> = match form {
            Form::Value => parts(state, |old| Some((None, old)))?,
            Form::Option => parts(state, |old: Option<Old>| Some((None, old?)))?,
            Form::Timed => parts(state, |old: Option<Timed<Old>>| old)?,
        };
        Ok(all.into_iter().map(|(from, other, (time, old))| (from, other, ((self.f)(old), time))).collect())
    }
}

/// The parts of a key, with their states taken apart.
fn parts<S: State, Old>(
    state: &[u8],
    apart: impl Fn(S) -> Option<Timed<Old>>,
) -> Result<Vec<Part<Timed<Old>>>, NotEntries> {
    let all: Vec<Part<S>> = decode(state).map_err(|_| NotEntries)?;
    let all = all.into_iter().map(|(from, other, state)| Some((from, other, apart(state)?)));
    all.collect::<Option<Vec<_>>>().ok_or(NotEntries)
}
