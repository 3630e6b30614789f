//! Whether the servers keep records as the store needs it.

use backstop_core::{Finding, Severity};
use redis::{Pipeline, Value};
use tokio::time::{Instant, timeout_at};

use crate::address::Address;
use crate::connection::no_error;
use crate::error::Fault;
use crate::servers::{Route, Servers};

/// Scripts with flags came with Redis 7.0.
const OLDEST: (u32, u32) = (7, 0);

pub(crate) async fn inspect(servers: &Servers) -> Result<Vec<Finding>, Fault> {
    let config = &servers.dialer.config;
    let until = Instant::now() + config.response_timeout;
    let mut findings = Vec::new();
    for route in servers.all(until).await? {
        let asked = timeout_at(until, info(servers, &route)).await;
        let (address, text) = asked.unwrap_or_else(|_| {
            let target = servers.dialer.target(route.node());
            Err(Fault::silent(target))
        })?;
        let wanted = config.replica_wait.map_or(0, |wait| wait.replicas.get());
        findings.extend(judge(&address, &text, wanted));
    }
    Ok(findings)
}

/// Over a connection of its own, without scripts: a server that is too old takes none.
async fn info(servers: &Servers, route: &Route<'_>) -> Result<(Address, String), Fault> {
    let connection = servers.dialer.reach(route.node()).await?;
    let address = connection.address.clone();
    let mut question = Pipeline::new();
    question.cmd("INFO");
    let answer = connection.ask(&question).await?.into_iter().next();
    match no_error(&address, answer.ok_or_else(Fault::senseless)?)? {
        Value::BulkString(text) => Ok((address, String::from_utf8_lossy(&text).into_owned())),
        _ => Err(Fault::senseless()),
    }
}

fn judge(address: &Address, info: &str, replicas: u32) -> Vec<Finding> {
    let field = |name: &str| {
        let find = |line: &'_ str| {
            line.strip_prefix(name)?
                .strip_prefix(':')
                .map(str::to_owned)
        };
        info.lines().find_map(find)
    };
    let warn = |setting: &str, problem: String, fix: &str| Finding {
        severity: Severity::Warning,
        setting: setting.to_owned(),
        problem,
        fix: fix.to_owned(),
    };
    let mut findings = Vec::new();
    if let Some(policy) = field("maxmemory_policy").filter(|policy| policy != "noeviction") {
        let problem = format!(
            "redis at {address} has maxmemory-policy {policy}: when it is full it drops records, \
             and their messages are handled again"
        );
        let fix = "set maxmemory-policy to noeviction, and a maxmemory that holds the records of one \
                   retention";
        findings.push(warn("maxmemory-policy", problem, fix));
    }
    if let Some(version) = field("redis_version").filter(|version| is_too_old(version)) {
        let problem = format!("redis at {address} is version {version}; the store needs 7.0");
        findings.push(warn(
            "redis_version",
            problem,
            "upgrade the server to 7.0 or later",
        ));
    }
    let connected = field("connected_slaves").and_then(|count| count.parse::<u32>().ok());
    if let Some(connected) = connected.filter(|connected| *connected < replicas) {
        let problem = format!(
            "redis at {address} has {connected} replicas, and wait_for_replicas waits for \
             {replicas}: every call will fail"
        );
        let fix = "connect more replicas, or wait for fewer";
        findings.push(warn("wait_for_replicas", problem, fix));
    }
    findings
}

fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), minor) => (major, minor.unwrap_or(0)) < OLDEST,
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(info: &str, replicas: u32) -> Vec<String> {
        let address = Address::new("host", 1);
        let findings = judge(&address, info, replicas);
        findings
            .into_iter()
            .map(|finding| finding.setting)
            .collect()
    }

    #[test]
    fn a_sound_server_gives_no_finding() {
        let info = "redis_version:8.0.6\r\nmaxmemory_policy:noeviction\r\nconnected_slaves:1\r\n";
        assert!(settings(info, 1).is_empty());
        assert!(settings("redis_version:7.0.0", 0).is_empty());
        assert!(settings("redis_version:255.255.255", 0).is_empty());
    }

    #[test]
    fn what_endangers_records_is_found() {
        let info = "redis_version:6.2.14\r\nmaxmemory_policy:allkeys-lru\r\nconnected_slaves:1\r\n";
        let wanted = ["maxmemory-policy", "redis_version", "wait_for_replicas"];
        assert_eq!(settings(info, 2), wanted);
    }
}
