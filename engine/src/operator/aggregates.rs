//! The aggregates: how the records of a key become a value.

use std::cmp::Ordering;
use std::marker::PhantomData;

use crate::state::table::TableState;
use crate::words::{Error, ErrorKind, EventTime, Result};

use super::aggregate::{Aggregate, Form, Merge};

/// Counts records.
pub(crate) struct Count;

impl Aggregate for Count {
    type Input = ();
    type State = u64;
    type Value = u64;

    #[inline]
    fn zero(&self) -> u64 {
        0
    }

    #[inline]
    fn add(&self, state: &mut u64, (): (), _: Option<EventTime>) -> Result<()> {
        *state += 1;
        Ok(())
    }

    #[inline]
    fn value(&self, state: &u64) -> u64 {
        *state
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut u64, other: &u64) -> Result<()> {
        *state += other;
        Ok(())
    }

    const FORM: Option<Form> = Some(Form::Value);

    fn state_of(value: u64, _: Option<EventTime>) -> Option<u64> {
        Some(value)
    }
}

/// A number that can be summed up; see [`KeyedStream::sum`](crate::KeyedStream::sum).
pub trait Number: Copy + Default + 'static {
    /// The sum of both; `None` if it is out of range.
    fn plus(self, other: Self) -> Option<Self>;
}

macro_rules! integers {
    ($($integer:ty)*) => {
        $(impl Number for $integer {
            #[inline]
            fn plus(self, other: Self) -> Option<Self> {
                self.checked_add(other)
            }
        })*
    };
}

integers!(i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize);

macro_rules! floats {
    ($($float:ty)*) => {
        $(impl Number for $float {
            #[inline]
            fn plus(self, other: Self) -> Option<Self> {
                Some(self + other)
            }
        })*
    };
}

floats!(f32 f64);

/// Sums numbers up.
pub(crate) struct Sum<N>(pub(crate) PhantomData<fn(N)>);

impl<N: Number + TableState> Aggregate for Sum<N> {
    type Input = N;
    type State = N;
    type Value = N;

    #[inline]
    fn zero(&self) -> N {
        N::default()
    }

    #[inline]
    fn add(&self, state: &mut N, input: N, _: Option<EventTime>) -> Result<()> {
        *state = state.plus(input).ok_or_else(overflow::<N>)?;
        Ok(())
    }

    #[inline]
    fn value(&self, state: &N) -> N {
        *state
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut N, other: &N) -> Result<()> {
        self.add(state, *other, None)
    }

    const FORM: Option<Form> = Some(Form::Value);

    fn state_of(value: N, _: Option<EventTime>) -> Option<N> {
        Some(value)
    }
}

#[cold]
fn overflow<N>() -> Error {
    let number = std::any::type_name::<N>();
    Error::new(ErrorKind::Malformed, format!("the sum of a key is out of the range of {number}: use a larger type"))
}

/// The mean of numbers: their sum and count.
pub(crate) struct Mean;

impl Aggregate for Mean {
    type Input = f64;
    type State = (f64, u64);
    type Value = f64;

    fn zero(&self) -> (f64, u64) {
        (0.0, 0)
    }

    #[inline]
    fn add(&self, state: &mut (f64, u64), input: f64, _: Option<EventTime>) -> Result<()> {
        *state = (state.0 + input, state.1 + 1);
        Ok(())
    }

    fn value(&self, (sum, count): &(f64, u64)) -> f64 {
        sum / *count as f64
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut (f64, u64), other: &(f64, u64)) -> Result<()> {
        *state = (state.0 + other.0, state.1 + other.1);
        Ok(())
    }
}

/// Combines records, two at a time, from the first on.
pub(crate) struct Reduce<T, F>(pub(crate) F, pub(crate) PhantomData<fn(T)>);

impl<T: TableState + Clone, F: Fn(T, T) -> T + 'static> Aggregate for Reduce<T, F> {
    type Input = T;
    /// Empty only before the first record.
    type State = Option<T>;
    type Value = T;

    #[inline]
    fn zero(&self) -> Option<T> {
        None
    }

    #[inline]
    fn add(&self, state: &mut Option<T>, input: T, _: Option<EventTime>) -> Result<()> {
        *state = Some(match state.take() {
            None => input,
            Some(before) => (self.0)(before, input),
        });
        Ok(())
    }

    #[inline]
    fn value(&self, state: &Option<T>) -> T {
        state.clone().expect("a key has a first record")
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut Option<T>, other: &Option<T>) -> Result<()> {
        other.iter().try_for_each(|other| self.add(state, other.clone(), None))
    }

    const FORM: Option<Form> = Some(Form::Option);

    fn state_of(value: T, _: Option<EventTime>) -> Option<Option<T>> {
        Some(Some(value))
    }
}

/// Adds records to a value of the user's.
pub(crate) struct Fold<Z, F, A, T> {
    pub(crate) zero: Z,
    pub(crate) add: F,
    pub(crate) merge: Option<Merge<A>>,
    pub(crate) record: PhantomData<fn(T)>,
}

impl<Z, F, A, T> Fold<Z, F, A, T> {
    pub(crate) fn new(zero: Z, add: F) -> Fold<Z, F, A, T> {
        Fold { zero, add, merge: None, record: PhantomData }
    }
}

impl<A: TableState + Clone, T: 'static, Z: Fn() -> A + 'static, F: Fn(&mut A, T) + 'static> Aggregate
    for Fold<Z, F, A, T>
{
    type Input = T;
    type State = A;
    type Value = A;

    #[inline]
    fn zero(&self) -> A {
        (self.zero)()
    }

    #[inline]
    fn add(&self, state: &mut A, input: T, _: Option<EventTime>) -> Result<()> {
        (self.add)(state, input);
        Ok(())
    }

    #[inline]
    fn value(&self, state: &A) -> A {
        state.clone()
    }

    fn merges(&self) -> bool {
        self.merge.is_some()
    }

    fn merge(&self, state: &mut A, other: &A) -> Result<()> {
        self.merge.iter().for_each(|merge| merge(state, other));
        Ok(())
    }

    fn merge_by(&mut self, merge: Merge<A>) -> bool {
        self.merge = Some(merge);
        true
    }

    const FORM: Option<Form> = Some(Form::Value);

    fn state_of(value: A, _: Option<EventTime>) -> Option<A> {
        Some(value)
    }
}

/// The record with the largest event time.
pub(crate) struct Latest<T>(pub(crate) PhantomData<fn(T)>);

impl<T: TableState + Clone> Aggregate for Latest<T> {
    type Input = T;
    type State = Option<(Option<EventTime>, T)>;
    type Value = T;

    fn zero(&self) -> Self::State {
        None
    }

    #[inline]
    fn add(&self, state: &mut Self::State, input: T, time: Option<EventTime>) -> Result<()> {
        if state.as_ref().is_none_or(|(before, _)| *before <= time) {
            *state = Some((time, input));
        }
        Ok(())
    }

    fn value(&self, state: &Self::State) -> T {
        state.as_ref().map(|(_, latest)| latest.clone()).expect("a key has a first record")
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut Self::State, other: &Self::State) -> Result<()> {
        let Some((time, record)) = other else { return Ok(()) };
        self.add(state, record.clone(), *time)
    }

    const FORM: Option<Form> = Some(Form::Timed);

    fn state_of(value: T, time: Option<EventTime>) -> Option<Self::State> {
        Some(Some((time, value)))
    }
}

/// The first records by event time, at most so many.
pub(crate) struct Collect<T> {
    pub(crate) at_most: usize,
    pub(crate) record: PhantomData<fn(T)>,
}

impl<T: TableState + Clone> Aggregate for Collect<T> {
    type Input = T;
    type State = Vec<(Option<EventTime>, T)>;
    type Value = Vec<T>;

    fn zero(&self) -> Self::State {
        Vec::new()
    }

    fn add(&self, state: &mut Self::State, input: T, time: Option<EventTime>) -> Result<()> {
        // Behind those of the same time.
        let place = state.iter().rposition(|(other, _)| *other <= time).map_or(0, |before| before + 1);
        if place < self.at_most {
            state.truncate(self.at_most - 1);
            state.insert(place, (time, input));
        }
        Ok(())
    }

    fn value(&self, state: &Self::State) -> Vec<T> {
        state.iter().map(|(_, record)| record.clone()).collect()
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut Self::State, other: &Self::State) -> Result<()> {
        other.iter().try_for_each(|(time, record)| self.add(state, record.clone(), *time))
    }
}

/// The `k` largest records by a comparison, largest first.
pub(crate) struct TopK<T, F> {
    pub(crate) k: usize,
    pub(crate) compare: F,
    pub(crate) record: PhantomData<fn(T)>,
}

impl<T: TableState + Clone, F: Fn(&T, &T) -> Ordering + 'static> Aggregate for TopK<T, F> {
    type Input = T;
    type State = Vec<T>;
    type Value = Vec<T>;

    fn zero(&self) -> Vec<T> {
        Vec::new()
    }

    fn add(&self, state: &mut Vec<T>, input: T, _: Option<EventTime>) -> Result<()> {
        // Behind its equals: the first of them stays.
        let place = state.partition_point(|other| (self.compare)(other, &input) != Ordering::Less);
        if place < self.k {
            state.truncate(self.k - 1);
            state.insert(place, input);
        }
        Ok(())
    }

    fn value(&self, state: &Vec<T>) -> Vec<T> {
        state.clone()
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut Vec<T>, other: &Vec<T>) -> Result<()> {
        other.iter().try_for_each(|other| self.add(state, other.clone(), None))
    }

    const FORM: Option<Form> = Some(Form::Value);

    fn state_of(value: Vec<T>, _: Option<EventTime>) -> Option<Vec<T>> {
        Some(value)
    }
}
