use super::*;

fn config(url: &str) -> SqsConfig {
    SqsConfig::from_url(url).unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn refusal(url: &str) -> String {
    match SqsConfig::from_url(url) {
        Ok(config) => panic!("{url} was accepted as {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_queues_own_url_is_read_whole() {
    let config = config("sqs://sqs.eu-central-1.amazonaws.com/123456789012/orders");
    assert_eq!(
        config.endpoint.as_deref(),
        Some("https://sqs.eu-central-1.amazonaws.com")
    );
    assert_eq!(config.region.as_deref(), Some("eu-central-1"));
    assert_eq!(config.account.as_deref(), Some("123456789012"));
    assert_eq!(config.queue(), "orders");
    assert_eq!(config.dead_letter_queue(), "orders-dead-letters");
    assert_eq!(config.kind(), QueueKind::Standard);
    assert_eq!(config.topology, SqsTopology::Checked);
}

#[test]
fn without_a_host_the_aws_configuration_decides() {
    let here = config("sqs:///orders");
    assert_eq!((here.endpoint, here.region), (None, None));
    let there = config("sqs:///123456789012/orders?region=eu-west-1&profile=work");
    assert_eq!(there.region.as_deref(), Some("eu-west-1"));
    assert_eq!(there.profile.as_deref(), Some("work"));
    assert_eq!(there.account.as_deref(), Some("123456789012"));
}

#[test]
fn an_emulator_on_this_machine_is_reached_without_tls() {
    let local = config("sqs://localhost:4566/000000000000/orders");
    assert_eq!(local.endpoint.as_deref(), Some("http://localhost:4566"));
    assert!(local.is_plain() && local.region.is_none());
    let named = config("sqs://localstack:4566/000000000000/orders?tls=false");
    assert_eq!(named.endpoint.as_deref(), Some("http://localstack:4566"));
    let safe = config("sqs://127.0.0.1:4566/orders?tls=true");
    assert_eq!(safe.endpoint.as_deref(), Some("https://127.0.0.1:4566"));
    assert!(named.is_plain() && !safe.is_plain());
}

#[test]
fn a_fifo_queue_is_told_by_its_name() {
    let fifo = config("sqs:///orders.fifo");
    assert_eq!(fifo.kind(), QueueKind::Fifo);
    assert_eq!(fifo.dead_letter_queue(), "orders-dead-letters.fifo");
    let text = refusal("sqs:///orders.fifo?dead_letter_queue=dead");
    assert!(text.contains("dead_letter_queue cannot be dead"), "{text}");
}

#[test]
fn a_long_name_leaves_room_for_the_dead_letter_queues() {
    for name in ["q".repeat(80), format!("{}.fifo", "q".repeat(75))] {
        let config = config(&format!("sqs:///{name}"));
        let letters = config.dead_letter_queue();
        assert!(letters.len() <= MAX_NAME && letters != name, "{letters}");
        assert_eq!(QueueKind::of(letters), config.kind());
    }
}

#[test]
fn parameters_are_read_and_bounded() {
    let config = config(
        "sqs:///q?declare=true&lease=60&wait=5&receives=3&max_receive_count=9&timeout=7&connect_timeout=2",
    );
    assert_eq!(config.topology, SqsTopology::Declared);
    assert_eq!(
        (config.lease, config.wait, config.receives.get()),
        (Some(60), 5, 3)
    );
    assert_eq!(config.max_receive_count, 9);
    assert_eq!(config.timeout, Duration::from_secs(7));
    for (parameter, told) in [
        ("lease=43201", "lease cannot be 43201: 1 to 43200"),
        ("lease=0", "lease cannot be 0"),
        ("wait=21", "wait cannot be 21: 1 to 20"),
        (
            "max_receive_count=1001",
            "max_receive_count cannot be 1001: 1 to 1000",
        ),
        ("declare=yes", "declare cannot be yes: true or false"),
        ("prefetch=3", "\"prefetch\""),
        ("tls=false", "tls cannot be false"),
    ] {
        let text = refusal(&format!("sqs:///q?{parameter}"));
        assert!(text.contains(told), "{text}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_no_secret_is_shown() {
    for (url, told) in [
        (
            "https://sqs.eu-west-1.amazonaws.com/123456789012/q",
            "https://",
        ),
        ("sqs://sqs.eu-west-1.amazonaws.com", "without a queue"),
        ("sqs:///a/b/c", "without a queue"),
        ("sqs:///1234/q", "account cannot be \"1234\""),
        ("sqs:///bad.name", "queue cannot be \"bad.name\""),
        (
            "sqs://AKIA:hunter2@localhost/q",
            "credentials cannot be part of the URL",
        ),
        ("hunter2", "url cannot be"),
    ] {
        let text = refusal(url);
        assert!(text.contains(told), "{text}");
        assert!(
            !text.contains("hunter2") && !text.contains("AKIA"),
            "{text}"
        );
    }
    let shown = format!("{:?}", config("sqs:///q").credentials("AKIA", "hunter2"));
    assert!(
        !shown.contains("hunter2") && !shown.contains("AKIA"),
        "{shown}"
    );
}
