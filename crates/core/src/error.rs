//! Errors: opaque, with a kind to match on and the cause kept.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::causes::with_causes;

type Source = Box<dyn StdError + Send + Sync>;

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Persistence {
    /// The same call may succeed later.
    Transient,
    /// The same call will fail again until somebody changes something.
    Permanent,
}

macro_rules! opaque_error {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            kind: $kind,
            message: String,
            source: Option<Source>,
        }

        impl $name {
            /// An error of this kind; `message` is one lower-case clause that says what to do where
            /// that is known, and holds no secret and no message body.
            pub fn new(kind: $kind, message: impl Into<String>) -> Self {
                Self { kind, message: message.into(), source: None }
            }

            /// Keeps the cause.
            #[must_use]
            pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
                self.source = Some(source.into());
                self
            }

            /// What went wrong, to match on.
            pub const fn kind(&self) -> $kind {
                self.kind
            }

            /// Whether the same call may succeed later.
            pub const fn is_transient(&self) -> bool {
                matches!(self.kind.persistence(), Persistence::Transient)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.message)
            }
        }

        impl StdError for $name {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                self.source.as_deref().map(|source| source as _)
            }
        }
    };
}

/// What a broker refused or failed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BrokerErrorKind {
    /// The broker cannot be reached, or the connection was cut.
    Unreachable,
    /// The broker asks to slow down.
    Throttled,
    /// Wrong or expired credentials, or no permission.
    AccessDenied,
    /// The queue, exchange or dead-letter target does not exist.
    NotFound,
    /// A message could not be routed to any queue.
    Unroutable,
    /// The message is larger than the broker takes.
    TooLarge,
    /// The delivery is no longer ours to settle or extend.
    LeaseLost,
    /// The broker's set-up contradicts the policy; see `doctor`.
    UnsafeTopology,
    /// The broker cannot do what was asked.
    Unsupported,
    /// A setting or URL that makes no sense.
    Configuration,
    /// This handle was closed.
    Closed,
    /// Anything else.
    Other,
}

impl BrokerErrorKind {
    /// Whether trying again can help.
    pub const fn persistence(self) -> Persistence {
        match self {
            Self::Unreachable | Self::Throttled | Self::Other => Persistence::Transient,
            _ => Persistence::Permanent,
        }
    }
}

opaque_error! {
    /// A broker call that failed.
    BrokerError, BrokerErrorKind
}

/// What an idempotency store failed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store cannot be reached, or did not answer in time. Whether the call took effect is not
    /// known: ask again, every call gives the same answer for the same owner and fence.
    Unreachable,
    /// Wrong credentials, or no permission.
    AccessDenied,
    /// The store is full and refuses to forget unexpired records.
    Full,
    /// A setting or URL that makes no sense.
    Configuration,
    /// Anything else.
    Other,
}

impl StoreErrorKind {
    /// Whether trying again can help.
    pub const fn persistence(self) -> Persistence {
        match self {
            Self::Unreachable | Self::Full | Self::Other => Persistence::Transient,
            _ => Persistence::Permanent,
        }
    }
}

opaque_error! {
    /// A call to an idempotency store that failed.
    StoreError, StoreErrorKind
}

/// A setting that is refused, with its value and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    setting: &'static str,
    value: String,
    allowed: String,
}

impl ConfigError {
    /// Refuses `value` for `setting`, and says what is allowed.
    pub fn new(
        setting: &'static str,
        value: impl fmt::Display,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            setting,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }

    /// The setting's name.
    pub const fn setting(&self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cannot be {}: {}",
            self.setting, self.value, self.allowed
        )
    }
}

impl StdError for ConfigError {}

/// What a handler's failure means for its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Try again, after the policy's backoff.
    Transient,
    /// Try again, not before this long from now; cut to 7 days, and to the longest delay of a broker
    /// that has a limit. The attempts that are left still count.
    RetryAfter(Duration),
    /// No attempt can succeed: dead-letter now.
    Permanent,
}

/// A handler's failure.
///
/// Any error becomes one by `?` and then means [`Failure::Transient`]; [`HandlerError::permanent`]
/// and [`HandlerError::retry_after`] say otherwise, and [`Permanence`] adds both to any `Result`.
///
/// ```
/// use backstop_core::{HandlerError, Permanence};
/// fn parse(text: &str) -> Result<u32, HandlerError> {
///     Ok(text.parse::<u32>().permanent()?)
/// }
/// assert!(parse("x").is_err());
/// ```
///
/// It is not itself an [`std::error::Error`], so that `?` can turn every error into one.
pub struct HandlerError {
    failure: Failure,
    source: Source,
}

impl HandlerError {
    /// A failure that another attempt may cure.
    pub fn transient(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            failure: Failure::Transient,
            source: error.into(),
        }
    }

    /// A failure that no attempt can cure: the message is dead-lettered at once.
    pub fn permanent(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            failure: Failure::Permanent,
            source: error.into(),
        }
    }

    /// A failure that may be cured by an attempt not before `wait` from now.
    ///
    /// The wait is at least the backoff's own, and at most 7 days, the broker's longest delay, and,
    /// with an idempotency store, half the retention: the record of the attempts has to outlive it.
    pub fn retry_after(error: impl Into<Box<dyn StdError + Send + Sync>>, wait: Duration) -> Self {
        Self {
            failure: Failure::RetryAfter(wait),
            source: error.into(),
        }
    }

    /// What the failure means for the message.
    pub const fn failure(&self) -> Failure {
        self.failure
    }

    /// The cause.
    pub fn source(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.source
    }
}

impl<E: Into<Source>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::transient(error)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("failure", &self.failure)
            .field("source", &self.source)
            .finish()
    }
}

/// Shows the whole chain of causes, outermost first.
impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_causes(&*self.source))
    }
}

/// Says of a `Result`'s error what it means for the message.
pub trait Permanence<T> {
    /// Makes the error dead-letter the message at once.
    ///
    /// # Errors
    ///
    /// The same error, marked [`Failure::Permanent`].
    fn permanent(self) -> Result<T, HandlerError>;

    /// Makes the error retry the message not before `wait` from now.
    ///
    /// # Errors
    ///
    /// The same error, marked [`Failure::RetryAfter`].
    fn retry_after(self, wait: Duration) -> Result<T, HandlerError>;
}

impl<T, E: Into<Source>> Permanence<T> for Result<T, E> {
    fn permanent(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::permanent)
    }

    fn retry_after(self, wait: Duration) -> Result<T, HandlerError> {
        self.map_err(|error| HandlerError::retry_after(error, wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_becomes_a_transient_failure() {
        fn handler() -> Result<(), HandlerError> {
            "x".parse::<u32>()?;
            Ok(())
        }
        assert_eq!(handler().unwrap_err().failure(), Failure::Transient);
    }

    #[test]
    fn a_failure_shows_its_chain_of_causes() {
        let inner = BrokerError::new(BrokerErrorKind::Unreachable, "connection refused");
        let outer = StoreError::new(StoreErrorKind::Other, "claim failed").with_source(inner);
        let shown = HandlerError::from(outer).to_string();
        assert_eq!(shown, "claim failed: connection refused");
    }

    #[test]
    fn a_refused_setting_names_value_and_range() {
        let error = ConfigError::new("max_attempts", 0, "at least 1");
        assert_eq!(error.to_string(), "max_attempts cannot be 0: at least 1");
    }
}
