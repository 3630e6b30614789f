//! The Rust that `Cargo.toml` promises is the one that CI builds with.

#[test]
fn ci_builds_with_the_oldest_rust_that_is_promised() {
    let read = |name: &str| {
        let path = format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).expect(&path)
    };
    let manifest = read("Cargo.toml");
    let mut lines = manifest.lines();
    let promised = lines.find_map(|line| line.strip_prefix("rust-version = "));
    let promised = promised.expect("a rust-version").trim_matches('"');
    let ci = read(".github/workflows/ci.yml");
    for command in [
        format!("rustup toolchain install {promised} "),
        format!("cargo +{promised} check --workspace --all-features"),
    ] {
        assert!(ci.contains(&command), "ci.yml does not run {command:?}");
    }
}
