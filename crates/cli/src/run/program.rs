//! Handing a message to a program.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use backstop::{Context, HandlerError};
use bytes::Bytes;
use tokio::process::Command;

use super::metadata::{Metadata, headers_as_json};
use super::process_group::{Ending, ProcessGroup, in_words};
use super::target::Ended;
use crate::exit::{Code, CommandError};

/// The exit code by which a program asks for a retry: `EX_TEMPFAIL` of sysexits.
const RETRY: i32 = 75;
/// The exit code by which a program sends a message to the dead-letter queue: `EX_DATAERR`.
const DEAD_LETTER: i32 = 65;

/// Linux takes at most 128 KiB for one variable of the environment, its name included.
const LONGEST_VARIABLE: usize = 120 << 10;

/// What the variable of a header begins with.
const HEADER: &str = "BACKSTOP_HEADER_";

/// A program, with what it is started with.
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) metadata: Metadata,
    pub(super) timeout: Duration,
    pub(super) ending: Ending,
    pub(super) stdout: Stdout,
}

/// Where what a program prints goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stdout {
    /// To our own stdout.
    Inherited,
    /// To our stderr, because stdout is for JSON.
    ToStderr,
}

impl Program {
    /// Starts it with a message, and waits for its end.
    ///
    /// # Cancel safety
    ///
    /// A dropped call kills the program.
    pub(super) async fn handle(&self, body: Bytes, context: &Context) -> Result<(), Ended> {
        let spawned = ProcessGroup::spawn(self.command(context), self.ending.clone());
        let mut group = spawned.map_err(|error| {
            let path = self.path.display();
            Ended::Failed(HandlerError::transient(format!(
                "cannot start {path}: {error}"
            )))
        })?;
        let waited = tokio::time::timeout(self.timeout, group.attend(body)).await;
        if let Ok(Ok(status)) = waited {
            if group.was_called() && !decides(status) {
                // It gave way to the shutdown, which is no failure: when the grace is over its message
                // is given back, and the attempt does not count.
                group.end().await;
                std::future::pending::<()>().await;
            }
            return judge(status, &group.last_words().await);
        }
        let said = group.end().await;
        if let Ok(Err(error)) = waited {
            let path = self.path.display();
            let text = format!("cannot wait for {path}: {error}{said}");
            return Err(Ended::Failed(HandlerError::transient(text)));
        }
        let limit = humantime::format_duration(self.timeout);
        let text = format!("the program took longer than {limit}{said}");
        Err(Ended::TimedOut(HandlerError::transient(text)))
    }

    fn command(&self, context: &Context) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(match self.stdout {
                Stdout::Inherited => Stdio::inherit(),
                Stdout::ToStderr => Stdio::from(std::io::stderr()),
            })
            // They hold passwords, and are none of the program's business.
            .env_remove("BACKSTOP_URL")
            .env_remove("BACKSTOP_STORE");
        // Where a program of another consumer starts us, we have inherited its message's headers.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(HEADER) {
                command.env_remove(name);
            }
        }
        for fact in self.metadata.facts(context) {
            set(&mut command, fact.variable, fact.value.as_deref());
        }
        for (name, value) in context.headers().iter() {
            set(&mut command, &variable(name), Some(value));
        }
        set(
            &mut command,
            "BACKSTOP_HEADERS",
            Some(&headers_as_json(context)),
        );
        command
    }
}

/// Whether a program that ends so has made up its mind about its message.
fn decides(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | DEAD_LETTER))
}

fn judge(status: ExitStatus, said: &str) -> Result<(), Ended> {
    let error = match status.code() {
        Some(0) => return Ok(()),
        Some(DEAD_LETTER) => HandlerError::permanent(format!(
            "the program refused the message (exit code {DEAD_LETTER}){said}"
        )),
        Some(RETRY) => HandlerError::transient(format!(
            "the program asked for a retry (exit code {RETRY}){said}"
        )),
        _ => HandlerError::transient(format!("the program {}{said}", in_words(status))),
    };
    Err(Ended::Failed(error))
}

/// Sets a variable, or takes away what we have inherited under its name. What no environment can
/// carry is left out: a NUL, or more than [`LONGEST_VARIABLE`].
fn set(command: &mut Command, name: &str, value: Option<&str>) {
    match value {
        Some(value) if !value.contains('\0') && value.len() <= LONGEST_VARIABLE => {
            command.env(name, value);
        }
        Some(_) => {
            tracing::warn!(
                name,
                "a variable is left out: it is too long for the environment, or holds a NUL"
            );
            command.env_remove(name);
        }
        None => {
            command.env_remove(name);
        }
    }
}

/// The variable of a header: `x-tenant` is `BACKSTOP_HEADER_X_TENANT`.
fn variable(header: &str) -> String {
    let letter = |c: char| match c {
        c if c.is_ascii_alphanumeric() => c.to_ascii_uppercase(),
        _ => '_',
    };
    let name: String = header.chars().map(letter).collect();
    format!("{HEADER}{name}")
}

/// Finds a program as a shell would: by its path, or by its name in `PATH`.
pub(super) fn find(program: &OsStr) -> Result<PathBuf, CommandError> {
    let shown = program.to_string_lossy();
    let path = Path::new(program);
    if path.components().count() > 1 || shown.contains('/') {
        return match kind(path) {
            Kind::Program => Ok(path.to_owned()),
            Kind::NotExecutable => Err(not_executable(path)),
            Kind::Absent => Err(CommandError::new(
                Code::NoInput,
                format!("the program {shown} does not exist"),
            )),
        };
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let mut seen = None;
    for candidate in std::env::split_paths(&directories).map(|directory| directory.join(path)) {
        match kind(&candidate) {
            Kind::Program => return Ok(candidate),
            Kind::NotExecutable => seen = Some(candidate),
            Kind::Absent => {}
        }
    }
    match seen {
        Some(candidate) => Err(not_executable(&candidate)),
        None if kind(path) == Kind::Absent => Err(CommandError::new(
            Code::NoInput,
            format!("there is no program {shown} in PATH: give its path, or install it"),
        )),
        None => Err(CommandError::new(
            Code::NoInput,
            format!("there is no program {shown} in PATH, but here is one: write ./{shown}"),
        )),
    }
}

fn not_executable(path: &Path) -> CommandError {
    let path = path.display();
    let text = format!("{path} is no program that you may execute: chmod +x {path}");
    CommandError::new(Code::NoPermission, text)
}

#[derive(PartialEq, Eq)]
enum Kind {
    Program,
    NotExecutable,
    Absent,
}

fn kind(path: &Path) -> Kind {
    match path.metadata() {
        Ok(found) if found.is_file() && is_executable(path) => Kind::Program,
        Ok(_) => Kind::NotExecutable,
        Err(_) => Kind::Absent,
    }
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(not(unix))]
fn is_executable(_path: &Path) -> bool {
    true
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the arguments: they may hold a secret.
        write!(f, "{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_its_variable() {
        assert_eq!(variable("x-tenant"), "BACKSTOP_HEADER_X_TENANT");
        assert_eq!(variable("über.größe"), "BACKSTOP_HEADER__BER_GR__E");
    }

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        assert!(find(OsStr::new("sh")).unwrap().ends_with("sh"));
        let absent = find(OsStr::new("no-such-program-here")).unwrap_err();
        assert!(absent.to_string().contains("in PATH"), "{absent}");
        let absent = find(OsStr::new("./no-such-program-here")).unwrap_err();
        assert!(absent.to_string().contains("does not exist"), "{absent}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = find(file.path().as_os_str()).unwrap_err();
        assert!(refused.to_string().contains("chmod +x"), "{refused}");
    }
}
