//! A real broker that authenticates clients: one listener for each method, with certificates of its
//! own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use millstream_connectors::{Kafka, Sasl, Tls};

use crate::support::broker::{Broker, OwnBroker, SCRIPT};
use crate::support::certificates::certificates;

/// Part of every secret here; `events` watches for it.
pub const CANARY: &str = "C4N4RY";

pub const USER: &str = "alice";

/// A secret that is unique to this name.
pub fn secret(name: &str) -> String {
    format!("{name}-{CANARY}-s3cr3t")
}

/// The password of the user that all tests share.
pub fn password() -> String {
    secret("password")
}

/// A broker with all listeners. The one without authentication is at its own address.
pub struct Cluster {
    pub own: OwnBroker,
    folder: PathBuf,
    port: u16,
}

/// The cluster that tests share. It ends with the test process.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Cluster::start();
        // Statics are not dropped, so another process waits for the end of this one.
        let wait = "(while kill -0 $0; do sleep 0.2; done; \"$1\" down; rm -rf \"$2\") >/dev/null 2>&1 </dev/null &";
        let waits = Command::new("setsid")
            .args(["sh", "-c", wait, &std::process::id().to_string()])
            .args([Path::new(SCRIPT), &cluster.folder])
            .env("MILLSTREAM_KAFKA_PORT", cluster.port.to_string())
            .status();
        assert!(waits.unwrap().success());
        cluster
    })
}

impl Cluster {
    pub fn start() -> Cluster {
        let folder = std::env::temp_dir().join(format!("millstream-security-{}", fastrand::u64(..)));
        fs::create_dir(&folder).unwrap();
        certificates(&folder, &secret("key"));
        let own = OwnBroker::with_ports(|port| properties(port, &folder));
        let port = own.broker.address.rsplit_once(':').unwrap().1.parse().unwrap();
        let cluster = Cluster { own, folder, port };
        cluster.set_scram_password(USER, &password());
        cluster
    }

    pub fn broker(&self) -> &Broker {
        &self.own.broker
    }

    pub fn set_scram_password(&self, user: &str, password: &str) {
        // In two requests: one alone is refused because it alters one credential twice.
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let config = format!("{mechanism}=[iterations=4096,password={password}]");
            let of = ["--alter", "--entity-type", "users", "--entity-name", user, "--add-config", &config];
            self.own.tool("kafka.admin.ConfigCommand", &of);
        }
    }

    /// One of the files that [`certificates`] makes.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// TLS without client certificates.
    pub fn tls(&self) -> String {
        self.listener(2)
    }

    /// TLS with client certificates.
    pub fn mutual(&self) -> String {
        self.listener(3)
    }

    /// SASL with each mechanism, over TLS.
    pub fn sasl(&self) -> String {
        self.listener(4)
    }

    /// SASL PLAIN without encryption.
    pub fn open(&self) -> String {
        self.listener(5)
    }

    fn listener(&self, at: u16) -> String {
        format!("127.0.0.1:{}", self.port + at)
    }

    /// TLS options that trust this cluster.
    pub fn trust(&self) -> Tls {
        Tls::new().ca_file(self.file("ca.pem"))
    }

    pub fn with(&self, sasl: Sasl) -> Kafka {
        Kafka::new(self.sasl()).tls(self.trust()).sasl(sasl)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// The properties of the broker.
fn properties(port: u16, folder: &Path) -> String {
    let at = |next: u16| format!("127.0.0.1:{}", port + next);
    let ours = format!("PLAINTEXT://{},TLS://{},MUTUAL://{},SASL://{},OPEN://{}", at(0), at(2), at(3), at(4), at(5));
    let login = "org.apache.kafka.common.security";
    let (controller, password, folder) = (at(1), password(), folder.display());
    format!(
        r#"
listeners={ours},CONTROLLER://{controller}
advertised.listeners={ours}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,TLS:SSL,MUTUAL:SSL,SASL:SASL_SSL,OPEN:SASL_PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
listener.name.mutual.ssl.client.auth=required
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl.plain.sasl.jaas.config={login}.plain.PlainLoginModule required user_{USER}="{password}";
listener.name.sasl.scram-sha-256.sasl.jaas.config={login}.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-256.connections.max.reauth.ms=2000
listener.name.sasl.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required;
listener.name.sasl.oauthbearer.sasl.jaas.config={login}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
listener.name.sasl.oauthbearer.connections.max.reauth.ms=3600000
listener.name.open.sasl.enabled.mechanisms=PLAIN
listener.name.open.plain.sasl.jaas.config={login}.plain.PlainLoginModule required user_{USER}="{password}";
"#
    )
}
