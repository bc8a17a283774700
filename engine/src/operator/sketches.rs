//! Aggregates that estimate: how many different values there are, and their quantiles. Their state
//! is a sketch, which has a limit in size, and neither its result nor the result of a merge depends
//! on the order of the values.

use std::fmt;

use datasketches::hll::{HllSketch, HllType, HllUnion};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sketches_ddsketch::{Config, DDSketch};

use crate::state::origin::Same;
use crate::words::{EventTime, Result};

use super::aggregate::Aggregate;

/// Estimates how many different values there are, of their
/// [stable hashes](crate::words::stable_hash).
pub(crate) struct CountDistinct;

impl Aggregate for CountDistinct {
    type Input = u64;
    type State = Distinct;
    type Value = u64;

    fn zero(&self) -> Distinct {
        Distinct::new()
    }

    #[inline]
    fn add(&self, state: &mut Distinct, hash: u64, _: Option<EventTime>) -> Result<()> {
        state.add(hash);
        Ok(())
    }

    fn value(&self, state: &Distinct) -> u64 {
        state.estimate()
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut Distinct, other: &Distinct) -> Result<()> {
        state.merge(other);
        Ok(())
    }

    // A sketch also has an estimate that depends on the order, and lists its first values in it.
    const SAME: Option<Same<Distinct>> = Some(|state| state.estimate().to_le_bytes().into());
}

/// The different values among those that were added: a HyperLogLog sketch.
#[derive(Clone, Debug)]
pub(crate) struct Distinct(HllSketch);

impl Distinct {
    /// There are 4,096 registers of a byte, as in Spark's `hll_sketch_agg`. The standard error is
    /// 1.04 / √4096.
    const LOG2_REGISTERS: u8 = 12;

    pub(crate) fn new() -> Distinct {
        Distinct(HllSketch::new(Self::LOG2_REGISTERS, HllType::Hll8).expect("the sketch supports 2^4 to 2^21"))
    }

    #[inline]
    pub(crate) fn add(&mut self, hash: u64) {
        self.0.update(hash);
    }

    /// Adds all values of the other.
    pub(crate) fn merge(&mut self, other: &Distinct) {
        let mut union = HllUnion::new(Self::LOG2_REGISTERS).expect("the sketch supports 2^4 to 2^21");
        union.update(&self.0);
        union.update(&other.0);
        self.0 = union.to_sketch(HllType::Hll8);
    }

    /// Not the sketch's more exact estimate: that one depends on the order of the values, so the
    /// results would not be the same under each trigger.
    pub(crate) fn estimate(&self) -> u64 {
        self.0.composite_estimate().round() as u64
    }
}

/// As the bytes that all implementations of Apache DataSketches share.
impl Serialize for Distinct {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.serialize())
    }
}

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Distinct, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Distinct;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a HyperLogLog sketch of 2^{} registers", Distinct::LOG2_REGISTERS)
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Distinct, E> {
                let sketch = HllSketch::deserialize(bytes).map_err(E::custom)?;
                if (sketch.lg_config_k(), sketch.target_type()) != (Distinct::LOG2_REGISTERS, HllType::Hll8) {
                    return Err(E::custom("the sketch has other parameters"));
                }
                Ok(Distinct(sketch))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// Sketches the distribution of numbers.
pub(crate) struct Distribution;

impl Aggregate for Distribution {
    type Input = f64;
    type State = Quantiles;
    type Value = Quantiles;

    fn zero(&self) -> Quantiles {
        Quantiles::new()
    }

    #[inline]
    fn add(&self, state: &mut Quantiles, number: f64, _: Option<EventTime>) -> Result<()> {
        state.add(number);
        Ok(())
    }

    fn value(&self, state: &Quantiles) -> Quantiles {
        state.clone()
    }

    fn merges(&self) -> bool {
        true
    }

    fn merge(&self, state: &mut Quantiles, other: &Quantiles) -> Result<()> {
        state.merge(other);
        Ok(())
    }

    // A sketch also has the sum of its numbers, which is rounded in their order.
    const SAME: Option<Same<Quantiles>> = Some(|state| {
        let percentiles = (0..=100).filter_map(|percent| state.at(f64::from(percent) / 100.0));
        percentiles.flat_map(f64::to_le_bytes).chain(state.count().to_le_bytes()).collect()
    });
}

/// A sketch of numbers that answers any quantile within 1 %; see
/// [`KeyedStream::approx_quantiles`](crate::KeyedStream::approx_quantiles).
///
/// It is a [DDSketch](https://arxiv.org/abs/1908.10693): it counts numbers in buckets, each of
/// which reaches 2 % further from zero than the one before. A sketch takes 1 KB to 33 KB, depending
/// on how far its numbers are apart. The result does not depend on the order of the numbers, nor on
/// how they were spread over sketches that were [merged](Quantiles::merge).
///
/// The 1 % hold for numbers that are at most 17 orders of magnitude closer to zero than the largest
/// number of the same sign. Those that are closer to zero are only counted, and count as if they
/// were that close.
///
/// ```
/// use millstream::Quantiles;
///
/// let mut latencies = Quantiles::new();
/// (1..=1_000).for_each(|millis| latencies.add(f64::from(millis)));
/// assert_eq!(latencies.count(), 1_000);
/// let p99 = latencies.at(0.99).expect("it has numbers");
/// assert!((980.0..=1_000.0).contains(&p99));
/// assert_eq!(latencies.at(1.0), Some(1_000.0));
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct Quantiles(DDSketch);

impl Quantiles {
    /// Half of the width of a bucket, relative to its middle.
    const ERROR: f64 = 0.01;
    /// As in all implementations by Datadog: when there are more, those next to zero become one.
    const BUCKETS_MAX: u32 = 2_048;

    /// A sketch without numbers.
    pub fn new() -> Quantiles {
        Quantiles(DDSketch::new(Config::new(Self::ERROR, Self::BUCKETS_MAX, f64::MIN_POSITIVE)))
    }

    /// Adds a number. NaN and the infinities have no place between the others, and are left out.
    #[inline]
    pub fn add(&mut self, number: f64) {
        if number.is_finite() {
            self.0.add(number);
        }
    }

    /// Adds all numbers of the other sketch.
    ///
    /// ```
    /// use millstream::Quantiles;
    ///
    /// let (mut all, mut other) = (Quantiles::new(), Quantiles::new());
    /// all.add(1.0);
    /// other.add(3.0);
    /// all.merge(&other);
    /// assert_eq!((all.count(), all.at(1.0)), (2, Some(3.0)));
    /// ```
    pub fn merge(&mut self, other: &Quantiles) {
        self.0.merge(&other.0).expect("all sketches have the same parameters");
    }

    /// How many numbers were added.
    pub fn count(&self) -> u64 {
        self.0.count() as u64
    }

    /// The number below which the part `quantile` of all numbers lies: 0.5 for the median, 0 for
    /// the exact minimum, 1 for the exact maximum. In between, it is within 1 % of the number at
    /// `quantile * (count - 1)`, rounded down, in ascending order from 0. `None` if there are no
    /// numbers.
    ///
    /// # Panics
    /// When `quantile` is not from 0 to 1.
    pub fn at(&self, quantile: f64) -> Option<f64> {
        let estimate = self.0.quantile(quantile).expect("a quantile is from 0 to 1");
        // The middle of the outermost buckets may be outside of what was added.
        Some(estimate?.clamp(self.0.min()?, self.0.max()?))
    }
}

impl Default for Quantiles {
    fn default() -> Quantiles {
        Quantiles::new()
    }
}

impl fmt::Debug for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut quantiles = f.debug_struct("Quantiles");
        quantiles.field("count", &self.count());
        for (name, quantile) in [("min", 0.0), ("median", 0.5), ("p99", 0.99), ("max", 1.0)] {
            if let Some(number) = self.at(quantile) {
                quantiles.field(name, &number);
            }
        }
        quantiles.finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::words::stable_hash;

    use super::*;

    /// The seed is printed, so that a failure can be repeated.
    #[expect(clippy::print_stdout, reason = "shown only when the test fails")]
    fn random() -> fastrand::Rng {
        let seed = std::env::var("MILLSTREAM_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("MILLSTREAM_SEED={seed}");
        fastrand::Rng::with_seed(seed)
    }

    /// What the sketch becomes in a checkpoint and in the next process.
    fn restored<T: Serialize + serde::de::DeserializeOwned>(sketch: &T) -> T {
        postcard::from_bytes(&postcard::to_stdvec(sketch).unwrap()).unwrap()
    }

    const SIZES: [usize; 8] = [1, 2, 10, 100, 1_000, 10_000, 100_000, 1_000_000];

    fn distinct<'v>(values: impl IntoIterator<Item = &'v u64>) -> Distinct {
        let mut sketch = Distinct::new();
        values.into_iter().for_each(|value| sketch.add(stable_hash(value)));
        sketch
    }

    /// The standard error that the documentation states.
    const STANDARD_ERROR: f64 = 0.0163;

    #[track_caller]
    fn check_estimate(sketch: &Distinct, exact: usize) {
        let error = (sketch.estimate() as f64 - exact as f64).abs() / exact as f64;
        // One in two million is further away.
        assert!(error <= 5.0 * STANDARD_ERROR, "{} instead of {exact}", sketch.estimate());
        // One pair in 67 million looks alike.
        if exact <= 10 {
            assert_eq!(sketch.estimate(), exact as u64, "small counts are exact");
        }
    }

    #[test]
    fn different_values_are_counted_within_the_error() {
        let mut random = random();
        for size in SIZES {
            let (first, step) = (random.u64(..), random.u64(..) | 1);
            let values: Vec<u64> = (0..size as u64).map(|n| first.wrapping_add(n.wrapping_mul(step))).collect();
            let mut all = distinct(&values);
            check_estimate(&all, size);
            let (left, right) = values.split_at(random.usize(0..=size));
            let mut merged = distinct(left);
            merged.merge(&distinct(right));
            assert_eq!(merged.estimate(), all.estimate(), "{size}: a merge is the sketch of all");
            merged.merge(&all);
            assert_eq!(merged.estimate(), all.estimate(), "{size}: nothing is counted twice");
            let mut restored = restored(&all);
            for value in [first, random.u64(..)] {
                all.add(stable_hash(&value));
                restored.add(stable_hash(&value));
                assert_eq!(restored.estimate(), all.estimate(), "{size}");
            }
            let mut shuffled = values.clone();
            random.shuffle(&mut shuffled);
            assert_eq!(distinct(&shuffled).estimate(), distinct(&values).estimate(), "{size}: order does not matter");
        }
    }

    #[test]
    fn the_standard_error_is_as_stated() {
        let (mut random, rounds, size) = (random(), 300, 10_000);
        let errors: f64 = (0..rounds)
            .map(|_| {
                let values: Vec<u64> = (0..size).map(|_| random.u64(..)).collect();
                (distinct(&values).estimate() as f64 / f64::from(size) - 1.0).powi(2)
            })
            .sum();
        let error = (errors / f64::from(rounds)).sqrt();
        // Of so many rounds this is itself known within 4 %, in two cases of three.
        assert!(error <= 1.2 * STANDARD_ERROR, "the standard error is {error}");
    }

    #[test]
    fn what_is_not_such_a_sketch_is_refused() {
        let other = HllSketch::new(10, HllType::Hll8).unwrap().serialize();
        for bytes in [&other[..], b"", b"no sketch"] {
            let bytes = postcard::to_stdvec(bytes).unwrap();
            assert!(postcard::from_bytes::<Distinct>(&bytes).is_err(), "{bytes:?}");
        }
    }

    fn quantiles<'n>(numbers: impl IntoIterator<Item = &'n f64>) -> Quantiles {
        let mut sketch = Quantiles::new();
        numbers.into_iter().for_each(|number| sketch.add(*number));
        sketch
    }

    /// Checks quantiles against the sorted numbers.
    #[track_caller]
    fn check_quantiles(sketch: &Quantiles, sorted: &[f64]) {
        assert_eq!(sketch.count(), sorted.len() as u64);
        for quantile in [0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 1.0] {
            let exact = sorted[(quantile * (sorted.len() as f64 - 1.0)) as usize];
            let estimate = sketch.at(quantile).unwrap();
            let error = (estimate - exact).abs();
            assert!(error <= 0.010_000_001 * exact.abs(), "{estimate} instead of {exact} at {quantile}");
        }
    }

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut random = random();
        type Draw = fn(&mut fastrand::Rng) -> f64;
        let distributions: [Draw; 6] = [
            fastrand::Rng::f64,
            |random| (random.f64() * 35.0 - 15.0).exp(),
            |random| (random.f64() - 0.5) * 1e9,
            |random| f64::from(random.i8(-2..=2)),
            |random| 1e-3 / (1.0 - random.f64()),
            |_| 1e300,
        ];
        for draw in distributions {
            for size in SIZES {
                let numbers: Vec<f64> = (0..size).map(|_| draw(&mut random)).collect();
                let mut sorted = numbers.clone();
                sorted.sort_unstable_by(f64::total_cmp);
                let all = quantiles(&numbers);
                check_quantiles(&all, &sorted);
                check_quantiles(&restored(&all), &sorted);
                let (left, right) = numbers.split_at(random.usize(0..=size));
                let mut merged = quantiles(left);
                merged.merge(&restored(&quantiles(right)));
                check_quantiles(&merged, &sorted);
                let in_order = quantiles(&sorted);
                for quantile in [0.1, 0.5, 0.99] {
                    assert_eq!(merged.at(quantile), all.at(quantile), "a merge is the sketch of all");
                    assert_eq!(in_order.at(quantile), all.at(quantile), "order does not matter");
                }
            }
        }
    }

    /// Numbers further apart than buckets reach: the large ones keep their error.
    #[test]
    fn the_largest_numbers_keep_their_error_whatever_the_smallest_are() {
        let mut random = random();
        for _ in 0..100 {
            let exponents = [-300.0, -20.0, -5.0, 0.0, 5.0, 20.0, 300.0];
            let numbers: Vec<f64> = (0..1_000)
                .map(|_| 10_f64.powf(random.choice(exponents).unwrap_or(0.0)) * (1.0 + random.f64()))
                .collect();
            let mut sorted = numbers.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            let (left, right) = numbers.split_at(random.usize(0..=1_000));
            let mut merged = quantiles(left);
            merged.merge(&quantiles(right));
            for sketch in [quantiles(&numbers), quantiles(&sorted), merged, quantiles(sorted.iter().rev())] {
                assert_eq!(sketch.count(), 1_000);
                let (estimate, exact) = (sketch.at(0.95).unwrap(), sorted[949]);
                assert!((estimate - exact).abs() <= 0.010_000_001 * exact, "{estimate:e} instead of {exact:e}");
                assert!(sketch.at(0.1).unwrap() <= sorted[999] * 1e-17, "{sketch:?}");
            }
        }
    }

    #[test]
    fn what_has_no_place_between_numbers_is_left_out() {
        let sketch = quantiles(&[f64::NAN, f64::INFINITY, 1.0, f64::NEG_INFINITY]);
        assert_eq!((sketch.count(), sketch.at(0.0), sketch.at(1.0)), (1, Some(1.0), Some(1.0)));
        let none = quantiles(&[f64::NAN]);
        assert_eq!((none.count(), none.at(0.5)), (0, None));
        assert_eq!(format!("{none:?}"), "Quantiles { count: 0 }");
        let mut merged = quantiles(&[2.0]);
        merged.merge(&none);
        assert_eq!((merged.count(), merged.at(0.0)), (1, Some(2.0)));
        let extremes = quantiles(&[f64::MAX, f64::MIN, f64::MIN_POSITIVE, 0.0, -0.0, f64::from_bits(1)]);
        assert_eq!((extremes.count(), extremes.at(0.0), extremes.at(1.0)), (6, Some(f64::MIN), Some(f64::MAX)));
    }
}
