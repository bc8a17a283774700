//! CSV, typed by serde: a row is a value. In a topic, a message is one row without a header. In a
//! file, the first row names the columns unless [`without_header`](Csv::without_header) is set.

use std::fmt;
use std::marker::PhantomData;

use csv::{ByteRecord, QuoteStyle, WriterBuilder};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::strict::{self, Rules};
use super::{BYTE_ORDER_MARK, Cause, Columns, Decode, Encode, Framing, Header, Payload, memory, tombstone};

/// A value as a row of CSV (RFC 4180): fields are separated by commas; a field that contains
/// commas, quotes or line endings is quoted.
///
/// With a header, columns are found by their names, and columns that `T` does not have are ignored;
/// a row with more or fewer fields than the header is malformed. Without a header, columns are in
/// the order of `T`'s fields: a row with too few fields is malformed, and surplus fields are
/// ignored. Values are flat: a struct, a tuple or a sequence of numbers, text, `bool`s and
/// `Option`s. A byte order mark before a row is not part of it.
///
/// An empty field, quoted or not, is read as `None` for an `Option`, and as an empty string
/// otherwise. Both are written as an empty field. So `Some` of an empty string, which would be read
/// back as `None`, is refused, unless [`empty_as_none`](Csv::empty_as_none) is set. A row without
/// fields is refused too.
///
/// ```
/// use millstream_connectors::format::{Csv, Decode, Encode};
///
/// let format = Csv::<(String, u32)>::new().delimiter(b';');
/// let mut row = Vec::new();
/// format.encode(&("a;b".to_owned(), 7), &mut row)?;
/// assert_eq!(row, b"\"a;b\";7");
/// assert_eq!(format.decode(Some(&row))?, ("a;b".to_owned(), 7));
/// # Ok::<(), millstream_connectors::format::Cause>(())
/// ```
#[must_use = "a format does nothing until a source or a sink uses it"]
pub struct Csv<T> {
    delimiter: u8,
    columns: Columns,
    empty: Empty,
    value: PhantomData<fn(T) -> T>,
}

/// How `Some` of an empty string is written.
#[derive(Clone, Copy, Debug)]
enum Empty {
    Refused,
    None,
}

impl<T> Csv<T> {
    /// Creates a format with commas; in files, the first row is a header.
    pub fn new() -> Csv<T> {
        Csv { delimiter: b',', columns: Columns::ByName, empty: Empty::Refused, value: PhantomData }
    }

    /// Writes `Some` of an empty string as an empty field, which is read back as `None`.
    pub fn empty_as_none(self) -> Csv<T> {
        Csv { empty: Empty::None, ..self }
    }

    /// The separator between fields, such as `b';'` or `b'\t'`; a comma by default.
    ///
    /// # Panics
    /// If it is a quote, a line ending, or not ASCII.
    pub fn delimiter(self, delimiter: u8) -> Csv<T> {
        let can_delimit = delimiter.is_ascii() && !b"\"\r\n".contains(&delimiter);
        assert!(can_delimit, "CSV fields cannot be delimited by {:?}", char::from(delimiter));
        Csv { delimiter, ..self }
    }

    /// Treats the first row of a file like any other row; columns are in the order of `T`'s fields.
    /// Rows in topics never have a header.
    pub fn without_header(self) -> Csv<T> {
        Csv { columns: Columns::ByOrder, ..self }
    }

    /// The fields of a payload, which must be exactly one row.
    fn row(&self, payload: &[u8]) -> Result<ByteRecord, Cause> {
        let mut parser = parser(self.delimiter);
        // A row has at most one field more than delimiters, and no more bytes than with its quotes;
        // the parser needs some room even for an empty payload.
        let most = payload.iter().filter(|byte| **byte == self.delimiter).count() + 2;
        let (mut text, mut ends) = (vec![0; payload.len() + 1], vec![0; most]);
        let (mut result, read, written, mut count) = parser.read_record(payload, &mut text, &mut ends);
        if result == ReadRecordResult::InputEmpty {
            let (last, _, _, more) = parser.read_record(&[], &mut text[written..], &mut ends[count..]);
            (result, count) = (last, count + more);
        }
        if result != ReadRecordResult::Record {
            return Err("the payload has no row".into());
        }
        if payload[read..].iter().any(|byte| !b"\r\n".contains(byte)) {
            return Err("the payload has more than one row".into());
        }
        let mut row = ByteRecord::with_capacity(payload.len(), count);
        let mut begin = 0;
        for end in &ends[..count] {
            row.push_field(&text[begin..*end]);
            begin = *end;
        }
        Ok(row)
    }
}

/// A parser of rows. A new one is built each time, because a clone of csv-core 0.1.13's parser
/// misses the ends of rows.
pub(crate) fn parser(delimiter: u8) -> Reader {
    ReaderBuilder::new().delimiter(delimiter).build()
}

/// Reads the first row of a file.
#[cfg(feature = "files")]
pub(crate) fn header(row: &[u8], delimiter: u8) -> Header {
    Header(Csv::<()>::new().delimiter(delimiter).row(row).unwrap_or_default())
}

impl<T> Default for Csv<T> {
    fn default() -> Self {
        Csv::new()
    }
}

impl<T> Clone for Csv<T> {
    fn clone(&self) -> Self {
        Csv { ..*self }
    }
}

impl<T> fmt::Debug for Csv<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Csv({:?}, {:?}, {:?})", char::from(self.delimiter), self.columns, self.empty)
    }
}

impl<T: DeserializeOwned + 'static> Decode for Csv<T> {
    type Value = T;

    fn decode(&self, payload: Option<&[u8]>) -> Result<T, Cause> {
        Ok(self.row(payload.ok_or_else(tombstone)?)?.deserialize(None)?)
    }

    fn framing(&self) -> Framing {
        Framing::Csv { delimiter: self.delimiter, columns: self.columns }
    }

    fn decode_under(&self, header: &Header, payload: &[u8]) -> Result<T, Cause> {
        let row = self.row(payload)?;
        if row.len() != header.0.len() {
            return Err(format!("the row has {} fields, but the header has {}", row.len(), header.0.len()).into());
        }
        Ok(row.deserialize(Some(&header.0))?)
    }

    fn held(&self, payload: Option<&[u8]>, _: &T) -> millstream::ByteSize {
        millstream::ByteSize(memory::of_row(payload.unwrap_or_default(), self.delimiter) as u64)
    }
}

impl<T: Serialize + 'static> Encode<T> for Csv<T> {
    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        let empty_is_nothing = matches!(self.empty, Empty::Refused);
        if strict::check(value, Rules { format: "CSV", refuses_non_finite: false, empty_is_nothing })? == 0 {
            return Err("a row without fields cannot be written in CSV".into());
        }
        let begin = payload.len();
        self.write(value, QuoteStyle::Necessary, payload)?;
        if payload[begin..].starts_with(BYTE_ORDER_MARK) {
            // Inside quotes, a byte order mark belongs to the field.
            payload.truncate(begin);
            self.write(value, QuoteStyle::Always, payload)?;
        }
        Ok(Payload::Present)
    }
}

impl<T: Serialize> Csv<T> {
    fn write(&self, value: &T, quotes: QuoteStyle, payload: &mut Vec<u8>) -> Result<(), Cause> {
        let mut builder = WriterBuilder::new();
        builder.has_headers(false).delimiter(self.delimiter).quote_style(quotes).buffer_capacity(1 << 9);
        let mut writer = builder.from_writer(payload);
        writer.serialize(value)?;
        // The line ending is not part of the row.
        writer.into_inner().map_err(csv::IntoInnerError::into_error)?.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
    struct Person {
        name: String,
        age: Option<u8>,
        height: f64,
    }

    fn person(name: &str, age: Option<u8>) -> Person {
        Person { name: name.to_owned(), age, height: 1.5 }
    }

    #[track_caller]
    fn refused(payload: &[u8]) -> String {
        Csv::<Person>::new().decode(Some(payload)).expect_err("it is malformed").to_string()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for delimiter in [b',', b';', b'\t'] {
            let format = Csv::new().delimiter(delimiter);
            for name in ["Ada", "", " ", "a,b;c\td", "a \"b\"", "two\nlines\r\n", "ü"] {
                for person in [person(name, Some(7)), person(name, None)] {
                    // Appended to existing bytes, as a sink encodes.
                    let mut payload = b"before".to_vec();
                    format.encode(&person, &mut payload).unwrap();
                    assert_eq!(format.decode(Some(&payload[6..])).unwrap(), person, "{:?}", payload);
                }
            }
        }
    }

    #[test]
    fn a_payload_is_one_row() {
        let format = Csv::<Person>::new();
        for row in ["Ada,7,1.5", "Ada,7,1.5\n", "\"Ada\",7,1.5\r\n", "\nAda,7,1.5"] {
            assert_eq!(format.decode(Some(row.as_bytes())).unwrap(), person("Ada", Some(7)), "{row:?}");
        }
        assert!(refused(b"").contains("no row"));
        assert!(refused(b"\n").contains("no row"));
        assert!(refused(b"Ada,7,1.5\nBob,8,1.5").contains("more than one"));
    }

    /// `Some` of an empty string was written like `None`, and read back as `None`.
    #[test]
    fn an_empty_field_is_none_and_empty_text_of_an_option_is_refused() {
        type Row = (String, Option<String>);
        let format = Csv::<Row>::new();
        for row in [",", "\"\",\"\""] {
            assert_eq!(format.decode(Some(row.as_bytes())).unwrap(), (String::new(), None), "{row}");
        }
        let (mut payload, empty) = (Vec::new(), (String::new(), Some(String::new())));
        let cause = format.encode(&empty, &mut payload).expect_err("it is read back as `None`").to_string();
        assert_eq!(
            cause,
            "CSV cannot represent `Some` of an empty string: it would be read back as `None`, in field `1`"
        );
        payload.clear();
        format.empty_as_none().encode(&empty, &mut payload).unwrap();
        assert_eq!(payload, b",");
        assert!(Csv::new().encode(&Vec::<u8>::new(), &mut payload).is_err(), "a row has fields");
    }

    #[test]
    fn a_byte_order_mark_within_a_field_stays() {
        let (format, mut payload) = (Csv::<(String, u8)>::new(), Vec::new());
        assert_eq!(format.decode(Some("\u{feff}a,1".as_bytes())).unwrap(), ("a".to_owned(), 1));
        format.encode(&("\u{feff}a".to_owned(), 1), &mut payload).unwrap();
        assert_eq!(format.decode(Some(&payload)).unwrap(), ("\u{feff}a".to_owned(), 1));
    }

    #[test]
    fn what_does_not_fit_is_malformed() {
        refused(b"Ada,7");
        refused(b"Ada,seven,1.5");
        refused(b"Ada,300,1.5");
        refused(b"\xff,7,1.5");
        assert!(Csv::<Person>::new().decode(None).unwrap_err().to_string().contains("tombstone"));
    }

    #[test]
    fn columns_are_found_by_name_under_a_header() {
        let (format, header) = (Csv::<Person>::new(), header(b"height,more,age,name\n", b','));
        assert_eq!(format.decode_under(&header, b"1.5,x,7,Ada").unwrap(), person("Ada", Some(7)));
        for row in ["1.5,x,7", "1.5,x,7,Ada,more"] {
            let cause = format.decode_under(&header, row.as_bytes()).unwrap_err().to_string();
            assert!(cause.contains("the header has 4"), "{cause}");
        }
        let lacking = super::header(b"height,age\n", b',');
        let cause = format.decode_under(&lacking, b"1.5,7").unwrap_err().to_string();
        assert!(cause.contains("name"), "{cause}");
    }

    #[test]
    #[should_panic(expected = "delimited")]
    fn a_quote_delimits_nothing() {
        drop(Csv::<Person>::new().delimiter(b'"'));
    }
}
