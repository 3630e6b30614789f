//! The scripts, by name and by digest.

use redis::{Cmd, Pipeline, Script};

/// The scripts that carry the protocol; each works on the one key that it is given.
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

    /// The begin of a command that runs the script on a key; its arguments follow.
    pub(crate) fn on(&self, key: &[u8]) -> Cmd {
        let mut command = Cmd::with_capacity(12, 256);
        command.arg("EVALSHA").arg(&self.digest).arg(1).arg(key);
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
