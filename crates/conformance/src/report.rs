//! What a suite found.

use std::fmt;
use std::time::Duration;

/// A case that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The case's id, `R4` say.
    pub case: &'static str,
    /// What the case claims.
    pub claim: &'static str,
    /// Why it does not hold.
    pub message: String,
}

/// A case that was left out.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// The case's id.
    pub case: &'static str,
    /// What the capabilities declare.
    pub reason: &'static str,
}

/// What a suite found.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Report {
    /// The suite and its subject, for the reader.
    pub subject: String,
    /// The ids of the cases that passed, with the time that each took.
    pub passed: Vec<(&'static str, Duration)>,
    /// The cases that failed.
    pub failed: Vec<Failure>,
    /// The cases that the broker declares it cannot do.
    pub left_out: Vec<LeftOut>,
}

impl Report {
    /// Whether this case was run and failed.
    pub fn has_failed(&self, case: &str) -> bool {
        self.failed.iter().any(|failure| failure.case == case)
    }

    /// Whether this case was run and passed.
    pub fn has_passed(&self, case: &str) -> bool {
        self.passed.iter().any(|(passed, _)| *passed == case)
    }

    /// Ends a test.
    ///
    /// # Panics
    ///
    /// When a case failed, or none was run.
    pub fn assert_passed(&self) {
        assert!(self.failed.is_empty(), "{self}");
        assert!(!self.passed.is_empty(), "no case was run: {self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            subject,
            passed,
            failed,
            left_out,
        } = self;
        let (passed, failures, without) = (passed.len(), failed.len(), left_out.len());
        write!(
            f,
            "{subject}: {passed} passed, {failures} failed, {without} left out"
        )?;
        for LeftOut { case, reason } in left_out {
            write!(f, "\n  {case} left out: {reason}")?;
        }
        for failure in failed {
            let Failure {
                case,
                claim,
                message,
            } = failure;
            write!(f, "\n  {case} {claim} FAILED: {message}")?;
        }
        Ok(())
    }
}
