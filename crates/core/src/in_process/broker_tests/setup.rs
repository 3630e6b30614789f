//! Findings, limits and what is shown.

use super::*;
use crate::ports::{Finding, Severity};

async fn settings_refused(broker: &InProcessBroker) -> Vec<String> {
    let findings = broker.inspect(&options(Unordered)).await.unwrap();
    for Finding {
        severity,
        fix,
        problem,
        ..
    } in &findings
    {
        assert_eq!(*severity, Severity::Refusal);
        assert!(!fix.is_empty() && !problem.is_empty());
    }
    findings
        .into_iter()
        .map(|finding| finding.setting)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_sound_set_up_has_no_finding() {
    assert!(
        settings_refused(&InProcessBroker::new("orders"))
            .await
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn each_unsafe_set_up_is_refused_by_its_setting() {
    let builder = || InProcessBroker::builder("orders");
    let unsafe_ones = [
        (builder().without_dead_letter_queue(), "dead_letter_queue"),
        (builder().delivery_limit(5), "delivery_limit"),
        (builder().lease(Duration::ZERO), "lease"),
        (builder().max_delay(SECOND), "max_delay"),
    ];
    for (builder, setting) in unsafe_ones {
        assert_eq!(settings_refused(&builder.build()).await, [setting]);
    }
    let safe = builder()
        .delivery_limit(6)
        .max_delay(Duration::from_mins(5));
    assert!(settings_refused(&safe.build()).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_missing_dead_letter_queue_is_a_typed_error() {
    let broker = InProcessBroker::builder("orders")
        .without_dead_letter_queue()
        .build();
    let error = broker.dead_letters().await.err().unwrap();
    assert_eq!(error.kind(), BrokerErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_body_at_the_limit_is_taken_and_one_above_it_refused() {
    let broker = InProcessBroker::builder("orders").max_body(3).build();
    publish_one(&broker, "123").await.unwrap();
    let error = publish_one(&broker, "1234").await.unwrap_err();
    assert_eq!(error.kind(), BrokerErrorKind::TooLarge);
    assert_eq!(broker.counts().published, 1);
}

#[tokio::test(start_paused = true)]
async fn a_delay_above_the_limit_is_refused() {
    let broker = InProcessBroker::builder("orders").max_delay(SECOND).build();
    let outgoing = Outgoing {
        message: Message::new("1").into(),
        delay: 2 * SECOND,
    };
    let error = broker
        .publish(&[outgoing])
        .await
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), BrokerErrorKind::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn debug_shows_counts_and_no_body() {
    let broker = InProcessBroker::new("orders");
    publish(&broker, &["hunter2"]).await;
    let shown = format!("{broker:?}");
    assert!(
        shown.contains("ready: 1") && !shown.contains("hunter2"),
        "{shown}"
    );
}
