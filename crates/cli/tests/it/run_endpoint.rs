//! `backstop run` with an HTTP endpoint.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::command::{Ended, Files, nobody, output, run_fed};

/// A request, as it arrived.
#[derive(Clone)]
struct Seen {
    headers: HeaderMap,
    body: Bytes,
    at: Instant,
}

type Answer = Arc<dyn Fn(&Seen, usize) -> Response + Send + Sync>;

/// An endpoint whose answers a test chooses by the request, and by how many came before with the same
/// id.
#[derive(Clone)]
struct Endpoint {
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Answer,
    url: String,
}

impl Endpoint {
    async fn start(answer: impl Fn(&Seen, usize) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Self {
            seen: Arc::default(),
            answer: Arc::new(answer),
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
        };
        let routes = Router::new().route("/hook", post(take));
        let routes = routes.with_state(endpoint.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        endpoint
    }

    /// All requests, by the message's id.
    fn seen(&self) -> HashMap<String, Vec<Seen>> {
        let mut by_id: HashMap<String, Vec<Seen>> = HashMap::new();
        for seen in self.seen.lock().unwrap().iter() {
            let id = header(seen, "backstop-message-id").to_owned();
            by_id.entry(id).or_default().push(seen.clone());
        }
        by_id
    }

    async fn run(&self, lines: &str, options: &[&str]) -> Ended {
        let files = Files::new();
        let arguments = [&["--endpoint", &self.url], options].concat();
        output(&mut run_fed(&files, lines, &arguments)).await
    }
}

async fn take(State(endpoint): State<Endpoint>, headers: HeaderMap, body: Bytes) -> Response {
    let at = Instant::now();
    let seen = Seen { headers, body, at };
    let id = header(&seen, "backstop-message-id").to_owned();
    let mut all = endpoint.seen.lock().unwrap();
    let before = all
        .iter()
        .filter(|seen| header(seen, "backstop-message-id") == id);
    let answer = (endpoint.answer)(&seen, before.count());
    all.push(seen);
    answer
}

fn header<'a>(seen: &'a Seen, name: &str) -> &'a str {
    let value = seen.headers.get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

fn status(code: u16) -> Response {
    StatusCode::from_u16(code).unwrap().into_response()
}

#[tokio::test]
async fn a_request_carries_all_about_its_message() {
    let endpoint = Endpoint::start(|_, _| status(204)).await;
    let line = r#"{"id":"m-1","key":"k\n1","body":{"n": 1},"headers":
        {"content-type":"application/json","traceparent":"00-1","x-tenant":"größe","host":"evil"}}"#;
    let ended = endpoint
        .run(&line.replace('\n', ""), &[])
        .await
        .with_code(0);
    assert_eq!(ended.json()["completed"], 1);
    let seen = &endpoint.seen()["m-1"][0];
    assert_eq!(&seen.body[..], br#"{"n": 1}"#);
    for (name, value) in [
        ("idempotency-key", "m-1"),
        ("backstop-message-id", "m-1"),
        ("backstop-attempt", "1"),
        ("backstop-fence", "1"),
        ("backstop-partition-key", "k%0A1"),
        ("backstop-redrives", "0"),
        ("backstop-queue", "fed"),
        ("content-type", "application/json"),
        ("traceparent", "00-1"),
        ("backstop-header-x-tenant", "gr%C3%B6%C3%9Fe"),
        ("backstop-header-host", "evil"),
    ] {
        assert_eq!(header(seen, name), value, "{name}");
    }
    assert!(header(seen, "host").starts_with("127.0.0.1"));
}

#[tokio::test]
async fn the_status_decides_what_becomes_of_a_message() {
    let endpoint = Endpoint::start(|seen, before| {
        let code = String::from_utf8_lossy(&seen.body).parse().unwrap();
        status(if before == 0 { code } else { 200 })
    })
    .await;
    let lines: String = [200, 204, 408, 425, 429, 500, 503, 400, 404, 422]
        .map(|code| format!("{{\"id\":\"{code}\",\"body\":{code}}}\n"))
        .concat();
    let summary = endpoint.run(&lines, &[]).await.with_code(0).json();
    assert_eq!(summary["completed"], 7, "{summary}");
    assert_eq!(summary["retried"], 5, "{summary}");
    assert_eq!(summary["dead_lettered"], 3, "{summary}");
    let seen = endpoint.seen();
    for (code, requests) in [("200", 1), ("422", 1), ("408", 2), ("503", 2)] {
        assert_eq!(seen[code].len(), requests, "{code}");
    }
    assert_eq!(header(&seen["500"][1], "backstop-attempt"), "2");
}

#[tokio::test]
async fn retry_after_is_kept() {
    let endpoint = Endpoint::start(|seen, before| match (before, &seen.body[..]) {
        (0, b"429") => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "2")]).into_response(),
        (0, _) => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]).into_response(),
        _ => status(200),
    })
    .await;
    let lines = "{\"id\":\"429\",\"body\":429}\n{\"id\":\"503\",\"body\":503}\n";
    let ended = endpoint.run(lines, &[]).await.with_code(0);
    assert_eq!(ended.json()["completed"], 2);
    let seen = endpoint.seen();
    for (id, seconds) in [("429", 2), ("503", 1)] {
        let waited = seen[id][1].at - seen[id][0].at;
        assert!(waited >= Duration::from_secs(seconds), "{id}: {waited:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_given_up_and_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    // The kernel takes the connection, and nobody answers.
    let files = Files::new();
    let options = [
        "--endpoint",
        &url,
        "--handler-timeout",
        "300ms",
        "--max-attempts",
        "2",
    ];
    let ended = output(&mut run_fed(&files, r#"{"body":"1"}"#, &options)).await;
    let ended = ended
        .with_code(0)
        .saying("the endpoint did not answer within 300ms");
    let summary = ended.json();
    assert_eq!(summary["timed_out"], 2, "{summary}");
    assert_eq!(summary["dead_lettered"], 1, "{summary}");
    drop(listener);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_tried_again() {
    let (_socket, address) = nobody();
    let url = format!("http://user:hunter2@{address}/");
    let files = Files::new();
    let options = ["--endpoint", &url, "--max-attempts", "3"];
    let ended = output(&mut run_fed(&files, r#"{"body":"1"}"#, &options)).await;
    let ended = ended.with_code(0).saying("cannot reach the endpoint");
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    assert_eq!(ended.json()["retried"], 2);
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_says_what_to_do() {
    let endpoint = Endpoint::start(|_, _| {
        (StatusCode::PERMANENT_REDIRECT, [("location", "/elsewhere")]).into_response()
    })
    .await;
    let ended = endpoint
        .run(r#"{"id":"a","body":"1"}"#, &["--max-attempts", "2"])
        .await;
    let ended = ended
        .with_code(0)
        .saying("to /elsewhere: redirects are not followed");
    assert_eq!(ended.json()["failed"], 2);
    assert_eq!(endpoint.seen()["a"].len(), 2);
}

#[tokio::test]
async fn what_an_endpoint_says_becomes_the_error() {
    let endpoint = Endpoint::start(|_, _| {
        let long = format!("no such customer{}", "!".repeat(5_000));
        (StatusCode::UNPROCESSABLE_ENTITY, long).into_response()
    })
    .await;
    let ended = endpoint
        .run(r#"{"body":"secret-body"}"#, &[])
        .await
        .with_code(0);
    let ended = ended.saying("the endpoint answered 422 Unprocessable Entity: no such customer!");
    assert!(ended.stderr.contains("!…"), "the cut shows");
    assert!(!ended.stderr.contains(&"!".repeat(2_000)), "it is cut");
    assert!(!ended.stderr.contains("secret-body"), "{}", ended.stderr);
}

/// What becomes of an answer that promises more than it gives.
#[derive(Clone, Copy, Debug)]
enum Rest {
    BreaksOff,
    NeverComes,
}

/// An endpoint that answers with the status that is the message's id. Gives its URL.
async fn answer_in_part(rest: Rest) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            tokio::spawn(answer_one(connection, rest));
        }
    });
    url
}

async fn answer_one(mut connection: TcpStream, rest: Rest) {
    let mut request = String::new();
    // The head, and a body of three bytes: a connection that is closed before that is reset.
    while request.split("\r\n\r\n").nth(1).map(str::len) != Some(3) {
        let mut buffer = [0; 4096];
        let read = connection.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "the request breaks off: {request}");
        request.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    let id = request.split("backstop-message-id: ").nth(1).unwrap();
    let answer = format!(
        "HTTP/1.1 {} Said\r\ncontent-length: 1000\r\n\r\nthe beginning",
        &id[..3]
    );
    connection.write_all(answer.as_bytes()).await.unwrap();
    match rest {
        Rest::BreaksOff => {}
        Rest::NeverComes => std::future::pending().await,
    }
}

#[tokio::test]
async fn the_status_decides_also_if_the_rest_of_the_answer_does_not_come() {
    for rest in [Rest::BreaksOff, Rest::NeverComes] {
        let files = Files::new();
        let url = answer_in_part(rest).await;
        let lines = "{\"id\":\"200\",\"body\":\"200\"}\n{\"id\":\"422\",\"body\":\"422\"}\n";
        let ended = output(&mut run_fed(&files, lines, &["--endpoint", &url])).await;
        let ended = ended
            .with_code(0)
            .saying("answered 422 Unprocessable Entity: the beginning…");
        let summary = ended.json();
        assert_eq!(summary["completed"], 1, "{rest:?}: {summary}");
        assert_eq!(summary["dead_lettered"], 1, "{rest:?}: {summary}");
        assert_eq!(summary["started"], 2, "{rest:?}: {summary}");
    }
}
