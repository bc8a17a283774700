//! Authentication between client and broker, in both directions: TLS and SASL as typed options.
//! [`Kafka`](super::Kafka) keeps them; the settings of every client (`client`) are made from them.

use std::error::Error as StdError;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use millstream::{Error, ErrorKind, Result};

use super::secret::Secret;
use super::token::{Token, Tokens};

/// Encryption, and which servers to trust; for a broker or a schema registry. Needs the feature
/// `tls`.
///
/// ```no_run
/// use millstream_connectors::Kafka;
/// use millstream_connectors::kafka::Tls;
///
/// let tls = Tls::new().ca_file("ca.pem").identity_files("client.pem", "client.key").key_password("open sesame");
/// let kafka = Kafka::new("kafka.example:9093").tls(tls);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Tls {
    pub(crate) authorities: Option<Pem>,
    /// A certificate and its private key.
    pub(crate) identity: Option<(Pem, Pem)>,
    pub(crate) key_password: Option<Secret>,
    pub(crate) host_names: HostNames,
}

/// Whether a server's certificate must match its host name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HostNames {
    #[default]
    Checked,
    Any,
}

impl Tls {
    /// Trusts the system's certificate authorities, and requires that a server's certificate
    /// matches its host name.
    pub fn new() -> Tls {
        Tls::default()
    }

    /// Trusts the certificate authorities of this PEM file, and no others.
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Tls {
        Tls { authorities: Some(Pem::File(path.into())), ..self }
    }

    /// Trusts these certificate authorities, in PEM, and no others.
    pub fn ca_pem(self, text: impl Into<String>) -> Tls {
        Tls { authorities: Some(Pem::Text(Secret::from(text.into()))), ..self }
    }

    /// Sends the server the certificate in one PEM file, with its chain, and proves it with the
    /// private key in the other.
    pub fn identity_files(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Tls {
        Tls { identity: Some((Pem::File(certificate.into()), Pem::File(key.into()))), ..self }
    }

    /// Sends the server this certificate, with its chain, and proves it with this private key; both
    /// in PEM.
    pub fn identity_pem(self, certificate: impl Into<String>, key: impl Into<Secret>) -> Tls {
        Tls { identity: Some((Pem::Text(Secret::from(certificate.into())), Pem::Text(key.into()))), ..self }
    }

    /// The password that the private key is encrypted with.
    pub fn key_password(self, password: impl Into<Secret>) -> Tls {
        Tls { key_password: Some(password.into()), ..self }
    }

    /// Accepts a certificate of a trusted authority for any host name. Anyone who has such a
    /// certificate can then act as the server.
    pub fn any_host_name(self) -> Tls {
        Tls { host_names: HostNames::Any, ..self }
    }

    fn properties(&self) -> Result<Vec<Property>> {
        let host_names = match self.host_names {
            HostNames::Checked => "https",
            HostNames::Any => "none",
        };
        let mut properties = vec![("ssl.endpoint.identification.algorithm", Secret::from(host_names))];
        if let Some(authorities) = &self.authorities {
            properties.push(("ssl.ca.pem", authorities.read("certificate authorities")?));
        }
        if let Some((certificate, key)) = &self.identity {
            properties.push(("ssl.certificate.pem", certificate.read("a certificate")?));
            properties.push(("ssl.key.pem", key.read("a key")?));
        }
        match (&self.key_password, &self.identity) {
            (Some(password), Some(_)) => properties.push(("ssl.key.password", password.clone())),
            (Some(_), None) => return Err(Error::new(ErrorKind::Config, "`key_password` is set, but no key")),
            (None, _) => {}
        }
        Ok(properties)
    }

    /// Which of these options the client could not use, if its complaint is about one of them.
    pub(super) fn blamed(&self, complaint: &str) -> Option<String> {
        let certificate = self.identity.as_ref().map(|(certificate, _)| certificate);
        let key = self.identity.as_ref().map(|(_, key)| key);
        let all = [
            ("ssl.ca.pem", "certificate authorities", self.authorities.as_ref()),
            ("ssl.certificate.pem", "certificate", certificate),
            ("ssl.key.pem", "key or its `key_password`", key),
            ("Private key check", "key", key),
        ];
        let (_, what, pem) = all.into_iter().find(|(property, ..)| complaint.contains(property))?;
        Some(format!("cannot use the {what} in {}", pem?))
    }
}

/// PEM text, or the file that holds it.
#[derive(Clone, Debug)]
pub(crate) enum Pem {
    File(PathBuf),
    Text(Secret),
}

impl Pem {
    pub(crate) fn read(&self, what: &str) -> Result<Secret> {
        match self {
            Pem::Text(text) => Ok(text.clone()),
            Pem::File(path) => fs::read_to_string(path).map(Secret::from).map_err(|cause| {
                let kind =
                    if cause.kind() == io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Config };
                Error::new(kind, format!("cannot read {what} in PEM from `{}`", path.display())).caused_by(cause)
            }),
        }
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path) => write!(f, "`{}`", path.display()),
            Pem::Text(_) => f.write_str("a PEM text of the program"),
        }
    }
}

/// How the client authenticates. All mechanisms except [`Sasl::plain`] need the feature `tls`, even
/// when the connection itself is not encrypted.
///
/// ```no_run
/// use std::io;
/// use std::time::{Duration, SystemTime};
///
/// use millstream_connectors::Kafka;
/// use millstream_connectors::kafka::{Sasl, Tls, Token};
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
#[must_use]
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
pub(super) type Property = (&'static str, Secret);

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
pub(super) struct Security {
    pub(super) tls: Option<Tls>,
    pub(super) sasl: Option<Sasl>,
}

impl Security {
    /// The client properties for these options. Reads the files now.
    pub(super) fn properties(&self) -> Result<Vec<Property>> {
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
        properties.extend(self.tls.as_ref().map(Tls::properties).transpose()?.into_iter().flatten());
        properties.extend(self.sasl.iter().flat_map(Sasl::properties));
        Ok(properties)
    }

    /// Whether `properties` already sets what `property` would set.
    pub(super) fn said_by(property: &str, properties: &[Property]) -> bool {
        let same = SAID_OTHERWISE.iter().filter(|(other, _)| *other == property).map(|(_, same)| *same);
        same.chain([property]).any(|name| properties.iter().any(|(said, _)| *said == name))
    }

    pub(super) fn tokens(&self) -> Option<&Arc<Tokens>> {
        match &self.sasl {
            Some(Sasl(Mechanism::OauthBearer(tokens))) => Some(tokens),
            _ => None,
        }
    }

    /// The credential that is sent in clear text, if there is one.
    pub(super) fn readable(&self) -> Option<&'static str> {
        self.sasl.as_ref().filter(|_| self.tls.is_none()).and_then(Sasl::readable)
    }

    /// Redacts all secrets in a text.
    pub(super) fn hide_in(&self, text: &str) -> String {
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

/// The end of a message about a feature that the client was built without.
pub(crate) const NEEDS_TLS: &str = "needs the feature `tls` of millstream-connectors";
