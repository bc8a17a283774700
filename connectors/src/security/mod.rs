//! Secrets, and whom to trust: for brokers and for schema registries.

mod secret;
mod tls;

pub use secret::Secret;
pub use tls::Tls;

#[cfg(feature = "kafka")]
pub(crate) use secret::NOT_SHOWN;
pub(crate) use tls::{HostNames, NEEDS_TLS, Pem};
