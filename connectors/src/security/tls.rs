//! TLS options, which Kafka's clients and the schema registry both use.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use millstream::{Error, ErrorKind, Result};

use super::Secret;

/// Encryption, and which servers to trust; for a broker or a schema registry. Needs the feature
/// `tls`.
///
/// ```no_run
/// use millstream_connectors::Kafka;
/// use millstream_connectors::Tls;
///
/// let tls = Tls::new().ca_file("ca.pem").identity_files("client.pem", "client.key").key_password("open sesame");
/// let kafka = Kafka::new("kafka.example:9093").tls(tls);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "it has no effect until `Kafka::tls` or `Registry::tls` gets it"]
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

/// The end of a message about a feature that the client was built without.
pub(crate) const NEEDS_TLS: &str = "needs the feature `tls` of millstream-connectors";
