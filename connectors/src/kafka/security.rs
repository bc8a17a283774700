//! Authentication between client and broker, in both directions: TLS and SASL as properties of the
//! client. [`Kafka`](super::Kafka) keeps them; the settings of every client (`client`) are made
//! from them.

use std::error::Error as StdError;
use std::sync::Arc;

use millstream::{Error, ErrorKind, Result};

use super::token::{Token, Tokens};
use crate::security::{HostNames, NEEDS_TLS, Pem, Secret, Tls};

/// How the client authenticates. All mechanisms except [`Sasl::plain`] need the feature `tls`, even
/// when the connection itself is not encrypted.
///
/// ```no_run
/// use std::io;
/// use std::time::{Duration, SystemTime};
///
/// use millstream_connectors::Kafka;
/// use millstream_connectors::{Sasl, Tls, Token};
///
/// let password = std::env::var("KAFKA_PASSWORD").unwrap_or_default();
/// let kafka = Kafka::new("kafka.example:9093").tls(Tls::new()).sasl(Sasl::scram_sha_512("orders", password));
///
/// fn ask_our_identity_provider() -> io::Result<Token> {
///     let expires_at = SystemTime::now() + Duration::from_secs(300);
///     Ok(Token::new(std::fs::read_to_string("token.jwt")?, expires_at))
/// }
/// let kafka = Kafka::new("kafka.example:9093").tls(Tls::new()).sasl(Sasl::oauth_bearer(ask_our_identity_provider));
/// ```
#[derive(Clone, Debug)]
#[must_use = "credentials have no effect until `Kafka::sasl` gets them"]
pub struct Sasl(Mechanism);

#[derive(Clone, Debug)]
enum Mechanism {
    Plain(Login),
    ScramSha256(Login),
    ScramSha512(Login),
    OauthBearer(Arc<Tokens>),
}

#[derive(Clone, Debug)]
struct Login {
    user: String,
    password: Secret,
}

impl Login {
    fn new(user: impl Into<String>, password: impl Into<Secret>) -> Login {
        Login { user: user.into(), password: password.into() }
    }
}

impl Sasl {
    /// Sends user name and password in clear text. Without [`Kafka::tls`](super::Kafka::tls) anyone
    /// on the network path can read them; a warning is logged, except for brokers on loopback.
    pub fn plain(user: impl Into<String>, password: impl Into<Secret>) -> Sasl {
        Sasl(Mechanism::Plain(Login::new(user, password)))
    }

    /// Proves the password without sending it, with SHA-256.
    pub fn scram_sha_256(user: impl Into<String>, password: impl Into<Secret>) -> Sasl {
        Sasl(Mechanism::ScramSha256(Login::new(user, password)))
    }

    /// Proves the password without sending it, with SHA-512.
    pub fn scram_sha_512(user: impl Into<String>, password: impl Into<Secret>) -> Sasl {
        Sasl(Mechanism::ScramSha512(Login::new(user, password)))
    }

    /// Sends a token that the callback returns. All clients of this cluster share the token. The
    /// callback is called before the first of them connects, and again when two thirds of the
    /// token's lifetime have passed. It runs on its own thread and may take long; at start, as long
    /// as [`connect_within`](super::Kafka::connect_within).
    ///
    /// A callback that fails or panics ends a job at start. Later that is a warning, and the
    /// callback is called again after 1 to 10 s. The current token stays in use, and the run ends
    /// when a broker refuses it because it has expired. The text of the callback's error is logged,
    /// so it must not contain secrets.
    pub fn oauth_bearer<E>(callback: impl Fn() -> Result<Token, E> + Send + Sync + 'static) -> Sasl
    where
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        Sasl(Mechanism::OauthBearer(Tokens::new(callback)))
    }

    fn properties(&self) -> Vec<Property> {
        let (name, login) = match &self.0 {
            Mechanism::Plain(login) => ("PLAIN", login),
            Mechanism::ScramSha256(login) => ("SCRAM-SHA-256", login),
            Mechanism::ScramSha512(login) => ("SCRAM-SHA-512", login),
            Mechanism::OauthBearer(_) => return vec![("sasl.mechanisms", Secret::from("OAUTHBEARER"))],
        };
        vec![
            ("sasl.mechanisms", Secret::from(name)),
            ("sasl.username", Secret::from(login.user.as_str())),
            ("sasl.password", login.password.clone()),
        ]
    }

    fn secret(&self) -> Option<&Secret> {
        match &self.0 {
            Mechanism::Plain(login) | Mechanism::ScramSha256(login) | Mechanism::ScramSha512(login) => {
                Some(&login.password)
            }
            Mechanism::OauthBearer(_) => None,
        }
    }

    /// The credential that can be read on the network path when the connection is not encrypted.
    fn readable(&self) -> Option<&'static str> {
        match &self.0 {
            Mechanism::Plain(_) => Some("password"),
            Mechanism::OauthBearer(_) => Some("token"),
            Mechanism::ScramSha256(_) | Mechanism::ScramSha512(_) => None,
        }
    }
}

/// A property of the client; its value may be a secret.
pub(crate) type Property = (&'static str, Secret);

/// Properties that conflict with those set here: other names for them, or other ways to set the
/// same.
const SAID_OTHERWISE: &[(&str, &str)] = &[
    ("sasl.mechanism", "sasl.mechanisms"),
    ("ssl.ca.location", "ssl.endpoint.identification.algorithm"),
    ("ssl.ca.pem", "ssl.endpoint.identification.algorithm"),
    ("ssl.certificate.location", "ssl.certificate.pem"),
    ("ssl.key.location", "ssl.key.pem"),
    ("ssl.keystore.location", "ssl.key.pem"),
];

/// The typed security options.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security {
    pub(crate) tls: Option<Tls>,
    pub(crate) sasl: Option<Sasl>,
}

impl Security {
    /// The client properties for these options. Reads the files now.
    pub(crate) fn properties(&self) -> Result<Vec<Property>> {
        let needs = match (&self.tls, &self.sasl) {
            (Some(_), _) => Some("TLS"),
            (None, Some(sasl)) if !matches!(sasl.0, Mechanism::Plain(_)) => Some("SASL with SCRAM or OAUTHBEARER"),
            _ => None,
        };
        if let (Some(what), false) = (needs, cfg!(feature = "tls")) {
            return Err(Error::new(ErrorKind::Config, format!("{what} {NEEDS_TLS}")));
        }
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => return Ok(Vec::new()),
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        let mut properties = vec![("security.protocol", Secret::from(protocol))];
        properties.extend(self.tls.as_ref().map(tls_properties).transpose()?.into_iter().flatten());
        properties.extend(self.sasl.iter().flat_map(Sasl::properties));
        Ok(properties)
    }

    /// Whether `properties` already sets what `property` would set.
    pub(crate) fn said_by(property: &str, properties: &[Property]) -> bool {
        let same = SAID_OTHERWISE.iter().filter(|(other, _)| *other == property).map(|(_, same)| *same);
        same.chain([property]).any(|name| properties.iter().any(|(said, _)| *said == name))
    }

    pub(crate) fn tokens(&self) -> Option<&Arc<Tokens>> {
        match &self.sasl {
            Some(Sasl(Mechanism::OauthBearer(tokens))) => Some(tokens),
            _ => None,
        }
    }

    /// The credential that is sent in clear text, if there is one.
    pub(crate) fn readable(&self) -> Option<&'static str> {
        self.sasl.as_ref().filter(|_| self.tls.is_none()).and_then(Sasl::readable)
    }

    /// Redacts all secrets in a text.
    pub(crate) fn hide_in(&self, text: &str) -> String {
        let tls = self.tls.as_ref();
        let key = tls.and_then(|tls| match &tls.identity {
            Some((_, Pem::Text(key))) => Some(key),
            _ => None,
        });
        let secrets = [self.sasl.as_ref().and_then(Sasl::secret), tls.and_then(|tls| tls.key_password.as_ref()), key];
        let text = secrets.into_iter().flatten().fold(text.to_owned(), |text, secret| secret.hide_in(&text));
        match self.tokens() {
            Some(tokens) => tokens.hide_in(&text),
            None => text,
        }
    }
}

fn tls_properties(tls: &Tls) -> Result<Vec<Property>> {
    let host_names = match tls.host_names {
        HostNames::Checked => "https",
        HostNames::Any => "none",
    };
    let mut properties = vec![("ssl.endpoint.identification.algorithm", Secret::from(host_names))];
    if let Some(authorities) = &tls.authorities {
        properties.push(("ssl.ca.pem", authorities.read("certificate authorities")?));
    }
    if let Some((certificate, key)) = &tls.identity {
        properties.push(("ssl.certificate.pem", certificate.read("a certificate")?));
        properties.push(("ssl.key.pem", key.read("a key")?));
    }
    match (&tls.key_password, &tls.identity) {
        (Some(password), Some(_)) => properties.push(("ssl.key.password", password.clone())),
        (Some(_), None) => return Err(Error::new(ErrorKind::Config, "`key_password` is set, but no key")),
        (None, _) => {}
    }
    Ok(properties)
}

/// Which of these options the client could not use, if its complaint is about one of them.
pub(crate) fn blamed(tls: &Tls, complaint: &str) -> Option<String> {
    let certificate = tls.identity.as_ref().map(|(certificate, _)| certificate);
    let key = tls.identity.as_ref().map(|(_, key)| key);
    let all = [
        ("ssl.ca.pem", "certificate authorities", tls.authorities.as_ref()),
        ("ssl.certificate.pem", "certificate", certificate),
        ("ssl.key.pem", "key or its `key_password`", key),
        ("Private key check", "key", key),
    ];
    let (_, what, pem) = all.into_iter().find(|(property, ..)| complaint.contains(property))?;
    Some(format!("cannot use the {what} in {}", pem?))
}
