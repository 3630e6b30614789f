//! What this machine's pip knows about reaching packages: the index, its CA and a proxy.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::shell;

/// What of pip's settings says how its packages are reached.
const KEYS: [&str; 4] = ["index-url", "extra-index-url", "trusted-host", "proxy"];

/// Where pip has settings from; the first one counts.
const SECTIONS: [&str; 3] = [":env:", "install", "global"];

/// The settings of this machine's pip that a build of an image needs.
pub(crate) struct Pip(BTreeMap<String, String>);

impl Pip {
    /// Asks pip; a machine without it has nothing to say but its environment.
    pub(crate) fn of_this_machine() -> Self {
        let listed = shell::output("python3", &["-m", "pip", "config", "list"]);
        let mut settings = listed.as_deref().map(settings).unwrap_or_default();
        for key in KEYS.into_iter().chain(["cert"]) {
            let variable = format!("PIP_{}", key.replace('-', "_").to_uppercase());
            if let Ok(value) = std::env::var(variable) {
                settings.insert(key.to_owned(), value);
            }
        }
        Self(settings)
    }

    /// Writes a folder that holds `pip.conf`, for an image in which the folder is `/opt/pip`.
    pub(crate) fn write_configuration(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut lines = vec!["[global]".to_owned()];
        for key in KEYS {
            if let Some(value) = self.0.get(key) {
                lines.push(format!("{key} = {value}"));
            }
        }
        let bundle = self.ca_bundle();
        if Path::new(&bundle).exists() {
            // A mirror may sit behind a private CA that only this machine knows.
            fs::copy(&bundle, folder.join("ca.crt"))
                .with_context(|| format!("cannot read the CA certificates in {bundle}"))?;
            lines.push("cert = /opt/pip/ca.crt".to_owned());
        }
        fs::write(folder.join("pip.conf"), lines.join("\n") + "\n")?;
        Ok(())
    }

    fn ca_bundle(&self) -> String {
        let own = self.0.get("cert").cloned();
        own.or_else(|| std::env::var("SSL_CERT_FILE").ok())
            .unwrap_or_else(|| "/etc/ssl/certs/ca-certificates.crt".to_owned())
    }
}

/// The settings in what `pip config list` shows, which is `section.key='value'`, one a line.
fn settings(listed: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for section in SECTIONS {
        for line in listed.lines() {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            let key = name
                .strip_prefix(section)
                .and_then(|key| key.strip_prefix('.'));
            if let Some(key) = key {
                // Several values stand on lines of their own, which Python shows escaped.
                let value = value.trim_matches(['\'', '"']).replace("\\n", " ");
                settings.entry(key.to_owned()).or_insert(value);
            }
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::settings;

    #[test]
    fn the_environment_comes_before_a_file() {
        let listed = ":env:.index-url='https://one.example/simple'\n\
                      global.index-url='https://two.example/simple'\n\
                      global.trusted-host='\\none.example\\ntwo.example'\n\
                      global.cert='/etc/ca.crt'\n";
        let settings = settings(listed);
        assert_eq!(settings["index-url"], "https://one.example/simple");
        assert_eq!(settings["trusted-host"].trim(), "one.example two.example");
        assert_eq!(settings["cert"], "/etc/ca.crt");
    }
}
