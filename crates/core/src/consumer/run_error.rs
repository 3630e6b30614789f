//! Why a consumer ended other than by its shutdown.

use std::error::Error as StdError;
use std::fmt;

use crate::error::BrokerError;
use crate::ports::Finding;

/// What ended the run, to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunErrorKind {
    /// The set-up is unsafe; see [`RunError::findings`].
    Refused,
    /// The broker failed for good.
    Broker,
}

/// Why a consumer ended other than by its shutdown.
#[derive(Debug)]
pub struct RunError {
    findings: Vec<Finding>,
    broker: Option<BrokerError>,
}

impl RunError {
    pub(super) const fn refused(findings: Vec<Finding>) -> Self {
        Self {
            findings,
            broker: None,
        }
    }

    pub(super) const fn broker(error: BrokerError) -> Self {
        Self {
            findings: Vec::new(),
            broker: Some(error),
        }
    }

    /// What ended the run.
    pub const fn kind(&self) -> RunErrorKind {
        match self.broker {
            Some(_) => RunErrorKind::Broker,
            None => RunErrorKind::Refused,
        }
    }

    /// What is unsafe about the set-up.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The broker's error.
    pub const fn broker_error(&self) -> Option<&BrokerError> {
        self.broker.as_ref()
    }

    /// The broker's error, if another try may succeed.
    pub(super) fn transient(&self) -> Option<&BrokerError> {
        self.broker.as_ref().filter(|error| error.is_transient())
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.broker.is_some() {
            return f.write_str("the broker ended the consumer");
        }
        f.write_str("the set-up is unsafe")?;
        for finding in &self.findings {
            let Finding {
                setting,
                problem,
                fix,
                ..
            } = finding;
            write!(f, "; {setting}: {problem} ({fix})")?;
        }
        Ok(())
    }
}

impl StdError for RunError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.broker.as_ref().map(|error| error as _)
    }
}
