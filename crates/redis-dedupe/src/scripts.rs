//! The scripts, by name and by digest.

use redis::{Cmd, Pipeline, Script};

use crate::operation::Operation;

/// The scripts that carry the protocol; each does one thing to every key that it is given.
pub(crate) struct Scripts {
    pub(crate) claim: Code,
    pub(crate) renew: Code,
    pub(crate) end: Code,
}

/// A script and its digest.
pub(crate) struct Code {
    text: &'static str,
    digest: String,
}

impl Code {
    fn new(text: &'static str) -> Self {
        let digest = Script::new(text).get_hash().to_owned();
        Self { text, digest }
    }

    /// The command that runs the script on the keys of operations. They can be in one call, and there
    /// is at least one.
    pub(crate) fn on<O: Operation>(&self, operations: &[O], keys: &[Vec<u8>]) -> Cmd {
        let arguments = 2 * operations.len() + 5;
        let mut command = Cmd::with_capacity(arguments, 64 + 96 * operations.len());
        command.arg("EVALSHA").arg(&self.digest).arg(keys.len());
        for key in keys {
            command.arg(key);
        }
        if let Some(first) = operations.first() {
            first.add_common(&mut command);
        }
        for operation in operations {
            command.arg(operation.own_argument().as_ref());
        }
        command
    }
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            claim: Code::new(include_str!("scripts/claim.lua")),
            renew: Code::new(include_str!("scripts/renew.lua")),
            end: Code::new(include_str!("scripts/end.lua")),
        }
    }

    /// How many commands [`load`](Self::load) adds.
    pub(crate) const COUNT: usize = 3;

    /// Adds the commands that give the server the scripts. Those that are loaded so are kept until the
    /// server ends or `SCRIPT FLUSH`; those of `EVAL` make room for others.
    pub(crate) fn load(&self, commands: &mut Pipeline) {
        for code in [&self.claim, &self.renew, &self.end] {
            commands.cmd("SCRIPT").arg("LOAD").arg(code.text);
        }
    }
}
