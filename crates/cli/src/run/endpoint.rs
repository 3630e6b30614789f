//! Handing a message to an HTTP endpoint.

use std::fmt;
use std::time::{Duration, SystemTime};

use backstop::{Context, HandlerError, with_causes};
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};

use super::metadata::Metadata;
use super::settings::Settings;
use super::target::Ended;
use crate::exit::{Code, CommandError};

/// How much of an answer is read; the rest of a longer one costs the connection.
const LONGEST_ANSWER: usize = 64 << 10;
/// How long the rest of an answer is waited for, once its status has decided.
const REST_OF_ANSWER: Duration = Duration::from_secs(5);
/// How much of an answer stands in the error that a dead letter shows.
const LONGEST_QUOTE: usize = 1 << 10;
/// Message headers that HTTP and W3C trace context know by the same name.
const KNOWN: [&str; 4] = ["content-type", "traceparent", "tracestate", "baggage"];

/// An HTTP endpoint.
pub(super) struct Endpoint {
    url: Url,
    client: Client,
    metadata: Metadata,
    timeout: Duration,
    longest_wait: Duration,
}

impl Endpoint {
    pub(super) fn new(
        url: &str,
        metadata: Metadata,
        settings: &Settings,
    ) -> Result<Self, CommandError> {
        let url = read_url(url)?;
        // Fails only if it was done before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("backstop/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .timeout(settings.handler_timeout)
            .pool_max_idle_per_host(settings.max_in_flight)
            .build()
            .map_err(|error| {
                let text = format!("cannot set up HTTP: {}", with_causes(&error));
                CommandError::new(Code::Config, text)
            })?;
        Ok(Self {
            url,
            client,
            metadata,
            timeout: settings.handler_timeout,
            longest_wait: settings.longest_wait_asked(),
        })
    }

    /// Posts a message, and waits for the answer.
    ///
    /// # Cancel safety
    ///
    /// A dropped call closes its connection; what the endpoint makes of the request is its own affair.
    pub(super) async fn handle(&self, body: Bytes, context: &Context) -> Result<(), Ended> {
        let request = self
            .client
            .post(self.url.clone())
            .headers(self.headers(context))
            .body(body);
        match request.send().await {
            Ok(mut response) => {
                let quote = read(&mut response).await;
                self.judge(&response, &quote)
            }
            Err(error) if error.is_timeout() => {
                let limit = humantime::format_duration(self.timeout);
                let text = format!("the endpoint did not answer within {limit}");
                Err(Ended::TimedOut(HandlerError::transient(text)))
            }
            Err(error) => {
                // Its own text names the URL, which may hold a password.
                let text = format!(
                    "cannot reach the endpoint: {}",
                    with_causes(&error.without_url())
                );
                Err(Ended::Failed(HandlerError::transient(text)))
            }
        }
    }

    fn headers(&self, context: &Context) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        for fact in self.metadata.facts(context) {
            if let Some(value) = fact.value {
                headers.insert(fact.header, header_value(&value));
            }
        }
        for (name, value) in context.headers().iter() {
            let known = KNOWN.iter().find(|known| known.eq_ignore_ascii_case(name));
            match known {
                Some(known) => drop(headers.insert(*known, header_value(value))),
                None => {
                    if let Some(name) = header_name(name) {
                        headers.append(name, header_value(value));
                    }
                }
            }
        }
        headers
    }

    fn judge(&self, response: &Response, quote: &str) -> Result<(), Ended> {
        let status = response.status();
        let text = format!("the endpoint answered {status}{quote}");
        let error = match Answer::of(status) {
            Answer::Done => return Ok(()),
            Answer::DeadLetter => HandlerError::permanent(text),
            Answer::Retry => HandlerError::transient(text),
            Answer::RetryWhenAsked => match self.wait_asked(response.headers()) {
                Some(wait) => HandlerError::retry_after(text, wait),
                None => HandlerError::transient(text),
            },
            Answer::Redirect => {
                let to = response.headers().get(LOCATION);
                let to = to.and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
                HandlerError::transient(format!(
                    "the endpoint answered {status} to {to}: redirects are not followed, so give \
                     the URL that answers by itself as --endpoint"
                ))
            }
        };
        Err(Ended::Failed(error))
    }

    fn wait_asked(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
        let wait = retry_after(text, SystemTime::now())?;
        if wait > self.longest_wait {
            let longest = self.longest_wait;
            tracing::warn!(
                ?wait,
                ?longest,
                "the endpoint asks for a longer wait than half of --retention; it is cut to that"
            );
        }
        Some(wait.min(self.longest_wait))
    }
}

/// What a status means for the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Retry,
    RetryWhenAsked,
    DeadLetter,
    Redirect,
}

impl Answer {
    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=299 => Self::Done,
            300..=399 => Self::Redirect,
            429 | 503 => Self::RetryWhenAsked,
            408 | 425 => Self::Retry,
            400..=499 => Self::DeadLetter,
            _ => Self::Retry,
        }
    }
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Reads an answer's end off the connection, and quotes its beginning behind a colon. What does not
/// come, or not in time, is missing from the quote and changes nothing else: the status has decided.
async fn read(response: &mut Response) -> String {
    let mut kept = Vec::new();
    let mut read = 0;
    let reading = async {
        while let Some(chunk) = response.chunk().await? {
            let room = LONGEST_QUOTE.saturating_sub(kept.len());
            kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
            read += chunk.len();
            if read > LONGEST_ANSWER {
                break;
            }
        }
        Ok::<_, reqwest::Error>(())
    };
    let is_whole = matches!(
        tokio::time::timeout(REST_OF_ANSWER, reading).await,
        Ok(Ok(()))
    );
    let text = String::from_utf8_lossy(&kept);
    let text = text.trim();
    let is_cut = !is_whole || read > kept.len();
    let mark = if is_cut { "…" } else { "" };
    if text.is_empty() {
        return String::new();
    }
    format!(": {text}{mark}")
}

/// Control characters and what is not ASCII are percent-encoded: HTTP cannot carry the former, and
/// servers disagree about the latter.
fn header_value(text: &str) -> HeaderValue {
    let encoded = utf8_percent_encode(text, CONTROLS).to_string();
    HeaderValue::from_str(&encoded).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What HTTP cannot carry in a name is percent-encoded too: `%` is allowed there.
fn header_name(name: &str) -> Option<HeaderName> {
    const TOKEN: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'~');
    let encoded = utf8_percent_encode(name, TOKEN);
    format!("backstop-header-{encoded}").parse().ok()
}

/// Reads the URL of an endpoint.
pub(super) fn read_url(text: &str) -> Result<Url, CommandError> {
    let refuse = |problem: &str| {
        let text = format!("--endpoint {problem}: give http://host/path or https://host/path");
        Err(CommandError::new(Code::Usage, text))
    };
    match Url::parse(text) {
        Err(error) => refuse(&format!("is no URL ({error})")),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            refuse(&format!("cannot be a {}:// URL", url.scheme()))
        }
        Ok(url) => Ok(url),
    }
}

/// Shows neither password nor query.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.url.clone();
        shown.set_query(None);
        // Fails only for URLs without a host.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        write!(f, "{shown}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_meaning() {
        let answer = |status| Answer::of(StatusCode::from_u16(status).unwrap());
        for status in [200, 201, 204, 299] {
            assert_eq!(answer(status), Answer::Done, "{status}");
        }
        for status in [408, 425, 500, 502, 504, 599, 600] {
            assert_eq!(answer(status), Answer::Retry, "{status}");
        }
        for status in [429, 503] {
            assert_eq!(answer(status), Answer::RetryWhenAsked, "{status}");
        }
        for status in [400, 401, 404, 409, 410, 422, 451] {
            assert_eq!(answer(status), Answer::DeadLetter, "{status}");
        }
        for status in [301, 302, 304, 307, 308] {
            assert_eq!(answer(status), Answer::Redirect, "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text| retry_after(text, now);
        assert_eq!(read("120"), Some(Duration::from_mins(2)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        let date = read("Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(date, Some(Duration::from_mins(1)));
        let past = read("Sun, 06 Nov 1994 08:49:36 GMT");
        assert_eq!(past, Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-5"), None);
    }

    #[test]
    fn what_http_cannot_carry_is_percent_encoded() {
        assert_eq!(header_value("plain text"), "plain text");
        assert_eq!(header_value("a\nb"), "a%0Ab");
        assert_eq!(header_value("größe\n"), "gr%C3%B6%C3%9Fe%0A");
        let name = |text| header_name(text).map(|name| name.to_string());
        assert_eq!(
            name("x-Tenant").as_deref(),
            Some("backstop-header-x-tenant")
        );
        assert_eq!(
            name("my header:").as_deref(),
            Some("backstop-header-my%20header%3a")
        );
    }

    #[test]
    fn an_endpoint_is_http_or_https() {
        assert!(read_url("https://host/path").is_ok());
        for text in ["ftp://host", "host/path", "", "localhost:80"] {
            let refused = read_url(text).unwrap_err().to_string();
            assert!(refused.contains("http://host/path"), "{refused}");
        }
    }
}
