//! The commands in README.md are commands that exist.

use std::path::{Path, PathBuf};

use clap::Parser as _;

use crate::Arguments;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The lines of the `sh` blocks.
fn commands(text: &str) -> Vec<&str> {
    let mut lines = text.lines();
    let mut commands = Vec::new();
    while lines.any(|line| line == "```sh") {
        commands.extend(lines.by_ref().take_while(|line| *line != "```"));
    }
    commands
}

/// The words of a line that has no other syntax of the shell than single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for character in line.chars() {
        match character {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            '"' | '\\' | '$' | '|' | '>' | '<' | '&' | ';' | '*' | '#' if !is_quoted => {
                panic!("this test does not read {character:?}: {line}")
            }
            _ => words.last_mut().unwrap().push(character),
        }
    }
    assert!(!is_quoted, "a quote is not closed: {line}");
    words
}

fn assert_parses<'a>(words: impl IntoIterator<Item = &'a str>) {
    let words: Vec<_> = words.into_iter().collect();
    if let Err(error) = Arguments::try_parse_from(&words) {
        panic!("{words:?}: {error}");
    }
}

/// What a `cargo` alias of this workspace stands for.
fn alias(name: &str) -> Vec<String> {
    let config = read(".cargo/config.toml");
    let begin = format!("{name} = \"");
    let line = config.lines().find_map(|line| line.strip_prefix(&begin));
    let line = line.unwrap_or_else(|| panic!("there is no alias {name}"));
    words(line.trim_end_matches('"'))
}

fn assert_cargo_knows(arguments: &[String]) {
    match arguments[0].as_str() {
        "demo" => {
            let alias = alias("demo");
            let at = alias.iter().position(|word| word == "--").unwrap();
            let runs = "run --quiet --package backstop-cli --bin backstop";
            assert_eq!(alias[..at].join(" "), runs);
            let own = alias[at + 1..].iter().chain(&arguments[1..]);
            assert_parses(std::iter::once("backstop").chain(own.map(String::as_str)));
        }
        // Its arguments are read by a test of xtask.
        "xtask" => assert!(alias("xtask").join(" ").contains("--package xtask")),
        "install" => {
            let path = arguments.iter().position(|word| word == "--path");
            let manifest = Path::new(&arguments[path.unwrap() + 1]).join("Cargo.toml");
            let manifest = read(manifest.to_str().unwrap());
            assert!(manifest.contains("[[bin]]\nname = \"backstop\""));
        }
        other => panic!("cargo {other}"),
    }
}

#[test]
fn every_command_in_the_readme_exists() {
    let readme = read("README.md");
    let mut tools = std::collections::BTreeSet::new();
    for line in commands(&readme) {
        let words = words(line);
        match words[0].as_str() {
            "backstop" => assert_parses(words.iter().map(String::as_str)),
            "cargo" => assert_cargo_knows(&words[1..]),
            _ => panic!("nothing checks this: {line}"),
        }
        tools.insert(words[..2].join(" "));
    }
    for known in [
        "backstop run",
        "backstop publish",
        "cargo demo",
        "cargo xtask",
        "cargo install",
    ] {
        assert!(tools.contains(known), "the README does not say {known}");
    }
}

#[test]
fn words_are_split_as_a_shell_splits_them() {
    assert_eq!(
        words("backstop run --url 'amqp://host/?queue=a&b=c d' -- ./x"),
        [
            "backstop",
            "run",
            "--url",
            "amqp://host/?queue=a&b=c d",
            "--",
            "./x"
        ]
    );
}
