//! An error with its causes.

use std::error::Error as StdError;
use std::fmt::Write as _;

/// An error and its causes on one line, outermost first, each said once. For logs: an error by itself
/// says what was tried, and its causes say why that failed.
///
/// ```
/// use backstop_core::{BrokerError, BrokerErrorKind, with_causes};
/// let refused = std::io::Error::other("connection refused");
/// let error = BrokerError::new(BrokerErrorKind::Unreachable, "the broker cannot be reached");
/// let error = error.with_source(refused);
/// assert_eq!(with_causes(&error), "the broker cannot be reached: connection refused");
/// ```
pub fn with_causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let shown = error.to_string();
        // Many errors end with the text of their cause.
        if !text.ends_with(&shown) {
            let _ = write!(text, ": {shown}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{BrokerError, BrokerErrorKind};

    fn error(text: &str) -> BrokerError {
        BrokerError::new(BrokerErrorKind::Other, text)
    }

    #[test]
    fn every_cause_is_said() {
        let refused = error("no route").with_source(error("interface down"));
        let error = error("cannot connect").with_source(refused);
        assert_eq!(
            with_causes(&error),
            "cannot connect: no route: interface down"
        );
    }

    #[test]
    fn a_cause_is_said_once() {
        let told = error("protocol error: refused").with_source(error("refused"));
        let error = error("cannot connect").with_source(told);
        assert_eq!(
            with_causes(&error),
            "cannot connect: protocol error: refused"
        );
    }
}
