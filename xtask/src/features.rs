//! Which features are compiled together.
//!
//! Cargo joins the features of all packages that it builds at once. What a package lacks shows only
//! when it is built without the others.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use cargo_metadata::{MetadataCommand, Package};

use crate::shell;

/// Breaks the core on purpose, for tests of the simulator alone.
const PLANTED: &str = "planted";

/// Features that users switch on together: a broker and a store.
const TOGETHER: &[(&str, &[&str])] = &[("backstop", &["rabbitmq,redis", "redis,sqs"])];

/// Checks each package with none of its features, with each alone, and with those that go together;
/// then runs the tests of what a facade without features says.
pub(crate) fn check() -> Result<()> {
    for package in packages()? {
        for features in sets(&package) {
            println!("{} with {features:?}", package.name);
            let name = package.name.as_str();
            lint(&[
                "--package",
                name,
                "--all-targets",
                "--no-default-features",
                "--features",
                &features,
            ])?;
        }
    }
    shell::cargo(&[
        "test",
        "--package",
        "backstop",
        "--no-default-features",
        "--lib",
    ])
}

/// Every feature but [`PLANTED`], as `cargo --features` takes them for the whole workspace.
pub(crate) fn all_of_users() -> Result<String> {
    let mut all = Vec::new();
    for package in packages()? {
        let wanted = names(&package).into_iter().filter(|name| *name != PLANTED);
        all.extend(wanted.map(|feature| format!("{}/{feature}", package.name)));
    }
    Ok(all.join(","))
}

/// Runs clippy, where a warning is an error.
pub(crate) fn lint(what: &[&str]) -> Result<()> {
    let mut clippy = shell::cargo_command();
    clippy.args(["clippy", "--quiet"]).args(what);
    shell::run(clippy.args(["--", "--deny", "warnings"]))
}

/// Our packages that have features.
fn packages() -> Result<Vec<Package>> {
    let metadata = MetadataCommand::new()
        .manifest_path(shell::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot read the workspace")?;
    let mut packages = metadata.packages;
    packages.retain(|package| !names(package).is_empty());
    Ok(packages)
}

fn names(package: &Package) -> BTreeSet<&str> {
    let names = package.features.keys().map(String::as_str);
    names.filter(|name| *name != "default").collect()
}

fn sets(package: &Package) -> BTreeSet<String> {
    let names = names(package);
    let all: Vec<_> = names.iter().copied().collect();
    let together = TOGETHER.iter().find(|(name, _)| package.name == *name);
    let together = together.map_or(&[][..], |(_, sets)| sets);
    let mut sets: BTreeSet<String> = names.into_iter().map(str::to_owned).collect();
    sets.extend(together.iter().map(|set| (*set).to_owned()));
    sets.insert(String::new());
    sets.insert(all.join(","));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facade_is_built_as_its_users_build_it() {
        let packages = packages().expect("the workspace");
        let facade = packages.iter().find(|package| package.name == "backstop");
        let sets: Vec<_> = sets(facade.expect("the facade")).into_iter().collect();
        assert_eq!(
            sets,
            [
                "",
                "rabbitmq",
                "rabbitmq,redis",
                "rabbitmq,redis,sqs",
                "redis",
                "redis,sqs",
                "sqs"
            ]
        );
    }

    #[test]
    fn no_bug_is_planted_for_users() {
        let all = all_of_users().expect("the workspace");
        assert!(all.contains("backstop/rabbitmq"), "{all}");
        assert!(!all.contains(PLANTED), "{all}");
    }
}
