//! State as JSON: as `serde_json` writes it where that can, and without trust in any byte.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::state::describe::Described;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Payment {
    Open,
    Paid { cents: u64, by: Option<String> },
    Refunded(i32),
    Split(u8, Vec<Payment>),
    Nothing {},
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Color {
    Red,
    Green,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Customer {
    name: String,
    id: Id,
    payments: Vec<Payment>,
    place: (f64, f32),
    by_color: BTreeMap<Color, u16>,
    by_id: BTreeMap<Id, [i16; 3]>,
    marker: Marker,
    pair: Pair,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Id(u64);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Marker;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair(bool, char);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tree {
    value: i64,
    children: Vec<Tree>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct List(u8, Option<Box<List>>);

fn shape_of<T: DeserializeOwned>() -> Shape {
    Described::of::<T>().shape().expect("it can be traced")
}

fn shown<T: Serialize + DeserializeOwned>(value: &T) -> Result<Value, postcard::Error> {
    value_of(&shape_of::<T>(), &postcard::to_stdvec(value).unwrap())
}

/// It is shown as `serde_json` writes it.
#[track_caller]
fn check<T: Serialize + DeserializeOwned>(value: &T) {
    let expected: Value = serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap();
    assert_eq!(shown(value), Ok(expected));
}

/// Without what JSON cannot hold.
fn customer() -> Customer {
    Customer {
        name: "Ana \"the first\"\n".to_owned(),
        id: Id(u64::MAX),
        payments: vec![
            Payment::Open,
            Payment::Paid { cents: 1 << 60, by: Some("card".to_owned()) },
            Payment::Paid { cents: 0, by: None },
            Payment::Split(7, vec![Payment::Refunded(-5), Payment::Split(0, vec![]), Payment::Nothing {}]),
        ],
        place: (-0.1, 0.1),
        by_color: [(Color::Green, 3), (Color::Red, 1)].into(),
        by_id: [(Id(12), [1, -2, 300])].into(),
        marker: Marker,
        pair: Pair(true, 'ß'),
    }
}

#[test]
fn state_is_shown_as_serde_json_writes_it() {
    check(&customer());
    check(&Some(customer()));
    check(&None::<u8>);
    check(&());
    check(&((), (1_u8,), (2_u8, "two".to_owned()), [3.5_f64; 4]));
    check(&(i8::MIN, i16::MIN, i32::MIN, i64::MIN));
    check(&(u8::MAX, u16::MAX, u32::MAX, u64::MAX));
    check(&(-7_i128, 7_u128, usize::MAX, isize::MIN));
    check(&(f64::MIN_POSITIVE, f64::MAX, -0.0_f64, 0.1_f32, f32::MAX, 1e-40_f32));
    check(&BTreeSet::from([Color::Red]));
    check(&BTreeMap::from([(true, 'x')]));
    check(&BTreeMap::from([(-1_i64, BTreeMap::from([('k', "v".to_owned())]))]));
    check(&Duration::from_millis(1500));
    check(&vec![(), ()]);
    check(&Tree {
        value: 1,
        children: vec![Tree { value: -2, children: vec![] }, Tree { value: 3, children: vec![] }],
    });
    check(&List(1, Some(Box::new(List(2, None)))));
    // A format that is read by programs writes it so.
    assert_eq!(shown(&IpAddr::V4(Ipv4Addr::LOCALHOST)), Ok(json!({ "V4": [127, 0, 0, 1] })));
}

#[test]
fn what_json_cannot_hold_is_text() {
    assert_eq!(shown(&i128::MIN), Ok(json!(i128::MIN.to_string())));
    assert_eq!(shown(&u128::MAX), Ok(json!(u128::MAX.to_string())));
    assert_eq!(shown(&(i128::from(i64::MIN), i128::from(u64::MAX))), Ok(json!([i64::MIN, u64::MAX])));
    assert_eq!(shown(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]), Ok(json!(["NaN", "inf", "-inf"])));
    assert_eq!(shown(&[f32::NAN, f32::NEG_INFINITY]), Ok(json!(["NaN", "-inf"])));
    let (format, registry) = (Format::Bytes, Registry::new());
    assert_eq!(value_of(&(format, registry), &[3, 0, 10, 255]), Ok(json!("000aff")));
}

#[test]
fn a_map_is_an_object_where_its_keys_are_text() {
    let by_pair = BTreeMap::from([((1_u8, "a".to_owned()), 2_u8), ((3, "b".to_owned()), 4)]);
    assert_eq!(shown(&by_pair), Ok(json!([[[1, "a"], 2], [[3, "b"], 4]])));
    assert_eq!(shown(&BTreeMap::from([(Some(1_u8), ())])), Ok(json!([[1, null]])));
    assert_eq!(shown(&BTreeMap::from([(Payment::Open, 1_u8)])), Ok(json!([["Open", 1]])));
    assert_eq!(shown(&BTreeMap::from([(u128::MAX, 1_u8)])), Ok(json!({ u128::MAX.to_string(): 1 })));
    assert_eq!(shown(&BTreeMap::<(u8, u8), u8>::new()), Ok(json!([])));
    assert_eq!(shown(&BTreeMap::<u8, u8>::new()), Ok(json!({})));
}

#[test]
fn no_length_is_believed() {
    let huge = postcard::to_stdvec(&u64::MAX).unwrap();
    for shape in [
        shape_of::<Vec<()>>(),
        shape_of::<Vec<Marker>>(),
        shape_of::<Vec<u64>>(),
        shape_of::<Vec<Vec<u8>>>(),
        shape_of::<String>(),
        shape_of::<BTreeMap<u8, u8>>(),
        shape_of::<BTreeMap<(), ()>>(),
        (Format::Bytes, Registry::new()),
        (Format::Seq(Box::new(Format::Tuple(Vec::new()))), Registry::new()),
        (Format::Seq(Box::new(Format::TypeName("Empty".to_owned()))), empty_struct()),
    ] {
        value_of(&shape, &huge).expect_err("there are no bytes for so much");
    }
}

fn empty_struct() -> Registry {
    [("Empty".to_owned(), ContainerFormat::Struct(Vec::new()))].into()
}

#[test]
fn a_value_that_is_nested_too_deeply_is_an_error() {
    check(&(0..100).fold(List(0, None), |list, depth| List(depth, Some(Box::new(list)))));
    let bytes = [&[0, 1].repeat(100_000)[..], &[0, 0]].concat();
    value_of(&shape_of::<List>(), &bytes).expect_err("it is too deep");
    // A type that contains itself at once has no value.
    let endless = ContainerFormat::NewTypeStruct(Box::new(Format::TypeName("Endless".to_owned())));
    let endless: Shape = (Format::TypeName("Endless".to_owned()), [("Endless".to_owned(), endless)].into());
    value_of(&endless, &[]).expect_err("it has no end");
    let (format, registry) = endless;
    let map = (Format::Map { key: Box::new(format), value: Box::new(Format::U8) }, registry);
    assert_eq!(value_of(&map, &[0]), Ok(json!([])));
}

#[test]
fn damaged_bytes_are_an_error_or_a_value() {
    let (shape, bytes) = (shape_of::<Customer>(), postcard::to_stdvec(&customer()).unwrap());
    for at in 0..bytes.len() {
        value_of(&shape, &bytes[..at]).expect_err("it is cut off");
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let _ = value_of(&shape, &changed);
        }
    }
    let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    value_of(&shape, &longer).expect_err("a byte is left");
    value_of(&shape_of::<Payment>(), &[9]).expect_err("there is no such variant");
    value_of(&(Format::TypeName("Gone".to_owned()), Registry::new()), &[0]).expect_err("it is not described");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn any_state_is_shown_as_serde_json_writes_it(
        pair in any::<(i64, Option<u32>)>(),
        texts in vec(any::<(String, char)>(), 0..5),
        by_number in btree_map(any::<u64>(), any::<(bool, i16)>(), 0..5),
        floats in vec((-1e300_f64..1e300, -1e30_f32..1e30), 0..5),
    ) {
        let state = (pair, texts, by_number, floats);
        let expected: Value = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        prop_assert_eq!(shown(&state), Ok(expected));
    }

    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in vec(any::<u8>(), 0..80)) {
        if let Ok(value) = value_of(&shape_of::<Customer>(), &bytes) {
            prop_assert!(value.is_object());
        }
        let _ = value_of(&shape_of::<Tree>(), &bytes);
        let _ = value_of(&shape_of::<Vec<(Payment, u128)>>(), &bytes);
    }
}
