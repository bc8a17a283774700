//! A registry over HTTPS: which servers are trusted, the client's own certificate, and mistakes in
//! either.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use millstream::{Error, ErrorKind};
use millstream_connectors::{Avro, Decode, Encode, Registry, Tls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::{ORDER, Order, encoded, order};
use crate::support::certificates::certificates;
use crate::support::registry::TestRegistry;

const WITHIN: Duration = Duration::from_secs(2);

/// One of the files that `certificates` creates.
fn file(name: &str) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path(), "open sesame");
        folder
    });
    folder.path().join(name)
}

/// Which clients the registry accepts.
#[derive(Clone, Copy)]
enum Clients {
    All,
    Known,
}

fn served(clients: Clients) -> TestRegistry {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&ring)).with_safe_default_protocol_versions().unwrap();
    let config = match clients {
        Clients::All => config.with_no_client_auth(),
        Clients::Known => {
            let mut authorities = RootCertStore::empty();
            authorities.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), ring);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let certificate = CertificateDer::from_pem_file(file("broker.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("broker.key")).unwrap();
    TestRegistry::start_tls(config.with_single_cert(vec![certificate], key).unwrap())
}

fn trust() -> Tls {
    Tls::new().ca_file(file("ca.pem"))
}

fn avro(served: &TestRegistry, tls: Option<Tls>) -> Avro<Order> {
    let registry = Registry::new(&served.address).within(WITHIN);
    let registry = tls.into_iter().fold(registry, Registry::tls);
    Avro::new(&registry).schema(ORDER).unwrap()
}

/// Registers a schema and encodes a record, then looks the schema up and decodes the record.
#[track_caller]
fn works(served: &TestRegistry, tls: &Tls) {
    let payload = encoded(avro(served, Some(tls.clone())), "orders", &order(7));
    let mut reader = avro(served, Some(tls.clone()));
    Decode::open(&mut reader).unwrap();
    assert_eq!(reader.decode(Some(&payload)).unwrap(), order(7));
}

#[track_caller]
fn fails(served: &TestRegistry, tls: impl Into<Option<Tls>>, kind: ErrorKind, says: &[&str]) {
    let begun = Instant::now();
    let error: Error = Encode::<Order>::open(&mut avro(served, tls.into()), Some("orders")).expect_err("a mistake");
    let told = format!("{error:#}");
    assert_eq!(error.kind(), kind, "{told}");
    for part in says {
        assert!(told.contains(part), "`{told}` does not say `{part}`");
    }
    assert!(!told.contains("open sesame"), "{told}");
    assert!(begun.elapsed() < WITHIN, "a refused request is not retried: {:?}", begun.elapsed());
}

#[test]
fn a_registry_of_our_own_authority_is_trusted() {
    let served = served(Clients::All);
    works(&served, &trust());
    works(&served, &Tls::new().ca_pem(fs::read_to_string(file("ca.pem")).unwrap()));
}

#[test]
fn a_registry_of_a_foreign_authority_is_refused() {
    let served = served(Clients::All);
    let foreign = Tls::new().ca_file(file("foreign.pem"));
    fails(&served, foreign, ErrorKind::Refused, &[&served.address, "certificate"]);
    fails(&served, None, ErrorKind::Refused, &[&served.address, "certificate"]);
}

#[test]
fn a_client_certificate_is_accepted() {
    let served = served(Clients::Known);
    works(&served, &trust().identity_files(file("client.pem"), file("client.key")));
    let text = |name| fs::read_to_string(file(name)).unwrap();
    works(&served, &trust().identity_pem(text("client.pem"), text("client.key")));
    fails(&served, trust(), ErrorKind::Refused, &[&served.address, "ertificate"]);
    let foreign = trust().identity_files(file("foreign.pem"), file("foreign.key"));
    fails(&served, foreign, ErrorKind::Refused, &[&served.address, "ertificate"]);
}

#[test]
fn a_file_or_option_that_cannot_be_used_is_named() {
    let served = served(Clients::All);
    let absent = Tls::new().ca_file(file("nowhere.pem"));
    fails(&served, absent, ErrorKind::NotFound, &["nowhere.pem"]);
    let no_certificate = Tls::new().ca_file(file("client.key"));
    fails(&served, no_certificate, ErrorKind::Config, &["cannot use the authorities", "client.key"]);
    let no_key = trust().identity_files(file("client.pem"), file("client.pem"));
    fails(&served, no_key, ErrorKind::Config, &["cannot use the key", "client.pem"]);
    let encrypted = trust().identity_files(file("client.pem"), file("client.encrypted"));
    fails(&served, encrypted.key_password("open sesame"), ErrorKind::Config, &["`Tls::key_password`"]);
    fails(&served, trust().any_host_name(), ErrorKind::Config, &["`Tls::any_host_name`"]);
}
