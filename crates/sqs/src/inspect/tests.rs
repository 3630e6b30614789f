use std::num::{NonZeroU32, NonZeroUsize};

use backstop_core::{Broker as _, SubscriptionOrder};
use serde_json::json;

use super::*;
use crate::broker::Sqs;
use crate::scripted::{Answer, Script};

fn queue() -> Queue {
    Queue {
        arn: "arn:aws:sqs:eu-west-1:123456789012:orders".to_owned(),
        visibility: Duration::from_secs(30),
        retention: Duration::from_hours(96),
        max_bytes: 1_048_576,
        redrive: None,
        depth: 0,
    }
}

fn options() -> SubscribeOptions {
    SubscribeOptions {
        consumer: "billing".into(),
        order: SubscriptionOrder::Unordered,
        max_buffered: NonZeroUsize::MIN,
        max_attempts: NonZeroU32::new(5).unwrap(),
        handler_timeout: Duration::from_mins(1),
        longest_wait: Duration::from_mins(5),
    }
}

fn config(url: &str) -> SqsConfig {
    SqsConfig::from_url(url).unwrap()
}

fn settings(judge: impl FnOnce(&mut Vec<Finding>)) -> Vec<(Severity, String)> {
    let mut findings = Vec::new();
    judge(&mut findings);
    let pair = |finding: Finding| {
        assert!(!finding.problem.is_empty() && !finding.fix.is_empty());
        (finding.severity, finding.setting)
    };
    findings.into_iter().map(pair).collect()
}

fn refusal(setting: &str) -> Vec<(Severity, String)> {
    vec![(Severity::Refusal, setting.to_owned())]
}

#[test]
fn the_native_cap_has_to_be_above_ours() {
    let policy = |max_receive_count| RedrivePolicy {
        dead_letter_target_arn: "arn:aws:sqs:eu-west-1:123456789012:dead".to_owned(),
        max_receive_count,
    };
    let judged = |count| {
        settings(|findings| judge_count(findings, &policy(count), &options(), &config("sqs:///q")))
    };
    assert_eq!(judged(5), refusal("maxReceiveCount"));
    // Releases are receipts, too.
    let warning = [(Severity::Warning, "maxReceiveCount".to_owned())];
    assert_eq!(judged(6), warning);
    assert_eq!(judged(19), warning);
    assert_eq!(judged(20), []);
}

#[test]
fn in_order_all_attempts_and_waits_have_to_fit_into_twelve_hours() {
    let judged = |order, max_attempts| {
        let options = SubscribeOptions {
            order,
            max_attempts: NonZeroU32::new(max_attempts).unwrap(),
            longest_wait: Duration::from_mins(59),
            ..options()
        };
        settings(|findings| judge_lease(findings, &queue(), &options, &config("sqs:///q.fifo")))
    };
    let warning = [(Severity::Warning, "max_attempts".to_owned())];
    assert_eq!(judged(SubscriptionOrder::ByPartitionKey, 13), warning);
    assert_eq!(judged(SubscriptionOrder::ByPartitionKey, 12), []);
    assert_eq!(judged(SubscriptionOrder::Unordered, 13), []);
}

#[test]
fn a_lease_has_to_be_extendable_and_the_work_to_fit_into_twelve_hours() {
    let judged = |seconds, url: &str, options: &SubscribeOptions| {
        let source = Queue {
            visibility: Duration::from_secs(seconds),
            ..queue()
        };
        settings(|findings| judge_lease(findings, &source, options, &config(url)))
    };
    assert_eq!(judged(30, "sqs:///q", &options()), []);
    assert_eq!(
        judged(0, "sqs:///q", &options()),
        refusal("VisibilityTimeout")
    );
    assert_eq!(
        judged(1, "sqs:///q", &options()),
        refusal("VisibilityTimeout")
    );
    assert_eq!(judged(0, "sqs:///q?lease=30", &options()), []);
    assert_eq!(judged(30, "sqs:///q?lease=1", &options()), refusal("lease"));
    let warned = judged(5, "sqs:///q", &options());
    assert_eq!(
        warned,
        [(Severity::Warning, "VisibilityTimeout".to_owned())]
    );
    let long = SubscribeOptions {
        longest_wait: Duration::from_hours(12),
        ..options()
    };
    assert_eq!(judged(30, "sqs:///q", &long), refusal("handler_timeout"));
}

#[test]
fn the_dead_letter_queue_has_to_take_and_keep_what_the_queue_has() {
    let judged = |name, letters: Queue| {
        let source = queue();
        settings(|findings| judge_target(findings, name, &letters, &source, &config("sqs:///q")))
    };
    assert_eq!(judged("dead", queue()), []);
    assert_eq!(judged("dead.fifo", queue()), refusal("deadLetterTargetArn"));
    let forgetful = Queue {
        retention: Duration::from_hours(95),
        ..queue()
    };
    assert_eq!(judged("dead", forgetful), refusal("MessageRetentionPeriod"));
    let small = Queue {
        max_bytes: 262_144,
        ..queue()
    };
    assert_eq!(judged("dead", small), refusal("MaximumMessageSize"));
}

/// What is found at a queue whose dead-letter queue answers so when it is looked at.
async fn found(look: Answer) -> Vec<(Severity, String)> {
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:123456789012:dead","maxReceiveCount":"20"}"#;
    let script = Script::new([
        json!({"QueueUrl": "https://q"}).into(),
        json!({"Attributes": {
            "VisibilityTimeout": "30",
            "MessageRetentionPeriod": "345600",
            "RedrivePolicy": policy,
        }})
        .into(),
        json!({"QueueUrl": "https://dead"}).into(),
        look,
    ]);
    let broker = Sqs::new(config("sqs:///q"));
    broker.ask(&script);
    let found = broker.inspect(&options()).await.unwrap();
    let asked = script.asked("GetQueueUrl");
    assert_eq!(asked[1]["QueueOwnerAWSAccountId"], "123456789012");
    settings(|findings| findings.extend(found))
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_judged_with_its_dead_letter_queue_as_far_as_that_may_be_looked_at() {
    let attributes =
        |retention: &str| json!({"Attributes": {"MessageRetentionPeriod": retention}}).into();
    assert_eq!(found(attributes("1209600")).await, []);
    assert_eq!(
        found(attributes("60")).await,
        refusal("MessageRetentionPeriod")
    );
    let missing = Answer::refused("QueueDoesNotExist");
    let missing = missing.older("AWS.SimpleQueueService.NonExistentQueue");
    assert_eq!(found(missing).await, refusal("deadLetterTargetArn"));
    let forbidden = found(Answer::refused("AccessDenied")).await;
    assert_eq!(
        forbidden,
        [(Severity::Warning, "deadLetterTargetArn".to_owned())]
    );
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_cannot_be_asked_is_an_error_and_no_finding() {
    for (code, kind) in [
        ("QueueDoesNotExist", BrokerErrorKind::NotFound),
        ("AccessDenied", BrokerErrorKind::AccessDenied),
    ] {
        let broker = Sqs::new(config("sqs:///q"));
        broker.ask(&Script::new([Answer::refused(code)]));
        let error = broker.inspect(&options()).await.unwrap_err();
        assert_eq!(error.kind(), kind);
    }
}

#[test]
fn a_missing_dead_letter_queue_is_told_with_the_policy_to_set() {
    let finding = no_dead_letter_queue(&config("sqs:///orders.fifo"));
    assert_eq!(finding.severity, Severity::Refusal);
    assert_eq!(finding.setting, "RedrivePolicy");
    assert!(
        finding.fix.contains("orders-dead-letters.fifo"),
        "{}",
        finding.fix
    );
}
