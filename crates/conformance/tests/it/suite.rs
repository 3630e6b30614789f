use std::collections::BTreeSet;
use std::sync::Arc;

use backstop_conformance::Report;
use backstop_conformance::broker::run_all;

use crate::in_process::{Dress, InProcess, Time};

/// Its queues are made by their handles, and its delays have no maximum.
const BEYOND_IT: &[&str] = &["D7", "R12"];

/// The groups, and how many cases each has.
const GROUPS: &[(&str, &[u32])] = &[
    ("D", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("R", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
    ("L", &[1, 2, 3, 4, 10]),
    ("I", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    ("E", &[1, 2, 3, 4, 5]),
    ("O", &[1, 2, 3, 4, 5, 6, 7]),
    ("F", &[1, 2, 3, 4, 5, 6, 7]),
];

/// Every case was passed or left out: none has fallen out of the suite's tables.
fn must_be_whole(report: &Report) {
    if std::env::var_os("BACKSTOP_CASE").is_some() {
        return;
    }
    let passed = report.passed.iter().map(|(case, _)| *case);
    let left_out = report.left_out.iter().map(|left_out| left_out.case);
    let seen: BTreeSet<_> = passed.chain(left_out).map(str::to_owned).collect();
    let of_group = |(group, numbers): &(&str, &[u32])| {
        let ids: Vec<_> = numbers.iter().map(|n| format!("{group}{n}")).collect();
        ids
    };
    let all: BTreeSet<_> = GROUPS.iter().flat_map(of_group).collect();
    assert_eq!(seen, all, "{report}");
}

#[tokio::test(start_paused = true)]
async fn the_in_process_broker_passes_the_suite() {
    let harness = InProcess::new(Dress::Own, Time::Paused);
    let report = run_all(Arc::new(harness)).await;
    report.assert_passed_but(BEYOND_IT);
    must_be_whole(&report);
}

#[tokio::test(start_paused = true)]
async fn the_in_process_broker_passes_the_suite_in_the_dress_of_a_hosted_one() {
    let harness = InProcess::new(Dress::Hosted, Time::Paused);
    run_all(Arc::new(harness)).await.assert_passed_but(&["D7"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_in_process_broker_passes_the_suite_in_real_time() {
    let harness = InProcess::new(Dress::Own, Time::Real);
    run_all(Arc::new(harness))
        .await
        .assert_passed_but(BEYOND_IT);
}
