//! The examples that need no server and end by themselves.

use std::process::Command;

/// What an example prints. Cargo builds it first, with the facade's own features alone.
fn run(example: &str) -> Vec<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--quiet", "--package", "backstop"])
        .args(["--no-default-features", "--example", example])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example}: {error}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

#[test]
fn in_memory_absorbs_a_repeat_retries_and_dead_letters() {
    let said = run("in_memory");
    let (charges, ending) = said.split_at(said.len().saturating_sub(2));
    let mut charges = charges.to_vec();
    charges.sort_unstable();
    assert_eq!(
        charges,
        ["order 1: charged 10", "order 2: charged 20"],
        "{said:?}"
    );
    assert_eq!(
        ending,
        [
            "2 completed, 1 repeat absorbed, 1 retried",
            "dead letter: permanent-error (a negative amount)"
        ],
        "{said:?}"
    );
}

#[test]
fn ordered_keeps_the_order_of_each_account_through_retries() {
    let said = run("ordered");
    let of = |account: &str| -> Vec<&str> {
        let lines = said.iter().filter_map(|line| line.strip_prefix(account));
        lines.collect()
    };
    assert_eq!(
        of("alice: "),
        [
            "open failed, attempt 1",
            "open failed, attempt 2",
            "open",
            "deposit",
            "close"
        ]
    );
    assert_eq!(of("bob: "), ["open", "deposit", "close"]);
    assert_eq!(said.last().map(String::as_str), Some("6 completed"));
}
