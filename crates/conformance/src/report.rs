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

    /// Ends a test of a subject that can do everything.
    ///
    /// # Panics
    ///
    /// When a case failed or was left out, or none was run.
    pub fn assert_passed(&self) {
        self.assert_passed_but(&[]);
    }

    /// Ends a test of a subject of which exactly these cases are left out. Named in the test, so that a
    /// capability that is declared by mistake makes it fail, and not its cases vanish.
    ///
    /// # Panics
    ///
    /// When a case failed, or another one was left out, or one of these was run, or none was. What
    /// `BACKSTOP_CASE` did not choose is neither run nor left out.
    pub fn assert_passed_but(&self, left_out: &[&str]) {
        assert!(self.failed.is_empty(), "{self}");
        assert!(!self.passed.is_empty(), "no case was run: {self}");
        for case in &self.left_out {
            let is_known = left_out.contains(&case.case);
            assert!(is_known, "{} should have been run: {self}", case.case);
        }
        for case in left_out {
            let was_run = self.has_passed(case);
            assert!(!was_run, "{case} was run and should not have been: {self}");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            passed: vec![("R1", Duration::ZERO)],
            left_out: vec![LeftOut {
                case: "O1",
                reason: "the broker keeps no order",
            }],
            ..Report::default()
        }
    }

    #[test]
    fn what_is_named_may_be_left_out() {
        report().assert_passed_but(&["O1"]);
        // Not chosen, so neither run nor left out.
        report().assert_passed_but(&["O1", "O2"]);
    }

    #[test]
    #[should_panic(expected = "O1 should have been run")]
    fn a_case_that_is_left_out_fails_a_subject_that_can_do_everything() {
        report().assert_passed();
    }

    #[test]
    #[should_panic(expected = "R1 was run and should not have been")]
    fn a_case_that_was_run_fails_a_subject_that_cannot_do_it() {
        report().assert_passed_but(&["O1", "R1"]);
    }

    #[test]
    #[should_panic(expected = "no case was run")]
    fn a_suite_without_a_case_fails() {
        Report::default().assert_passed();
    }
}
