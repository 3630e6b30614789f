//! What once failed: it is run for ever.

use std::path::Path;

use backstop_sim::{Setting, Tracing, by_list, by_seed, decode};

#[test]
fn what_once_failed_does_not_fail_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut entries = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        for line in lines {
            let outcome = match line.strip_prefix("seed ") {
                Some(seed) => by_seed(&Setting::Random, seed.parse().unwrap(), Tracing::Off),
                None => by_list(&Setting::Random, &decode(line).unwrap(), Tracing::Off),
            };
            assert_eq!(outcome.violation, None, "{}: {line}", path.display());
            entries += 1;
        }
    }
    assert!(entries > 0, "the corpus is not empty");
}
