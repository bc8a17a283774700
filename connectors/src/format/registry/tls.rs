//! Which servers the client of a registry trusts, and its own certificate: translates [`Tls`] for
//! the HTTP client.

use millstream::{Error, ErrorKind, Result};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::security::Tls;
use crate::security::{HostNames, Pem};

/// Reads the files that the options name.
pub(super) fn config(tls: &Tls) -> Result<TlsConfig> {
    let wrong = |doing: &str| Err(Error::new(ErrorKind::Config, doing.to_owned()));
    if tls.host_names == HostNames::Any {
        return wrong("`Tls::any_host_name` is for brokers: a schema registry's certificate must match its host name");
    }
    if tls.key_password.is_some() {
        return wrong("`Tls::key_password` is for brokers: the key for a schema registry must not be encrypted");
    }
    let trusted = match &tls.authorities {
        None => RootCerts::PlatformVerifier,
        Some(pem) => RootCerts::new_with_certs(&certificates(pem, "authorities")?),
    };
    let config = TlsConfig::builder().root_certs(trusted);
    let Some((chain, key)) = &tls.identity else { return Ok(config.build()) };
    let chain = certificates(chain, "certificate")?;
    let text = key.read("a key")?;
    let key = PrivateKey::from_pem(text.expose().as_bytes()).map_err(|_| unusable(key, "key"))?;
    Ok(config.client_cert(Some(ClientCert::new_with_certs(&chain, key))).build())
}

fn certificates(pem: &Pem, what: &str) -> Result<Vec<Certificate<'static>>> {
    let text = pem.read(what)?;
    let items: Result<Vec<_>, _> = parse_pem(text.expose().as_bytes()).collect();
    let items = items.map_err(|_| unusable(pem, what))?;
    let certificate = |item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    };
    let certificates: Vec<_> = items.into_iter().filter_map(certificate).collect();
    if certificates.is_empty() { Err(unusable(pem, what)) } else { Ok(certificates) }
}

/// Leaves out the cause, which may quote what could not be read.
fn unusable(pem: &Pem, what: &str) -> Error {
    Error::new(ErrorKind::Config, format!("cannot use the {what} in {pem} for the schema registry"))
}
