//! From lapin's errors to ours.

use backstop_core::{BrokerError, BrokerErrorKind, ConfigError, with_causes};
use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// Says what failed, and keeps lapin's error as the cause.
pub(crate) fn failed(doing: &str, error: lapin::Error) -> BrokerError {
    BrokerError::new(kind(&error), doing).with_source(error)
}

fn kind(error: &lapin::Error) -> BrokerErrorKind {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => BrokerErrorKind::NotFound,
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
            | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => BrokerErrorKind::AccessDenied,
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => {
                BrokerErrorKind::UnsafeTopology
            }
            AMQPErrorKind::Hard(AMQPHardError::COMMANDINVALID | AMQPHardError::NOTIMPLEMENTED) => {
                BrokerErrorKind::Unsupported
            }
            // A server that restarts closes with CONNECTION_FORCED, a lost quorum with INTERNAL_ERROR.
            _ => BrokerErrorKind::Unreachable,
        },
        // What rustls refuses: an unknown certificate does not become known by waiting.
        ErrorKind::IOError(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            BrokerErrorKind::Configuration
        }
        ErrorKind::ChannelsLimitReached => BrokerErrorKind::Throttled,
        ErrorKind::AuthProviderError(_) => BrokerErrorKind::AccessDenied,
        ErrorKind::SerialisationError(_) => BrokerErrorKind::Other,
        _ => BrokerErrorKind::Unreachable,
    }
}

/// The text of a refusal that the server sent, if it is one.
pub(crate) fn refusal(error: &lapin::Error) -> Option<(bool, String)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => {
            let precondition = matches!(
                error.kind(),
                AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
            );
            Some((precondition, error.get_message().to_string()))
        }
        _ => None,
    }
}

pub(crate) fn closed() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Closed, "this handle was closed")
}

pub(crate) fn misconfigured(error: &ConfigError) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Configuration, error.to_string())
}

/// The same error for another caller.
pub(crate) fn again(error: &BrokerError) -> BrokerError {
    BrokerError::new(error.kind(), with_causes(error))
}
