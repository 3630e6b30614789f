//! What Redis, the network or a setting refuses, as the errors of the store.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use backstop_core::{Persistence, StoreError, StoreErrorKind, with_causes};
use redis::{RedisError, ServerError};

/// What to do about a failure while there is time for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Ask again: the server is not ready, or another one is to be asked.
    AskAgain,
    /// Ask again over a new connection.
    Reconnect,
    /// Ask again after giving the scripts.
    LoadScripts,
    /// Tell the caller.
    Tell,
}

/// A failure that many callers can be told of.
#[derive(Clone)]
pub(crate) struct Fault {
    kind: StoreErrorKind,
    text: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    pub(crate) remedy: Remedy,
}

impl Fault {
    pub(crate) fn new(kind: StoreErrorKind, remedy: Remedy, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            source: None,
            remedy,
        }
    }

    pub(crate) fn because(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    pub(crate) fn is_transient(&self) -> bool {
        self.kind.persistence() == Persistence::Transient
    }

    /// A server that does not answer in time.
    pub(crate) fn silent(what: impl fmt::Display) -> Self {
        let text =
            format!("{what} does not answer in time; whether the call took effect is unknown");
        Self::new(StoreErrorKind::Unreachable, Remedy::Tell, text)
    }

    /// An answer that no version of Redis gives.
    pub(crate) fn senseless() -> Self {
        let text = "redis gave an answer that makes no sense to the idempotency store";
        Self::new(StoreErrorKind::Other, Remedy::Tell, text)
    }

    /// A connection that broke.
    pub(crate) fn broken(address: impl fmt::Display, error: RedisError) -> Self {
        let text = format!("the connection to redis at {address} broke");
        Self::new(StoreErrorKind::Unreachable, Remedy::Reconnect, text).because(error)
    }

    /// What a server answered instead of a result.
    ///
    /// Codes: <https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors>, and the
    /// source of Redis 8.0 (`src/server.c`, `createSharedObjects`).
    pub(crate) fn refused(address: impl fmt::Display, error: &ServerError) -> Self {
        let detail = error.details().unwrap_or_default();
        if let Some(text) = denial(&address, error.code(), detail) {
            let fault = Self::new(StoreErrorKind::AccessDenied, Remedy::Tell, text);
            return fault.because(error.clone());
        }
        let (kind, remedy, text) = match error.code() {
            "ERR" if detail.contains("DB index") => (
                StoreErrorKind::Configuration,
                Remedy::Tell,
                format!("redis at {address} has no database of the URL's number"),
            ),
            // Before 7.0 a script could not begin with its flags, and did not compile.
            "ERR" if detail.contains("compiling script") => (
                StoreErrorKind::Configuration,
                Remedy::Tell,
                format!("redis at {address} is older than 7.0: upgrade it"),
            ),
            "OOM" => (
                StoreErrorKind::Full,
                Remedy::Tell,
                format!(
                    "redis at {address} has reached its maxmemory: raise it, or shorten the retention"
                ),
            ),
            "WRONGTYPE" | "FOREIGN" => (
                StoreErrorKind::Configuration,
                Remedy::Tell,
                format!(
                    "a key of the store at {address} holds something else: choose a prefix that no \
                     other application uses"
                ),
            ),
            "NOSCRIPT" => (
                StoreErrorKind::Unreachable,
                Remedy::LoadScripts,
                format!("redis at {address} forgot the scripts"),
            ),
            "READONLY" => (
                StoreErrorKind::Unreachable,
                Remedy::Reconnect,
                format!("redis at {address} is a replica now"),
            ),
            "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => (
                StoreErrorKind::Unreachable,
                Remedy::AskAgain,
                format!("redis at {address} is not ready"),
            ),
            "NOREPLICAS" => (
                StoreErrorKind::Unreachable,
                Remedy::Tell,
                format!("redis at {address} has fewer replicas than its min-replicas-to-write"),
            ),
            code => (
                StoreErrorKind::Other,
                Remedy::Tell,
                format!("redis at {address} refuses with {code}"),
            ),
        };
        Self::new(kind, remedy, text).because(error.clone())
    }
}

/// What to do about a login that is not enough, if that is what the server says.
fn denial(address: &impl fmt::Display, code: &str, detail: &str) -> Option<String> {
    // What a script says of a command that its user may not run: Redis 7.0 and later, `src/script.c`.
    let in_script = detail.contains("ACL failure") || detail.contains("can't run this command");
    match code {
        "NOAUTH" => Some(format!(
            "redis at {address} wants a password: give one in the URL"
        )),
        "WRONGPASS" => Some(format!(
            "redis at {address} does not know this username and password: correct them; in a URL, \
             special characters are percent-encoded"
        )),
        "NOPERM" | "ERR" if code == "NOPERM" || in_script => Some(format!(
            "the user lacks a permission at redis at {address}: grant it the commands that the \
             documentation of backstop-redis-dedupe lists under \"Permissions\""
        )),
        "ERR" if detail.contains("without any password configured") => Some(format!(
            "redis at {address} has no password set and the URL gives one: set the server's, or \
             leave it out of the URL"
        )),
        _ => None,
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        let error = Self::new(fault.kind, fault.text);
        match fault.source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}

/// For logs, with its causes.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.source {
            Some(source) => write!(f, ": {}", with_causes(&**source)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> Fault {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        let Ok(redis::Value::ServerError(error)) = value else {
            panic!("{line} is no error: {value:?}");
        };
        Fault::refused("host:1", &error)
    }

    #[test]
    fn what_passes_is_told_from_what_somebody_has_to_change() {
        use Remedy::{AskAgain, LoadScripts, Reconnect, Tell};
        use StoreErrorKind::{AccessDenied, Configuration, Full, Other, Unreachable};
        // As Redis 8.0.6 says them, and the last but one 6.2.
        let cases = [
            ("NOAUTH Authentication required.", AccessDenied, Tell),
            (
                "WRONGPASS invalid username-password pair",
                AccessDenied,
                Tell,
            ),
            (
                "NOPERM User app has no permissions to run 'set'",
                AccessDenied,
                Tell,
            ),
            (
                "ERR ACL failure in script: no permissions",
                AccessDenied,
                Tell,
            ),
            ("ERR DB index is out of range", Configuration, Tell),
            ("OOM allow-oom flag is not set on the script", Full, Tell),
            ("WRONGTYPE Operation against a key", Configuration, Tell),
            ("FOREIGN the key holds no record", Configuration, Tell),
            ("NOSCRIPT No matching script.", Unreachable, LoadScripts),
            (
                "READONLY You can't write against a replica",
                Unreachable,
                Reconnect,
            ),
            (
                "LOADING Redis is loading the dataset",
                Unreachable,
                AskAgain,
            ),
            ("CLUSTERDOWN The cluster is down", Unreachable, AskAgain),
            ("TRYAGAIN Multiple keys request", Unreachable, AskAgain),
            ("MASTERDOWN Link with MASTER is down", Unreachable, AskAgain),
            ("NOREPLICAS Not enough good replicas", Unreachable, Tell),
            ("MISCONF Redis is configured to save", Other, Tell),
            (
                "ERR Error compiling script (new function)",
                Configuration,
                Tell,
            ),
            ("ERR something else", Other, Tell),
        ];
        for (line, kind, remedy) in cases {
            let fault = refused(line);
            assert_eq!((fault.kind, fault.remedy), (kind, remedy), "{line}");
            assert!(fault.text.contains("host:1"), "{}", fault.text);
            assert!(StdError::source(&StoreError::from(fault)).is_some());
        }
    }
}
