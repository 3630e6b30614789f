//! What is unsafe about a queue.

use std::time::Duration;

use backstop_core::{
    BrokerError, BrokerErrorKind, Finding, Severity, SubscribeOptions, SubscriptionOrder,
};

use crate::broker::Shared;
use crate::config::{QueueKind, SqsConfig};
use crate::topology::{self, Queue, RedrivePolicy};

/// A lease has to outlast the asking for more of it.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// Below this an extension that has to be repeated may come too late.
const SHORT_LEASE: Duration = Duration::from_secs(10);

/// What is unsafe about the queue for a consumer.
pub(crate) async fn findings(
    shared: &Shared,
    options: &SubscribeOptions,
) -> Result<Vec<Finding>, BrokerError> {
    let link = &shared.link;
    let (_, source) = topology::look_at_source(link).await?;
    let mut findings = Vec::new();
    judge_lease(&mut findings, &source, options, &link.config);
    let Some((policy, (account, name))) = source
        .redrive
        .as_ref()
        .and_then(|policy| Some((policy, policy.target()?)))
    else {
        findings.push(no_dead_letter_queue(&link.config));
        return Ok(findings);
    };
    judge_count(&mut findings, policy, options, &link.config);
    let looked = async {
        let url = link.look_up_in(name, Some(account)).await?;
        topology::look(link, &url, name).await
    };
    match looked.await {
        Ok(letters) => judge_target(&mut findings, name, &letters, &source, &link.config),
        Err(error) if error.kind() == BrokerErrorKind::NotFound => {
            let problem =
                format!("the dead-letter queue {name:?} does not exist: poison would have no exit");
            let fix = "create it, or name another in the RedrivePolicy";
            findings.push(finding(
                Severity::Refusal,
                "deadLetterTargetArn",
                problem,
                fix,
            ));
        }
        // Who may only send to it is not to be kept from consuming.
        Err(error) if error.kind() == BrokerErrorKind::AccessDenied => {
            let problem = format!(
                "the dead-letter queue {name:?} may not be looked at: its kind and retention cannot be \
                 checked"
            );
            let fix = "allow sqs:GetQueueUrl and sqs:GetQueueAttributes on it";
            findings.push(finding(
                Severity::Warning,
                "deadLetterTargetArn",
                problem,
                fix,
            ));
        }
        Err(error) => return Err(error),
    }
    Ok(findings)
}

fn judge_lease(
    findings: &mut Vec<Finding>,
    source: &Queue,
    options: &SubscribeOptions,
    config: &SqsConfig,
) {
    let queue = &config.queue;
    let (setting, lease) = match config.lease {
        Some(seconds) => ("lease", Duration::from_secs(seconds.into())),
        None => ("VisibilityTimeout", source.visibility),
    };
    let fix = "set it to 30 s or more: it is extended while a handler runs";
    if lease < SHORTEST_LEASE {
        let problem = format!(
            "messages of {queue:?} are leased for {lease:?}: too short to be extended in time"
        );
        findings.push(finding(Severity::Refusal, setting, problem, fix));
    } else if lease < SHORT_LEASE {
        let problem = format!(
            "messages of {queue:?} are leased for {lease:?}: where SQS answers slowly they may be delivered \
             twice"
        );
        findings.push(finding(Severity::Warning, setting, problem, fix));
    }
    let longest = options.handler_timeout.saturating_add(options.longest_wait);
    if longest > SqsConfig::MAX_LEASE {
        let problem = format!(
            "an attempt and the wait behind it may take {longest:?}, and SQS leases a message for 12 hours \
             in all"
        );
        let fix = "lower handler_timeout or the cap of the backoff";
        findings.push(finding(Severity::Refusal, "handler_timeout", problem, fix));
        return;
    }
    // In order a message waits under its lease, and SQS counts the time of all its attempts.
    let in_all = longest.saturating_mul(options.max_attempts.get());
    if options.order == SubscriptionOrder::ByPartitionKey && in_all > SqsConfig::MAX_LEASE {
        let problem = format!(
            "in order, the attempts at a message and the waits between them may take {in_all:?}, and SQS \
             leases it for 12 hours in all: what takes longer is delivered again, and counted, ahead of its time"
        );
        let fix = "lower max_attempts, handler_timeout or the cap of the backoff";
        findings.push(finding(Severity::Warning, "max_attempts", problem, fix));
    }
}

/// What SQS should count at least before it moves a message away: as many receipts again as there are
/// attempts, and ten. Whatever is given back costs a receipt (a shutdown, the breaker, a claim of another
/// process), and so does a process that dies.
const fn enough_receipts(attempts: u32) -> u32 {
    let enough = attempts.saturating_mul(2).saturating_add(10);
    if enough > 1000 { 1000 } else { enough }
}

fn judge_count(
    findings: &mut Vec<Finding>,
    policy: &RedrivePolicy,
    options: &SubscribeOptions,
    config: &SqsConfig,
) {
    let (native, attempts) = (policy.max_receive_count, options.max_attempts.get());
    let enough = enough_receipts(attempts);
    let good = SqsConfig::DEFAULT_MAX_RECEIVE_COUNT.max(enough);
    if native <= attempts {
        let problem = format!(
            "SQS moves a message of {:?} away after {native} receipts, and the consumer's cap is {attempts} \
             attempts: it would go without a reason, or while its last attempt runs",
            config.queue
        );
        let fix = format!(
            "set maxReceiveCount to more than {attempts} (releases count too: {good} is a good number), or lower \
             max_attempts"
        );
        findings.push(finding(Severity::Refusal, "maxReceiveCount", problem, &fix));
    } else if native < enough {
        let problem = format!(
            "SQS moves a message of {:?} away after {native} receipts, and {attempts} attempts are the consumer's \
             cap: what is given back (by a shutdown, the breaker, a claim of another process) is a receipt, too, \
             and may send a message away before its last attempt",
            config.queue
        );
        let fix = format!("set maxReceiveCount to {enough} or more ({good} is a good number)");
        findings.push(finding(Severity::Warning, "maxReceiveCount", problem, &fix));
    }
}

fn judge_target(
    findings: &mut Vec<Finding>,
    name: &str,
    letters: &Queue,
    source: &Queue,
    config: &SqsConfig,
) {
    if QueueKind::of(name) != config.kind() {
        let problem = format!(
            "the dead-letter queue {name:?} is of another kind than {:?}: SQS moves nothing there",
            config.queue
        );
        let fix = "name one of the same kind: FIFO for FIFO, standard for standard";
        findings.push(finding(
            Severity::Refusal,
            "deadLetterTargetArn",
            problem,
            fix,
        ));
    }
    if letters.retention < source.retention {
        let problem = format!(
            "the dead-letter queue {name:?} keeps messages for {:?}, and the queue for {:?}; what SQS moves \
             keeps its age, and may be gone when it arrives",
            letters.retention, source.retention
        );
        let fix = "raise its MessageRetentionPeriod, to 1209600 (14 days) at best";
        findings.push(finding(
            Severity::Refusal,
            "MessageRetentionPeriod",
            problem,
            fix,
        ));
    }
    if letters.max_bytes < source.max_bytes {
        let problem = format!(
            "the dead-letter queue {name:?} takes messages of {} bytes, and the queue of {}: large ones have \
             no exit",
            letters.max_bytes, source.max_bytes
        );
        let fix = "raise its MaximumMessageSize to the queue's";
        findings.push(finding(
            Severity::Refusal,
            "MaximumMessageSize",
            problem,
            fix,
        ));
    }
    if letters.redrive.is_some() {
        let problem = format!(
            "the dead-letter queue {name:?} has a RedrivePolicy of its own: what is looked at often moves on"
        );
        let fix = "remove it";
        findings.push(finding(Severity::Warning, "RedrivePolicy", problem, fix));
    }
}

fn no_dead_letter_queue(config: &SqsConfig) -> Finding {
    let problem = format!(
        "the queue {:?} has no RedrivePolicy: poison would have no exit",
        config.queue
    );
    let fix = format!(
        "create a dead-letter queue of the same kind ({:?}, say) and set the RedrivePolicy to \
         {{\"deadLetterTargetArn\": \"<its ARN>\", \"maxReceiveCount\": {}}}; declare=true does both for a queue \
         that it creates",
        config.dead_letter_queue, config.max_receive_count
    );
    finding(Severity::Refusal, "RedrivePolicy", problem, &fix)
}

fn finding(severity: Severity, setting: &str, problem: String, fix: &str) -> Finding {
    Finding {
        severity,
        setting: setting.to_owned(),
        problem,
        fix: fix.to_owned(),
    }
}

#[cfg(test)]
mod tests;
