//! How the command ends: a code of sysexits, and a sentence that says what to do.

use std::fmt::{self, Write as _};
use std::io;
use std::process::ExitCode;

use backstop::{
    BrokerError, BrokerErrorKind, ConfigError, RunError, RunErrorKind, StoreError, StoreErrorKind,
    with_causes,
};

use crate::output;

/// The codes of sysexits.h that the command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The arguments make no sense.
    Usage = 64,
    /// Input that is not as it has to be, or a promise that was not kept.
    Data = 65,
    /// A file or program that is not there.
    NoInput = 66,
    /// A server that cannot be reached.
    Unavailable = 69,
    /// A bug in backstop.
    Software = 70,
    /// A file or pipe that cannot be read or written.
    InputOutput = 74,
    /// The same may succeed later.
    TempFail = 75,
    /// Wrong credentials, or no permission.
    NoPermission = 77,
    /// Something is set up in a way that cannot work.
    Config = 78,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why the command failed.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// A code, and what to print.
    Failed(Code, String),
    /// Who read our output has gone away, which is no error of ours.
    ReaderGone,
}

impl CommandError {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self::Failed(code, text.into())
    }

    /// A setting that core refuses, by the name that it has on the command line.
    pub(crate) fn setting(error: &ConfigError) -> Self {
        let shown = error.to_string();
        let option = match error.setting() {
            "backoff_cap" => "--cap".to_owned(),
            "shutdown_grace" => "--grace".to_owned(),
            "key" => "--key-from".to_owned(),
            setting => format!("--{}", setting.replace(['_', '.'], "-")),
        };
        let shown = shown.strip_prefix(error.setting()).unwrap_or(&shown);
        let hint = match error.setting() {
            "ordered" => {
                "; on RabbitMQ: add partitions=<number> to the parameters of --url; on SQS: name a FIFO \
                 queue"
            }
            _ => "",
        };
        Self::new(Code::Usage, format!("{option}{shown}{hint}"))
    }

    pub(crate) fn broker(doing: &str, error: &BrokerError) -> Self {
        let code = match error.kind() {
            BrokerErrorKind::Unreachable => Code::Unavailable,
            BrokerErrorKind::Throttled => Code::TempFail,
            BrokerErrorKind::AccessDenied => Code::NoPermission,
            BrokerErrorKind::TooLarge => Code::Data,
            BrokerErrorKind::Configuration => Code::Usage,
            BrokerErrorKind::NotFound
            | BrokerErrorKind::Unroutable
            | BrokerErrorKind::UnsafeTopology
            | BrokerErrorKind::Unsupported => Code::Config,
            _ => Code::Software,
        };
        Self::new(code, format!("{doing}: {}", with_causes(error)))
    }

    pub(crate) fn store(doing: &str, error: &StoreError) -> Self {
        let code = match error.kind() {
            StoreErrorKind::Unreachable => Code::Unavailable,
            StoreErrorKind::AccessDenied => Code::NoPermission,
            StoreErrorKind::Full => Code::TempFail,
            StoreErrorKind::Configuration => Code::Usage,
            _ => Code::Software,
        };
        Self::new(code, format!("{doing}: {}", with_causes(error)))
    }

    /// Why a consumer ended.
    pub(crate) fn run(error: &RunError) -> Self {
        if let (RunErrorKind::Broker, Some(error)) = (error.kind(), error.broker_error()) {
            return Self::broker("the broker ended the consumer", error);
        }
        let mut text = "the queue is set up in a way that can lose messages:".to_owned();
        for finding in error.findings() {
            let (setting, problem, fix) = (&finding.setting, &finding.problem, &finding.fix);
            let _ = write!(text, "\n  {setting}: {problem}\n    fix: {fix}");
        }
        Self::new(Code::Config, text)
    }

    /// Says it on stderr, and gives the code to end with.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Failed(code, text) => {
                output::note(&format!("backstop: {text}"));
                (*code).into()
            }
            Self::ReaderGone => ExitCode::SUCCESS,
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(_, text) => f.write_str(text),
            Self::ReaderGone => f.write_str("the reader of the output has gone"),
        }
    }
}

/// Writing to stdout failed.
impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Self::new(
            Code::InputOutput,
            format!("cannot write to stdout: {error}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_setting_is_named_as_on_the_command_line() {
        let error = ConfigError::new("max_attempts", 0, "1 to 1000");
        let shown = CommandError::setting(&error).to_string();
        assert_eq!(shown, "--max-attempts cannot be 0: 1 to 1000");
    }
}
