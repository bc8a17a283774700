//! Certificates of short-lived authorities, made by openssl.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Makes two authorities, of which servers trust the first. Its certificates are for a server on
/// loopback and for a client. The client's key is stored unencrypted and encrypted with a password.
pub fn certificates(folder: &Path, password: &str) {
    let openssl = |arguments: &str| {
        let arguments = arguments.split_whitespace().map(|word| word.replace("PASSWORD", password));
        let made = Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30";
    for authority in ["ca", "foreign"] {
        openssl(&format!("{new} -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"));
    }
    let signed = "-CA ca.pem -CAkey ca.key -addext basicConstraints=CA:FALSE";
    let address = "-addext subjectAltName=IP:127.0.0.1";
    openssl(&format!("{new} {signed} {address} -subj /CN=broker -keyout broker.key -out broker.crt"));
    openssl(&format!("{new} {signed} -subj /CN=client -keyout client.key -out client.pem"));
    openssl("pkcs8 -topk8 -in client.key -out client.encrypted -passout pass:PASSWORD");
    let store = ["broker.key", "broker.crt"].map(|name| fs::read_to_string(folder.join(name)).unwrap()).concat();
    fs::write(folder.join("broker.pem"), store).unwrap();
}
