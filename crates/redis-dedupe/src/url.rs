//! Reads the URL of a store.
//!
//! By hand: the `url` crate takes one host only.

use backstop_core::ConfigError;
use percent_encoding::percent_decode_str;

use crate::address::Address;
use crate::config::{Authorities, Deployment, Login, RedisStoreConfig, Transport};

const SETTING: &str = "the Redis URL";
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

pub(crate) fn parse(url: &str) -> Result<RedisStoreConfig, ConfigError> {
    let shown = without_password(url);
    let refuse = |allowed: &str| ConfigError::new(SETTING, &shown, allowed);
    let (scheme, rest) = url.split_once("://").ok_or_else(|| refuse(SCHEMES))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, authority),
    };
    let (kind, default_port) = match scheme
        .strip_prefix("rediss")
        .or(scheme.strip_prefix("redis"))
    {
        Some("") => (Kind::Single, PORT),
        Some("+cluster") => (Kind::Cluster, PORT),
        Some("+sentinel") => (Kind::Sentinel, SENTINEL_PORT),
        _ => return Err(refuse(SCHEMES)),
    };
    let addresses = hosts
        .split(',')
        .map(|host| Address::parse(host, default_port))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| refuse("a host, or host:port with a port from 1 to 65535, after `://`"))?;
    let (deployment, database) = kind.read_path(path, addresses.len()).map_err(refuse)?;
    let mut config = RedisStoreConfig::new(deployment, addresses);
    config.database = database;
    if scheme.starts_with("rediss") {
        config.transport = Transport::Tls;
    }
    config.login = match login {
        Some(login) => read_login(login).map_err(refuse)?,
        None => None,
    };
    for setting in query.split('&').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        match name {
            "ca_file" if config.transport == Transport::Tcp => {
                return Err(refuse("ca_file together with a scheme for TLS, `rediss`"));
            }
            "ca_file" if !value.is_empty() => {
                config.authorities = Authorities::File(decode(value).map_err(refuse)?.into());
            }
            _ => return Err(refuse("no settings but `?ca_file=<path>`")),
        }
    }
    Ok(config)
}

const SCHEMES: &str = "redis://host:port/database, redis+cluster://host,host,… or \
     redis+sentinel://host,host,…/service, and the same with `rediss` for TLS";

#[derive(Clone, Copy)]
enum Kind {
    Single,
    Cluster,
    Sentinel,
}

impl Kind {
    fn read_path(self, path: &str, hosts: usize) -> Result<(Deployment, u32), &'static str> {
        const DATABASE: &str = "a database by its number after the `/`, such as `/0`";
        let database = |text: &str| match text {
            "" => Ok(0),
            // SELECT takes a C int.
            text => text
                .parse()
                .ok()
                .filter(|n| i32::try_from(*n).is_ok())
                .ok_or(DATABASE),
        };
        let path = path.strip_suffix('/').unwrap_or(path);
        match self {
            Self::Single if hosts == 1 => Ok((Deployment::Single, database(path)?)),
            Self::Single => Err("one host; several are for redis+cluster:// or redis+sentinel://"),
            Self::Cluster if matches!(path, "" | "0") => Ok((Deployment::Cluster, 0)),
            Self::Cluster => Err("no database but 0: a Cluster has no other"),
            Self::Sentinel => {
                let (service, number) = path.split_once('/').unwrap_or((path, ""));
                if service.is_empty() {
                    return Err("the service's name after the sentinels, as in …/mymaster");
                }
                let service = decode(service)?;
                Ok((Deployment::Sentinel { service }, database(number)?))
            }
        }
    }
}

fn read_login(login: &str) -> Result<Option<Login>, &'static str> {
    let (username, password) = login
        .split_once(':')
        .ok_or("a password too where there is a user, as in user:password@, or :password@ alone")?;
    let username = Some(decode(username)?).filter(|name| !name.is_empty());
    let password = decode(password)?;
    if password.is_empty() && username.is_none() {
        return Ok(None);
    }
    Ok(Some(Login { username, password }))
}

fn decode(text: &str) -> Result<String, &'static str> {
    percent_decode_str(text)
        .decode_utf8()
        .map(String::from)
        .map_err(|_| "UTF-8 in percent-encoded parts")
}

/// A URL to show: whatever may be a password is left out.
fn without_password(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + "://".len());
    // A password that is not percent-encoded may hold anything, another `@` or `/` too.
    let Some(end) = url.rfind('@').filter(|end| *end >= start) else {
        return format!("`{url}`");
    };
    let user = url[start..end].split_once(':').map_or("", |(user, _)| user);
    format!("`{}{user}:***{}`", &url[..start], &url[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        parse(url).expect_err(url).to_string()
    }

    #[test]
    fn one_server_is_read() {
        let config = parse("rediss://me:p%40%3Ass@host/3?ca_file=/a%20b.pem").unwrap();
        assert_eq!(config.deployment, Deployment::Single);
        assert_eq!(config.addresses, [Address::new("host", 6379)]);
        assert_eq!((config.database, config.transport), (3, Transport::Tls));
        assert_eq!(config.authorities, Authorities::File("/a b.pem".into()));
        let login = config.login.unwrap();
        assert_eq!(login.username.as_deref(), Some("me"));
        assert_eq!(login.password, "p@:ss");
        let login = parse("redis://:word@host").unwrap().login.unwrap();
        assert_eq!((login.username, login.password.as_str()), (None, "word"));
    }

    #[test]
    fn a_cluster_is_read() {
        let config = parse("redis+cluster://a,b:7000,[::1]:7001/").unwrap();
        assert_eq!(config.deployment, Deployment::Cluster);
        let addresses: Vec<_> = config.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["a:6379", "b:7000", "[::1]:7001"]);
    }

    #[test]
    fn sentinels_are_read() {
        let config = parse("rediss+sentinel://:x@a,b:1/my%20main/2").unwrap();
        let service = "my main".to_owned();
        assert_eq!(config.deployment, Deployment::Sentinel { service });
        let addresses: Vec<_> = config.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["a:26379", "b:1"]);
        assert_eq!((config.database, config.transport), (2, Transport::Tls));
    }

    #[test]
    fn other_urls_are_refused_with_what_is_allowed() {
        let cases = [
            ("localhost:6379", "redis://host:port/database"),
            ("http://localhost", "redis://host:port/database"),
            ("redis+unix:///a", "redis://host:port/database"),
            ("redis://", "a host"),
            ("redis://a:b", "a port from 1 to 65535"),
            ("redis://a/b", "a database by its number"),
            ("redis://a/-1", "a database by its number"),
            ("redis://a,b", "one host"),
            ("redis+cluster://a/1", "no database but 0"),
            ("redis+sentinel://a,b", "the service's name"),
            ("redis+sentinel://a,b/main/x", "a database by its number"),
            ("redis://me@a", "a password too"),
            ("redis://a?timeout=3", "no settings but"),
            ("redis://a?ca_file=x", "a scheme for TLS"),
            ("rediss://a?ca_file=", "no settings but"),
            ("redis://:%ff@a", "UTF-8"),
        ];
        for (url, allowed) in cases {
            let refusal = refusal(url);
            assert!(refusal.contains(allowed), "{url}: {refusal}");
            assert!(
                refusal.starts_with("the Redis URL cannot be `"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn no_password_is_shown() {
        let urls = [
            "redis://me:secret@host/x",
            "redis://:secret@host:x",
            "redis://me:sec@secret@host/x",
            "redis://me:/secret@host:1",
            "http://me:secret@host",
            "me:secret@host",
            "redis://me:secret?secret@host",
        ];
        for url in urls {
            let refusal = refusal(url);
            assert!(!refusal.contains("secret"), "{refusal}");
        }
        let config = parse("redis://me:secret@host").unwrap();
        let config = config
            .sentinel_login(None, "secret")
            .login(Some("me"), "secret");
        assert!(!format!("{config:?}").contains("secret"));
    }
}
