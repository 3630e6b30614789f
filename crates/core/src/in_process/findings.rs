//! What is unsafe about an in-process broker's set-up.

use std::time::Duration;

use super::connection::Shared;
use super::queue::DeadLettering;
use crate::ports::{Finding, Severity, SubscribeOptions};

pub(super) fn findings(shared: &Shared, options: &SubscribeOptions) -> Vec<Finding> {
    let refusal = |setting: &str, problem: String, fix: String| Finding {
        severity: Severity::Refusal,
        setting: setting.to_owned(),
        problem,
        fix,
    };
    let mut findings = Vec::new();
    if shared.settings.dead_lettering == DeadLettering::Absent {
        findings.push(refusal(
            "dead_letter_queue",
            "the queue has no dead-letter queue".to_owned(),
            "build the broker without without_dead_letter_queue()".to_owned(),
        ));
    }
    let (limit, cap) = (shared.settings.delivery_limit, options.max_attempts);
    if limit <= cap.get() {
        findings.push(refusal(
            "delivery_limit",
            format!("the broker's limit of {limit} is not above max_attempts, {cap}"),
            format!("raise delivery_limit above {cap}, or lower max_attempts"),
        ));
    }
    if shared.settings.lease == Duration::ZERO {
        findings.push(refusal(
            "lease",
            "a lease of zero ends before a handler can start".to_owned(),
            "raise lease, to 30 s for example".to_owned(),
        ));
    }
    let wait = options.longest_wait;
    if let Some(limit) = shared.capabilities.max_delay.filter(|limit| wait > *limit) {
        findings.push(refusal(
            "max_delay",
            format!("a retry may wait for {wait:?}, and the broker delays by at most {limit:?}"),
            "raise max_delay, or lower the cap of the backoff".to_owned(),
        ));
    }
    findings
}
