//! A text that is handed to the client and shown to nobody.

use std::fmt;

/// A password, a key or a token: its `Debug` shows nothing of it.
///
/// ```
/// use millstream_connectors::kafka::Secret;
///
/// assert_eq!(format!("{:?}", Secret::from("open sesame")), "[not shown]");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What stands where a secret would.
pub(super) const NOT_SHOWN: &str = "[not shown]";
/// Anything shorter would be found, and crossed out, in what has nothing to do with it.
const FOUND_FROM: usize = 4;

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Crosses the secret out in a text that somebody else wrote.
    pub(super) fn hide_in(&self, text: &str) -> String {
        if self.0.len() < FOUND_FROM { text.to_owned() } else { text.replace(&self.0, NOT_SHOWN) }
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret(text.to_owned())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NOT_SHOWN)
    }
}
