use std::io::ErrorKind;
use std::time::{Duration, Instant};

use integration::{Mode, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// Long enough for whatever has to come.
const PATIENCE: Duration = Duration::from_mins(2);
/// Long enough to see that nothing comes.
const SILENCE: Duration = Duration::from_millis(200);

/// A server that sends back what it gets, and a proxy in front of it.
async fn echo() -> Proxy {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reads, mut writes) = stream.into_split();
                tokio::io::copy(&mut reads, &mut writes).await
            });
        }
    });
    Proxy::start(&format!("echo://{address}")).await.unwrap()
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn receives(stream: &mut TcpStream, text: &str) {
    let mut answer = vec![0; text.len()];
    let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.unwrap().unwrap();
    assert_eq!(answer, text.as_bytes());
}

async fn receives_nothing(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = timeout(SILENCE, stream.read(&mut byte)).await;
    assert!(read.is_err(), "{read:?}");
}

async fn is_cut(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = timeout(PATIENCE, stream.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn what_is_forwarded_arrives() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    send(&mut stream, "ping").await;
    receives(&mut stream, "ping").await;
    assert_eq!(proxy.open_connections(), 1);
}

#[tokio::test]
async fn a_cut_ends_open_connections_and_lets_new_ones_in() {
    let proxy = echo().await;
    let mut old = connect(&proxy).await;
    send(&mut old, "ping").await;
    receives(&mut old, "ping").await;
    proxy.cut();
    is_cut(&mut old).await;
    let mut new = connect(&proxy).await;
    send(&mut new, "pong").await;
    receives(&mut new, "pong").await;
}

#[tokio::test]
async fn a_dropped_proxy_ends_its_connections() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    send(&mut stream, "ping").await;
    receives(&mut stream, "ping").await;
    drop(proxy);
    is_cut(&mut stream).await;
}

#[tokio::test]
async fn a_black_hole_keeps_the_connection_and_what_was_sent() {
    let proxy = echo().await;
    let mut old = connect(&proxy).await;
    proxy.set_mode(Mode::BlackHole);
    let mut new = connect(&proxy).await;
    for stream in [&mut old, &mut new] {
        send(stream, "ping").await;
        receives_nothing(stream).await;
    }
    proxy.set_mode(Mode::Forward);
    for stream in [&mut old, &mut new] {
        receives(stream, "ping").await;
    }
}

#[tokio::test]
async fn what_clients_send_is_dropped_for_good() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    proxy.set_mode(Mode::DropToServer);
    send(&mut stream, "lost").await;
    receives_nothing(&mut stream).await;
    proxy.set_mode(Mode::Forward);
    send(&mut stream, "kept").await;
    receives(&mut stream, "kept").await;
}

#[tokio::test]
async fn what_the_server_sends_is_dropped_for_good() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    proxy.set_mode(Mode::DropToClient);
    send(&mut stream, "lost").await;
    receives_nothing(&mut stream).await;
    proxy.set_mode(Mode::Forward);
    send(&mut stream, "kept").await;
    receives(&mut stream, "kept").await;
}

#[tokio::test]
async fn a_delay_holds_what_is_sent() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    proxy.set_mode(Mode::Delay(SILENCE));
    let begun = Instant::now();
    send(&mut stream, "ping").await;
    receives(&mut stream, "ping").await;
    assert!(begun.elapsed() >= 2 * SILENCE);
}

#[tokio::test]
async fn new_connections_are_refused_while_old_ones_go_on() {
    let proxy = echo().await;
    let mut old = connect(&proxy).await;
    send(&mut old, "ping").await;
    receives(&mut old, "ping").await;
    proxy.set_mode(Mode::Refuse);
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(proxy.address()).await.is_ok() {
        assert!(Instant::now() < end, "it still listens");
    }
    let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    send(&mut old, "pong").await;
    receives(&mut old, "pong").await;
    proxy.set_mode(Mode::Forward);
    while TcpStream::connect(proxy.address()).await.is_err() {
        assert!(Instant::now() < end, "it does not listen again");
        sleep(Duration::from_millis(10)).await;
    }
}
