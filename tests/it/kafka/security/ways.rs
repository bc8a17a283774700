//! Each way to connect: records pass through a job from Kafka to Kafka, with a receipt for each.

use std::time::{Duration, SystemTime};

use millstream::{Job, channel};
use millstream_connectors::{Kafka, Sasl, Tls};

use super::cluster::{Cluster, USER, password, secret};
use super::{copy, shared, token};
use crate::support::eventually;

const RECORDS: usize = 200;

/// Writes through a job with receipts, copies through another one that is a member of a group, and
/// reads the result.
#[track_caller]
fn check(cluster: &Cluster, kafka: &Kafka) {
    let broker = cluster.broker();
    let (input, output) = (broker.topic("way-in", 2), broker.topic("way-out", 2));
    let group = format!("group-{input}");
    let copying = copy(kafka, &group, &input, &output).start().unwrap();
    let (lines, source) = channel::<String>(RECORDS);
    let (here, topic) = (kafka.clone(), input.clone());
    let writing = Job::new("write", move |flow| flow.source(&source)?.sink(here.topic(&topic).text()));
    let writing = writing.start().unwrap();
    let expected: Vec<String> = (0..RECORDS).map(|n| format!("{n:03}")).collect();
    let receipts: Vec<_> = expected.iter().map(|line| lines.try_send(line.clone()).unwrap()).collect();
    receipts.into_iter().for_each(|receipt| receipt.wait().unwrap());
    drop(lines);
    writing.wait().unwrap();
    eventually("all of it is copied", || copying.report().records_out() == RECORDS as u64);
    copying.stop();
    copying.wait().unwrap();
    let mut read: Vec<String> = broker.read(&output).concat().into_iter().filter_map(|record| record.value).collect();
    read.sort();
    assert_eq!(read, expected);
    let committed: i64 = broker.committed(&group, &input, 2).into_iter().flatten().sum();
    assert_eq!(committed, RECORDS as i64, "the group has committed all of it");
}

#[test]
fn tls_with_a_file_of_authorities() {
    let Some(cluster) = shared() else { return };
    check(cluster, &Kafka::new(cluster.tls()).tls(cluster.trust()));
}

#[test]
fn tls_with_a_text_of_authorities() {
    let Some(cluster) = shared() else { return };
    let authorities = std::fs::read_to_string(cluster.file("ca.pem")).unwrap();
    check(cluster, &Kafka::new(cluster.tls()).tls(Tls::new().ca_pem(authorities)));
}

#[test]
fn tls_with_another_host_name_when_any_is_accepted() {
    let Some(cluster) = shared() else { return };
    let address = cluster.tls().replace("127.0.0.1", "localhost");
    check(cluster, &Kafka::new(address).tls(cluster.trust().any_host_name()));
}

#[test]
fn a_client_certificate() {
    let Some(cluster) = shared() else { return };
    let tls = cluster.trust().identity_files(cluster.file("client.pem"), cluster.file("client.key"));
    check(cluster, &Kafka::new(cluster.mutual()).tls(tls));
}

#[test]
fn a_client_certificate_with_an_encrypted_key() {
    let Some(cluster) = shared() else { return };
    let tls = cluster.trust().identity_files(cluster.file("client.pem"), cluster.file("client.encrypted"));
    check(cluster, &Kafka::new(cluster.mutual()).tls(tls.key_password(secret("key"))));
}

#[test]
fn a_client_certificate_from_texts() {
    let Some(cluster) = shared() else { return };
    let [certificate, key] =
        ["client.pem", "client.key"].map(|name| std::fs::read_to_string(cluster.file(name)).unwrap());
    check(cluster, &Kafka::new(cluster.mutual()).tls(cluster.trust().identity_pem(certificate, key)));
}

#[test]
fn sasl_plain() {
    let Some(cluster) = shared() else { return };
    check(cluster, &cluster.with(Sasl::plain(USER, password())));
}

#[test]
fn sasl_plain_without_tls() {
    let Some(cluster) = shared() else { return };
    check(cluster, &Kafka::new(cluster.open()).sasl(Sasl::plain(USER, password())));
}

#[test]
fn sasl_scram_sha_256() {
    let Some(cluster) = shared() else { return };
    check(cluster, &cluster.with(Sasl::scram_sha_256(USER, password())));
}

#[test]
fn sasl_scram_sha_512() {
    let Some(cluster) = shared() else { return };
    check(cluster, &cluster.with(Sasl::scram_sha_512(USER, password())));
}

#[test]
fn sasl_oauth_bearer() {
    let Some(cluster) = shared() else { return };
    let hour = Duration::from_secs(3_600);
    let callback = move || Ok::<_, String>(token(SystemTime::now() + hour, "carol"));
    check(cluster, &cluster.with(Sasl::oauth_bearer(callback)));
}

#[test]
fn properties_of_the_client_by_their_names() {
    let Some(cluster) = shared() else { return };
    let kafka = Kafka::new(cluster.sasl())
        .set("security.protocol", "sasl_ssl")
        .set("ssl.ca.location", cluster.file("ca.pem").to_str().unwrap())
        .set("sasl.mechanism", "SCRAM-SHA-512")
        .set("sasl.username", USER)
        .set("sasl.password", password());
    check(cluster, &kafka);
}
