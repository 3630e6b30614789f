//! What this machine's apt knows about reaching packages: the mirror, its CA and a proxy.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell;

/// The settings of this machine's apt that a build of an image needs.
#[derive(Default)]
pub(crate) struct Apt {
    mirror: Option<String>,
    /// Environment variables.
    proxies: Vec<(&'static str, String)>,
}

impl Apt {
    /// Asks apt; a machine without apt, or with another distribution's, has nothing to say.
    pub(crate) fn of_this_machine() -> Self {
        let format = [
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Identifier: Packages",
        ];
        let repositories = shell::output("apt-get", &format).unwrap_or_default();
        let proxies = [
            ("http_proxy", "Acquire::http::Proxy"),
            ("https_proxy", "Acquire::https::Proxy"),
        ];
        Self {
            mirror: debian_mirror(&repositories).map(str::to_owned),
            proxies: proxies
                .into_iter()
                .filter_map(|(variable, key)| Some((variable, setting(key)?)))
                .collect(),
        }
    }

    /// The mirror of Debian, if this machine has one of its own.
    pub(crate) fn mirror(&self) -> Option<&str> {
        self.mirror.as_deref()
    }

    pub(crate) fn pass_proxy(&self, command: &mut Command) {
        for (variable, value) in &self.proxies {
            command.env(variable, value);
        }
    }

    pub(crate) fn proxy_names(&self) -> impl Iterator<Item = &'static str> {
        self.proxies.iter().map(|(variable, _)| *variable)
    }

    /// Writes a folder that is laid over an image's `/etc/apt`.
    pub(crate) fn write_configuration(&self, folder: &Path) -> Result<()> {
        // The Release file of a suite in development may be past its date.
        let mut settings =
            "Acquire::Check-Valid-Until \"false\";\nAcquire::Retries \"5\";\n".to_owned();
        fs::create_dir_all(folder.join("apt.conf.d"))?;
        if self.mirror().is_some_and(|url| url.starts_with("https:")) {
            // A mirror may sit behind a private CA that only this machine knows.
            let bundle = ca_bundle();
            fs::copy(&bundle, folder.join("backstop-ca.crt"))
                .with_context(|| format!("cannot read the CA certificates in {bundle}"))?;
            settings += "Acquire::https::CAInfo \"/etc/apt/backstop-ca.crt\";\n";
        }
        fs::write(folder.join("apt.conf.d/99backstop"), settings)?;
        Ok(())
    }
}

fn ca_bundle() -> String {
    setting("Acquire::https::CAInfo")
        .or_else(|| std::env::var("SSL_CERT_FILE").ok())
        .unwrap_or_else(|| "/etc/ssl/certs/ca-certificates.crt".to_owned())
}

fn setting(key: &str) -> Option<String> {
    let shown = shell::output("apt-config", &["shell", "VALUE", key])?;
    let value = shown.trim().strip_prefix("VALUE=")?.trim_matches('\'');
    (!value.is_empty()).then(|| value.to_owned())
}

/// Debian itself among the repositories of a machine, one a line: not its security updates, not a
/// vendor's packages.
fn debian_mirror(repositories: &str) -> Option<&str> {
    repositories
        .lines()
        .map(|url| url.trim().trim_end_matches('/'))
        .find(|url| url.starts_with("http") && url.ends_with("/debian"))
}

#[cfg(test)]
mod tests {
    use super::debian_mirror;

    #[test]
    fn the_mirror_is_debian_itself() {
        let repositories = "https://vendor.example/packages/\n\
                            http://mirror.example/debian-security/\n\
                            http://mirror.example/debian/\n";
        let mirror = debian_mirror(repositories);
        assert_eq!(mirror, Some("http://mirror.example/debian"));
    }

    #[test]
    fn another_distribution_has_no_mirror() {
        assert_eq!(debian_mirror("http://mirror.example/ubuntu/\n"), None);
    }
}
