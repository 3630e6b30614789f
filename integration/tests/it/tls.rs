use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use integration::TlsServer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Sends a request over TLS, trusting only the server's own authority, and gives the begin of the
/// answer.
fn ask(tls: &TlsServer, request: &[u8]) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(tls.ca.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    // Named: with all features of the workspace rustls knows two.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let authority = tls.server.url().split_once("://").unwrap().1;
    let socket = TcpStream::connect(authority.rsplit('@').next().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(request).unwrap();
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).unwrap();
    answer.truncate(count);
    answer
}

#[tokio::test]
async fn a_rabbitmq_speaks_tls() {
    let tls = integration::start_rabbitmq_tls().await.unwrap();
    assert!(tls.server.url().starts_with("amqps://"));
    let answer = ask(&tls, b"AMQP\x00\x00\x09\x01");
    assert_eq!((answer[0], &answer[7..11]), (1, &[0, 10, 0, 10][..]));
}

#[tokio::test]
async fn a_redis_speaks_tls() {
    let tls = integration::start_redis_tls().await.unwrap();
    assert!(tls.server.url().starts_with("rediss://"));
    assert_eq!(ask(&tls, b"PING\r\n"), b"+PONG\r\n");
}
