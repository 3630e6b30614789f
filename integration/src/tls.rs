//! Servers that speak TLS, with certificates that are made for them.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::Plugins;
use crate::container::{Plan, Server};
use crate::rabbitmq;
use crate::redis;

const CA: &str = "/tls/ca.pem";
const CERTIFICATE: &str = "/tls/server.pem";
const KEY: &str = "/tls/server.key";

/// A server that speaks TLS alone, with a certificate for `localhost` and `127.0.0.1`.
pub struct TlsServer {
    /// The server; its URL has the scheme for TLS.
    pub server: Server,
    /// The certificate of the authority that signed the server's, as PEM. No client trusts it by
    /// itself.
    pub ca: String,
}

/// Starts a RabbitMQ of its own that speaks TLS, at `amqps://guest:guest@localhost:port`.
///
/// # Errors
///
/// When there is no image, or it does not come up.
///
/// # Cancel safety
///
/// Cancel-safe: what was started ends with this process at the latest.
pub async fn start_rabbitmq_tls() -> Result<TlsServer> {
    let identity = Identity::new()?;
    let settings = format!(
        "listeners.tcp = none\nlisteners.ssl.default = 5671\nssl_options.cacertfile = {CA}\n\
         ssl_options.certfile = {CERTIFICATE}\nssl_options.keyfile = {KEY}\n\
         ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false"
    );
    let (server, _) = Server::run(|[port]| {
        let mut plan = rabbitmq::plan(Plugins::ConsistentHash, &settings);
        plan.files.extend(identity.files());
        Plan {
            ports: vec![(port, 5671)],
            url: format!("amqps://guest:guest@localhost:{port}"),
            ..plan
        }
    })
    .await?;
    let ca = identity.ca;
    Ok(TlsServer { server, ca })
}

/// Starts a Redis of its own that speaks TLS, at `rediss://localhost:port`.
///
/// # Errors
///
/// When there is no image, or it does not come up.
///
/// # Cancel safety
///
/// Cancel-safe: what was started ends with this process at the latest.
pub async fn start_redis_tls() -> Result<TlsServer> {
    let identity = Identity::new()?;
    let arguments = [
        ["--port", "0"],
        ["--tls-port", "6379"],
        ["--tls-ca-cert-file", CA],
        ["--tls-cert-file", CERTIFICATE],
        ["--tls-key-file", KEY],
        ["--tls-auth-clients", "no"],
    ];
    let (server, _) = Server::run(|[port]| Plan {
        ports: vec![(port, 6379)],
        files: identity.files(),
        url: format!("rediss://localhost:{port}"),
        ..redis::single(arguments.as_flattened())
    })
    .await?;
    let ca = identity.ca;
    Ok(TlsServer { server, ca })
}

/// An authority, and a server's certificate that it signed.
struct Identity {
    ca: String,
    certificate: String,
    key: String,
}

impl Identity {
    fn new() -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        Ok(Self {
            ca: authority.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    fn files(&self) -> Vec<(&'static str, String)> {
        vec![
            (CA, self.ca.clone()),
            (CERTIFICATE, self.certificate.clone()),
            (KEY, self.key.clone()),
        ]
    }
}
