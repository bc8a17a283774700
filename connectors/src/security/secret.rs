//! Text that is passed to the client and never printed.

use std::fmt;

/// A password, a key or a token. Its `Debug` output does not contain it.
///
/// ```
/// use millstream_connectors::Secret;
///
/// assert_eq!(format!("{:?}", Secret::from("open sesame")), "[not shown]");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Printed in place of a secret.
pub(crate) const NOT_SHOWN: &str = "[not shown]";
/// The length from which a secret is redacted in a text. A shorter one would also match unrelated
/// text.
const FOUND_FROM: usize = 4;

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Redacts the secret in a text from elsewhere, such as a message of the client.
    pub(crate) fn hide_in(&self, text: &str) -> String {
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
