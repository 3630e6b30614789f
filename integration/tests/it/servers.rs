use std::time::Duration;

use integration::{Plugins, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const AMQP_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// Sends a request to the server of a URL and gives the begin of its answer.
async fn ask(url: &str, request: &[u8]) -> Vec<u8> {
    let authority = url.split_once("://").unwrap().1;
    let address = authority.rsplit('@').next().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).await.unwrap();
    answer.truncate(count);
    answer
}

/// What RabbitMQ says first: a method frame on channel 0 with connection.start.
async fn speaks_amqp(url: &str) {
    let answer = ask(url, AMQP_HEADER).await;
    assert_eq!((answer[0], &answer[7..11]), (1, &[0, 10, 0, 10][..]));
}

#[tokio::test]
async fn the_shared_rabbitmq_is_of_the_version_under_test() {
    let url = integration::rabbitmq().await;
    let answer = ask(url, AMQP_HEADER).await;
    let properties = String::from_utf8_lossy(&answer).into_owned();
    let version = integration::rabbitmq_version();
    assert!(properties.contains(&version), "{properties}");
}

#[tokio::test]
async fn the_shared_servers_are_the_same_for_each_test() {
    assert_eq!(integration::rabbitmq().await, integration::rabbitmq().await);
    assert_eq!(integration::redis().await, integration::redis().await);
}

#[tokio::test]
async fn a_proxy_stands_before_a_server() {
    let proxy = Proxy::start(integration::rabbitmq().await).await.unwrap();
    speaks_amqp(proxy.url()).await;
}

#[tokio::test]
async fn a_rabbitmq_keeps_its_url_over_a_kill_and_a_restart() {
    let settings = "consumer_timeout = 12345";
    let server = integration::start_rabbitmq_with(Plugins::None, settings).await;
    let server = server.unwrap();
    speaks_amqp(server.url()).await;
    server.kill().await.unwrap();
    server.start().await.unwrap();
    speaks_amqp(server.url()).await;
    server.restart().await.unwrap();
    speaks_amqp(server.url()).await;
    let plugins = [
        "rabbitmq-plugins",
        "list",
        "--enabled",
        "--minimal",
        "--silent",
    ];
    assert_eq!(server.exec(&plugins).await.unwrap().trim(), "");
    let environment = server.exec(&["rabbitmqctl", "environment"]).await;
    assert!(environment.unwrap().contains("{consumer_timeout,12345}"));
}

#[tokio::test]
async fn a_server_is_reached_past_the_proxy_too() {
    for url in [integration::rabbitmq().await, integration::redis().await] {
        let direct = integration::past_proxy(url).await;
        let (scheme, _) = url.split_once("://").unwrap();
        if scheme == "amqp" {
            speaks_amqp(&direct).await;
        } else {
            assert_eq!(ask(&direct, b"PING\r\n").await, b"+PONG\r\n");
        }
    }
    let elsewhere = "redis://redis.example:6379";
    assert_eq!(integration::past_proxy(elsewhere).await, elsewhere);
}

#[tokio::test]
async fn a_redis_keeps_its_url_and_its_data_over_a_restart() {
    let arguments = ["--maxmemory", "64mb"];
    let server = integration::start_redis(&arguments).await.unwrap();
    let url = server.url();
    assert_eq!(ask(url, b"SET a 1\r\n").await, b"+OK\r\n");
    server.restart().await.unwrap();
    assert_eq!(ask(url, b"GET a\r\n").await, b"$1\r\n1\r\n");
    let memory = ask(url, b"CONFIG GET maxmemory\r\n").await;
    assert!(String::from_utf8_lossy(&memory).contains("67108864"));
}

#[tokio::test]
async fn a_paused_server_does_not_answer_until_the_pause_ends() {
    let server = integration::start_redis(&[]).await.unwrap();
    server.pause().await.unwrap();
    let silence = Duration::from_millis(300);
    let answer = timeout(silence, ask(server.url(), b"PING\r\n")).await;
    assert!(answer.is_err(), "{answer:?}");
    server.unpause().await.unwrap();
    assert_eq!(ask(server.url(), b"PING\r\n").await, b"+PONG\r\n");
}

#[tokio::test]
async fn a_cluster_fails_over() {
    let cluster = integration::start_cluster().await.unwrap();
    assert_eq!(cluster.masters().await.unwrap().len(), 3);
    let (old, new) = cluster.fail_over().await.unwrap();
    assert!(!cluster.masters().await.unwrap().contains(&old));
    cluster.nodes().kill(new).await.unwrap();
    cluster.until_replaced(new).await.unwrap();
    cluster.nodes().start(new).await.unwrap();
    // Back again, it is a replica: all agree on it, whether it is up already or not.
    let masters = cluster.masters().await.unwrap();
    assert_eq!(masters.len(), 3);
    assert!(!masters.contains(&new), "{masters:?}");
}

#[tokio::test]
async fn sentinels_fail_over() {
    let sentinels = integration::start_sentinels().await.unwrap();
    let (old, new) = sentinels.fail_over().await.unwrap();
    assert_eq!(sentinels.master().await.unwrap(), new);
    assert_ne!(old, new);
}

#[tokio::test]
async fn sentinels_replace_a_master_that_was_killed() {
    let sentinels = integration::start_sentinels().await.unwrap();
    let old = sentinels.master().await.unwrap();
    sentinels.nodes().kill(old).await.unwrap();
    let new = sentinels.next_master(old).await.unwrap();
    assert_ne!(old, new);
}
