//! Where a server listens.

use std::fmt;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    pub(crate) fn new(host: impl Into<String>, port: u16) -> Self {
        let host = host.into();
        Self { host, port }
    }

    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`.
    pub(crate) fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':')?),
                };
                (host, port)
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() {
            return None;
        }
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port != 0)?,
            None => default_port,
        };
        Some(Self::new(host, port))
    }

    /// Reads what a cluster's `MOVED` and `ASK` say: the last colon parts host and port, also in an
    /// IPv6 address, which has no brackets there.
    pub(crate) fn parse_redirect(text: &str, asked: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host {
            // A node that does not know its own address: it is where it was asked.
            "" | "?" => &asked.host,
            host => host,
        };
        Some(Self::new(host, port.parse().ok()?))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn hosts_and_ports_are_read() {
        let read = |text| Address::parse(text, 6379).map(|address| address.to_string());
        let cases = [
            ("a", Some("a:6379")),
            ("a.b:1", Some("a.b:1")),
            ("[::1]", Some("[::1]:6379")),
            ("[::1]:7", Some("[::1]:7")),
            ("", None),
            (":1", None),
            ("a:", None),
            ("a:0", None),
            ("a:65536", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]7", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(read(text).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn redirects_are_read() {
        let asked = Address::new("here", 1);
        let read = |text| Address::parse_redirect(text, &asked);
        assert_eq!(read("10.0.0.1:7000"), Some(Address::new("10.0.0.1", 7000)));
        assert_eq!(read(":7000"), Some(Address::new("here", 7000)));
        assert_eq!(read("fe80::1:7000"), Some(Address::new("fe80::1", 7000)));
        assert_eq!(read("nonsense"), None);
    }
}
