//! A Cluster that is far away.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use backstop_core::{Claim, ClaimRequest, IdempotencyKey, IdempotencyStore as _, OwnerId};
use redis::{Parser, Value};

use crate::config::RedisStoreConfig;

/// Longer than a node is waited for.
const FAR: Duration = Duration::from_millis(500);

/// A node that has all slots, and takes its time to say so. It ends with the test's process.
fn far_node() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(&stream.unwrap(), address));
        }
    });
    address
}

/// Answers until the client goes away.
fn serve(mut stream: &TcpStream, node: SocketAddr) -> Option<()> {
    let mut parser = Parser::new();
    loop {
        let Value::Array(command) = parser.parse_value(stream).ok()? else {
            return None;
        };
        let Some(Value::BulkString(name)) = command.first() else {
            return None;
        };
        let answer = match &name[..] {
            b"CLUSTER" => {
                thread::sleep(FAR);
                let (host, port) = (node.ip().to_string(), node.port());
                let size = host.len();
                format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n${size}\r\n{host}\r\n:{port}\r\n")
            }
            b"EVALSHA" => "*1\r\n:1\r\n".to_owned(),
            _ => "+OK\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

#[tokio::test]
async fn a_cluster_that_is_far_away_is_learned() {
    let config = RedisStoreConfig::from_url(&format!("redis+cluster://{}", far_node())).unwrap();
    let store = config
        .response_timeout(Duration::from_secs(30))
        .open()
        .unwrap();
    let request = ClaimRequest {
        key: IdempotencyKey::new("orders", "1"),
        owner: OwnerId::new("me"),
        nonce: 1,
        fingerprint: None,
        redrives: 0,
        attempts_used: 0,
        lease: Duration::from_secs(30),
        retention: Duration::from_mins(1),
    };
    let answers = store.claim(&[request]).await;
    assert!(
        matches!(answers[0], Ok(Claim::Acquired { .. })),
        "{answers:?}"
    );
}
