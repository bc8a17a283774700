//! What a type looks like to serde: its fields and variants, with their names and types. State is
//! kept as postcard, which does not describe itself, so this stands in the manifest: to refuse
//! state of another type, and to show it.

use std::any::type_name;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_reflection::{Format, Registry};

use super::shape_text;
use super::trace::shape;

/// The types of an operator's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Types {
    pub(crate) key: Described,
    pub(crate) state: Described,
    /// What the user says of changes of meaning that types do not show.
    pub(crate) version: u32,
}

impl Types {
    pub(crate) fn of<K: DeserializeOwned, S: DeserializeOwned>(version: u32) -> Types {
        Types { key: Described::of::<K>(), state: Described::of::<S>(), version }
    }

    /// Whether bytes of the one are bytes of the other, with the same meaning.
    pub(crate) fn are(&self, other: &Types) -> bool {
        self.key.is(&other.key) && self.state.is(&other.state) && self.version == other.version
    }
}

impl fmt::Display for Types {
    /// Their names. The alternate form says what they consist of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.state, f)?;
        f.write_str(" by ")?;
        fmt::Display::fmt(&self.key, f)?;
        write!(f, ", version {}", self.version)
    }
}

/// The types of an operator's state, and those of earlier versions of the program from which it can
/// be converted. They are looked at only where checkpoints are kept.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    pub(crate) now: Look,
    pub(crate) older: Vec<Look>,
}

/// Types that nothing has looked at yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    version: u32,
    types: fn(u32) -> Types,
}

impl Look {
    pub(crate) fn at<K: DeserializeOwned, S: DeserializeOwned>(version: u32) -> Look {
        Look { version, types: Types::of::<K, S> }
    }

    pub(crate) fn types(self) -> Types {
        (self.types)(self.version)
    }
}

/// A type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Described {
    /// As the compiler calls it. It may change with a release of the compiler.
    pub(crate) name: String,
    /// Its [`Shape`], as postcard: none when its `Deserialize` accepts only some values, which
    /// cannot be guessed.
    shape: Option<Vec<u8>>,
}

/// The form of a value, and that of each named type in it.
pub(crate) type Shape = (Format, Registry);

impl Described {
    pub(crate) fn of<T: DeserializeOwned>() -> Described {
        // The user's `Deserialize` gets values that it may never have seen.
        let shape = catch_unwind(AssertUnwindSafe(shape::<T>)).ok().flatten();
        let shape = shape.and_then(|shape| postcard::to_stdvec(&shape).ok());
        Described { name: type_name::<T>().to_owned(), shape }
    }

    /// Its shape, if it is known.
    pub(crate) fn shape(&self) -> Option<Shape> {
        postcard::from_bytes(self.shape.as_ref()?).ok()
    }

    /// Whether bytes of the one are bytes of the other.
    pub(crate) fn is(&self, other: &Described) -> bool {
        match (&self.shape, &other.shape) {
            (Some(own), Some(other)) => own == other,
            _ => self.name == other.name,
        }
    }
}

impl fmt::Display for Described {
    /// Its name. The alternate form says what it consists of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let consists = self.shape().filter(|_| f.alternate()).map(|shape| shape_text::text(&shape));
        match consists.filter(|consists| *consists != self.name) {
            Some(consists) => write!(f, " ({consists})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU8;

    use super::*;

    mod before {
        #[derive(serde::Deserialize)]
        #[allow(dead_code)]
        pub(super) struct Order {
            pub(super) customer: String,
            pub(super) state: State,
        }

        #[derive(serde::Deserialize)]
        #[allow(dead_code)]
        pub(super) enum State {
            New,
            Paid { cents: u64 },
            Sent(Option<u32>),
        }
    }

    mod now {
        #[derive(serde::Deserialize)]
        #[allow(dead_code)]
        pub(super) struct Order {
            pub(super) customer: String,
            pub(super) state: super::before::State,
        }

        #[derive(serde::Deserialize)]
        #[allow(dead_code)]
        pub(super) struct Reordered {
            pub(super) state: super::before::State,
            pub(super) customer: String,
        }
    }

    #[test]
    fn a_type_is_known_by_its_fields_and_variants() {
        let before = Described::of::<before::Order>();
        let (format, registry) = before.shape().expect("it can be traced");
        assert_eq!(format, Format::TypeName("Order".to_owned()));
        assert_eq!(registry.len(), 2);
        // It was moved to another module.
        assert!(before.is(&Described::of::<now::Order>()));
        assert!(!before.is(&Described::of::<now::Reordered>()));
        assert!(!Types::of::<u64, u64>(0).are(&Types::of::<u64, i64>(0)));
        assert!(!Types::of::<u64, u64>(0).are(&Types::of::<u64, u64>(1)));
        assert!(Types::of::<BTreeMap<u8, (u8, String)>, ()>(0).are(&Types::of::<BTreeMap<u8, (u8, String)>, ()>(0)));
    }

    #[test]
    fn a_type_is_shown_with_its_fields_and_variants() {
        let order = format!("{:#}", Described::of::<before::Order>());
        let (_, consists) = order.split_once(" (").unwrap();
        assert_eq!(
            consists,
            "Order where Order is { customer: str, state: State }; State is New, Paid { cents: u64 }, Sent(Option<u32>))"
        );
        assert_eq!(
            format!("{:#}", Described::of::<BTreeMap<u8, (Vec<bool>, [f32; 2])>>()).rsplit_once(" (map").unwrap().1,
            " of u8 to ([bool], [f32; 2]))"
        );
    }

    #[test]
    fn a_type_that_refuses_values_is_known_by_its_name() {
        struct Panics;
        impl<'de> Deserialize<'de> for Panics {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Panics, D::Error> {
                panic!("it was not meant to be looked at")
            }
        }
        let number = Described::of::<NonZeroU8>();
        assert_eq!(number.shape(), None);
        assert!(number.is(&Described::of::<NonZeroU8>()) && !number.is(&Described::of::<u8>()));
        assert_eq!(Described::of::<Panics>().shape(), None);
    }
}
