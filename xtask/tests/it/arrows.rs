//! Who may depend on whom. `deny.toml` says the same of the clients of brokers and stores.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// What each package of ours may use of ours. The tests of a package may also use what [`FOR_TESTS`]
/// names.
const ARROWS: &[(&str, &[&str])] = &[
    ("backstop-core", &[]),
    ("backstop-conformance", &["backstop-core"]),
    ("backstop-rabbitmq", &["backstop-core"]),
    ("backstop-redis-dedupe", &["backstop-core"]),
    ("backstop-sqs", &["backstop-core"]),
    (
        "backstop",
        &[
            "backstop-core",
            "backstop-rabbitmq",
            "backstop-redis-dedupe",
            "backstop-sqs",
        ],
    ),
    ("backstop-cli", &["backstop"]),
    (
        "bench",
        &[
            "backstop",
            "backstop-core",
            "backstop-rabbitmq",
            "backstop-redis-dedupe",
            "backstop-sqs",
            "integration",
        ],
    ),
    (
        "integration",
        &[
            "backstop",
            "backstop-conformance",
            "backstop-core",
            "backstop-rabbitmq",
            "backstop-redis-dedupe",
            "backstop-sqs",
        ],
    ),
    ("backstop-sim", &["backstop-core"]),
    ("xtask", &[]),
];

const FOR_TESTS: &[&str] = &["backstop-conformance", "integration"];

/// The clients of brokers and stores, each with the packages that may name it. The benchmark measures
/// against them, and fault tests look at a server behind the adapter's back.
const CLIENTS: &[(&str, &[&str])] = &[
    ("lapin", &["backstop-rabbitmq", "bench", "integration"]),
    ("redis", &["backstop-redis-dedupe", "bench", "integration"]),
    ("aws-config", &["backstop-sqs", "bench", "integration"]),
    ("aws-sdk-sqs", &["backstop-sqs", "bench", "integration"]),
    (
        "aws-smithy-http-client",
        &["backstop-sqs", "bench", "integration"],
    ),
    ("testcontainers", &["integration"]),
];

/// Parts of clients that other parts name as well, which is why `deny.toml` does not ban them.
const PARTS: &[(&str, &[&str])] = &[("aws-smithy-runtime-api", &["backstop-sqs", "bench"])];

fn workspace() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .expect("cargo metadata of the workspace")
}

fn dependencies(package: &Package, is_wanted: impl Fn(DependencyKind) -> bool) -> BTreeSet<&str> {
    let wanted = package
        .dependencies
        .iter()
        .filter(|dependency| is_wanted(dependency.kind));
    wanted.map(|dependency| dependency.name.as_str()).collect()
}

fn allowed(package: &str) -> &'static [&'static str] {
    let arrows = ARROWS.iter().find(|(name, _)| *name == package);
    let (_, allowed) = arrows.unwrap_or_else(|| panic!("{package} has no row in ARROWS: add one"));
    allowed
}

#[test]
fn packages_use_only_those_below_them() {
    let workspace = workspace();
    let ours: BTreeSet<_> = workspace
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    for package in &workspace.packages {
        let allowed = allowed(&package.name);
        let used = dependencies(package, |kind| kind != DependencyKind::Development);
        for used in used.intersection(&ours) {
            assert!(allowed.contains(used), "{} uses {used}", package.name);
        }
        let used_by_tests = dependencies(package, |kind| kind == DependencyKind::Development);
        for used in used_by_tests.intersection(&ours) {
            let is_fine = allowed.contains(used) || FOR_TESTS.contains(used);
            assert!(is_fine, "the tests of {} use {used}", package.name);
        }
    }
}

#[test]
fn a_client_is_named_only_by_its_own_package() {
    for package in &workspace().packages {
        let name = package.name.as_str();
        let used = dependencies(package, |_| true);
        for (client, owners) in CLIENTS.iter().chain(PARTS) {
            let is_fine = !used.contains(client) || owners.contains(&name);
            assert!(is_fine, "{name} names {client}");
        }
    }
}

/// A client that nobody listed would be anybody's.
#[test]
fn each_part_of_a_brokers_sdk_is_listed() {
    for package in &workspace().packages {
        for used in dependencies(package, |_| true) {
            let mut listed = CLIENTS.iter().chain(PARTS).map(|(client, _)| *client);
            let is_fine = !used.starts_with("aws-") || listed.any(|client| client == used);
            assert!(is_fine, "{} names {used}: add it to CLIENTS", package.name);
        }
    }
}

/// `cargo deny` is not installed everywhere; this keeps its list the same as the one above.
#[test]
fn deny_bans_each_client_too() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../deny.toml");
    let deny = std::fs::read_to_string(manifest).expect("deny.toml");
    let banned: BTreeMap<&str, BTreeSet<&str>> = deny.lines().filter_map(ban).collect();
    let listed = CLIENTS.iter().map(|(client, _)| *client);
    let named: BTreeSet<&str> = banned.keys().copied().collect();
    assert_eq!(named, listed.collect(), "the clients in deny.toml");
    for (client, owners) in CLIENTS {
        // A client's own crates may stand there as well.
        let ours = |name: &&str| ARROWS.iter().any(|(package, _)| package == name);
        let allowed: BTreeSet<&str> = banned[client].iter().copied().filter(ours).collect();
        let owners: BTreeSet<&str> = owners.iter().copied().collect();
        assert_eq!(allowed, owners, "those whom deny.toml lets use {client}");
    }
}

/// A crate and its wrappers, from `{ crate = "lapin", wrappers = ["backstop-rabbitmq"] },`.
fn ban(line: &str) -> Option<(&str, BTreeSet<&str>)> {
    let (banned, wrappers) = line
        .trim()
        .strip_prefix("{ crate = ")?
        .split_once("wrappers = ")?;
    // What stands between quotes is every second part.
    let wrappers = wrappers.split('"').skip(1).step_by(2);
    Some((banned.split('"').nth(1)?, wrappers.collect()))
}
