//! What is unsafe about a queue.

use std::time::Duration;

use backstop_core::{BrokerError, BrokerErrorKind, Finding, Severity, SubscribeOptions};

use crate::arguments::{Arguments, arguments_of};
use crate::config::RabbitMqConfig;
use crate::connection::{Link, Live};
use crate::topology::{Hashing, NO_PLUGIN, dead_letter_arguments, depth, exists, source_arguments};
use crate::version::ServerVersion;

/// What is unsafe about the queue for a consumer.
pub(crate) async fn findings(
    link: &Link,
    options: &SubscribeOptions,
) -> Result<Vec<Finding>, BrokerError> {
    let config = &link.config;
    let live = link.live().await?;
    let mut findings = Vec::new();
    let sources = config.source_queues();
    for queue in &sources {
        depth(&live, queue).await?;
    }
    // Partitions are declared alike; the first stands for all.
    let mut source = None;
    if let Some(queue) = sources.first() {
        match arguments_of(&live, queue, source_arguments(config)).await {
            Ok(arguments) => {
                judge(&mut findings, queue, &arguments, options, &live, config);
                judge_forgetting(&mut findings, queue, &arguments);
                source = Some(arguments);
            }
            // Who may only read and write is not to be kept from consuming.
            Err(error) if error.kind() == BrokerErrorKind::AccessDenied => {
                findings.push(not_shown(config, queue));
            }
            Err(error) => return Err(error),
        }
    }
    if exists(&live, &config.dead_letter_queue).await? {
        let (queue, usual) = (
            &config.dead_letter_queue,
            dead_letter_arguments(live.version),
        );
        match arguments_of(&live, queue, usual).await {
            Ok(letters) => {
                judge_dead_letters(&mut findings, queue, &letters, live.version);
                judge_memory(&mut findings, queue, &letters, source.as_ref());
            }
            // What is said about the source is enough.
            Err(error) if error.kind() == BrokerErrorKind::AccessDenied => {}
            Err(error) => return Err(error),
        }
    } else {
        findings.push(no_dead_letter_queue(config, live.version));
    }
    if config.partitions.is_some() && live.hashing(config).await? == Hashing::Publisher {
        let fix = "enable the plugin and declare again, or publish by backstop only";
        findings.push(finding(
            Severity::Warning,
            &config.exchange(),
            NO_PLUGIN,
            fix,
        ));
    }
    findings.extend(consumer_timeout(options));
    Ok(findings)
}

fn judge(
    findings: &mut Vec<Finding>,
    queue: &str,
    arguments: &Arguments,
    options: &SubscribeOptions,
    live: &Live,
    config: &RabbitMqConfig,
) {
    let argument = |name: &str| arguments.get(name).map(String::as_str);
    let kind = argument("x-queue-type").unwrap_or("classic");
    if kind != "quorum" {
        let problem = format!(
            "the queue {queue:?} is of type {kind}: it does not count failed deliveries, and is not replicated"
        );
        let fix = "declare it anew with x-queue-type=quorum (a queue's type cannot be changed)";
        findings.push(finding(Severity::Refusal, "x-queue-type", &problem, fix));
        return;
    }
    if argument("x-dead-letter-exchange").is_none() {
        let problem = format!(
            "the queue {queue:?} names no dead-letter exchange, unless a policy does: what RabbitMQ \
             itself gives up at the delivery limit would be dropped"
        );
        let fix = format!(
            "declare it with x-dead-letter-exchange=\"\" and x-dead-letter-routing-key={:?}, or set a policy",
            config.dead_letter_queue
        );
        findings.push(finding(
            Severity::Warning,
            "x-dead-letter-exchange",
            &problem,
            &fix,
        ));
    } else if argument("x-dead-letter-strategy") != Some("at-least-once") {
        let problem = format!(
            "the queue {queue:?} dead-letters at most once: what RabbitMQ moves by itself may be lost"
        );
        let fix =
            "declare it with x-dead-letter-strategy=at-least-once and x-overflow=reject-publish";
        findings.push(finding(
            Severity::Warning,
            "x-dead-letter-strategy",
            &problem,
            fix,
        ));
    }
    judge_limit(findings, queue, argument("x-delivery-limit"), options, live);
    if config.partitions.is_some() && argument("x-single-active-consumer") != Some("true") {
        let problem =
            format!("the partition {queue:?} may have several active consumers: order is lost");
        let fix = "declare it with x-single-active-consumer=true";
        findings.push(finding(
            Severity::Refusal,
            "x-single-active-consumer",
            &problem,
            fix,
        ));
    }
}

/// A limit of 3 lets a message be delivered 4 times (measured on 4.3.6); ours has to come first.
fn judge_limit(
    findings: &mut Vec<Finding>,
    queue: &str,
    limit: Option<&str>,
    options: &SubscribeOptions,
    live: &Live,
) {
    let default = live.version.default_delivery_limit();
    let limit = limit
        .and_then(|text| text.parse::<i64>().ok())
        .or(default.map(i64::from));
    let attempts = options.max_attempts.get();
    if let Some(limit) = limit
        && limit >= 0
        && limit < i64::from(attempts)
    {
        let problem = format!(
            "the queue {queue:?} gives a message up after {limit} failed deliveries, before the \
             consumer's {attempts} attempts, and without a reason"
        );
        let fix = format!("set x-delivery-limit to more than {attempts}, or lower max_attempts");
        findings.push(finding(
            Severity::Refusal,
            "x-delivery-limit",
            &problem,
            &fix,
        ));
    }
}

/// Nothing may take a dead letter away but a person.
fn judge_dead_letters(
    findings: &mut Vec<Finding>,
    queue: &str,
    arguments: &Arguments,
    version: ServerVersion,
) {
    /// Nobody looks at a message as often as that.
    const PLENTY: i64 = 1_000_000;
    let mut warn = |setting: &str, problem: &str, fix: &str| {
        let problem = format!("the dead-letter queue {queue:?} {problem}");
        findings.push(finding(Severity::Warning, setting, &problem, fix));
    };
    let argument = |name: &str| arguments.get(name).map(String::as_str);
    let kind = argument("x-queue-type").unwrap_or("classic");
    if kind != "quorum" {
        let problem = format!("is of type {kind}, not replicated as its source is");
        warn(
            "x-queue-type",
            &problem,
            "declare it anew with x-queue-type=quorum",
        );
        return;
    }
    let limit = argument("x-delivery-limit").and_then(|text| text.parse::<i64>().ok());
    let limit = limit.or(version.default_delivery_limit().map(i64::from));
    if let Some(limit) = limit.filter(|limit| (0..PLENTY).contains(limit)) {
        let problem = format!("drops a message that was looked at or given back {limit} times");
        let none = version.no_delivery_limit();
        let fix = format!("declare it anew, or set a policy, with x-delivery-limit={none}");
        warn("x-delivery-limit", &problem, &fix);
    }
}

/// A dead-letter queue that forgets sooner than its queue loses what nobody could look at.
fn judge_memory(
    findings: &mut Vec<Finding>,
    queue: &str,
    letters: &Arguments,
    source: Option<&Arguments>,
) {
    let ttl = |arguments: &Arguments| arguments.get("x-message-ttl")?.parse::<u64>().ok();
    let outlives = ttl(letters) >= source.and_then(ttl) && source.and_then(ttl).is_some();
    for (setting, problem) in FORGETTING {
        let is_safe = match setting {
            "x-message-ttl" => outlives,
            _ => refuses_when_full(setting, letters),
        };
        if letters.contains_key(setting) && !is_safe {
            let problem = format!("the dead-letter queue {queue:?} {problem}");
            let fix = format!("declare it anew without {setting}");
            findings.push(finding(Severity::Refusal, setting, &problem, &fix));
        }
    }
}

/// What is dropped from a queue by age or number is dead-lettered unseen if the queue names a
/// dead-letter exchange; what vanishes with it is lost.
fn judge_forgetting(findings: &mut Vec<Finding>, queue: &str, source: &Arguments) {
    for (setting, problem) in FORGETTING {
        if !source.contains_key(setting) || refuses_when_full(setting, source) {
            continue;
        }
        let severity = match setting {
            "x-expires" => Severity::Refusal,
            _ => Severity::Warning,
        };
        let problem = format!("the queue {queue:?} {problem}, whether they were handled or not");
        let fix = format!("declare it anew without {setting}");
        findings.push(finding(severity, setting, &problem, &fix));
    }
}

/// Arguments by which a queue loses messages, and how.
const FORGETTING: [(&str, &str); 4] = [
    ("x-message-ttl", "drops messages by age"),
    (
        "x-expires",
        "vanishes with its messages when nobody uses it",
    ),
    ("x-max-length", "drops its oldest messages when it is full"),
    (
        "x-max-length-bytes",
        "drops its oldest messages when it is full",
    ),
];

fn refuses_when_full(setting: &str, arguments: &Arguments) -> bool {
    let overflow = arguments.get("x-overflow").map(String::as_str);
    setting.starts_with("x-max") && overflow == Some("reject-publish")
}

fn no_dead_letter_queue(config: &RabbitMqConfig, version: ServerVersion) -> Finding {
    let problem = format!(
        "there is no dead-letter queue {:?}: poison would have no exit",
        config.dead_letter_queue
    );
    let limit = version.no_delivery_limit();
    let fix = format!(
        "declare it (a quorum queue with x-delivery-limit={limit}), have it declared (declare=true), or \
         name another by dead_letter_queue"
    );
    finding(Severity::Refusal, "dead_letter_queue", &problem, &fix)
}

/// The right to configure a queue is what RabbitMQ asks for before it compares arguments.
fn not_shown(config: &RabbitMqConfig, queue: &str) -> Finding {
    let user = &config.uri.authority.userinfo.username;
    let problem = format!(
        "the user {user:?} has no right to configure the queue {queue:?}: its type, limits and \
         dead-letter exchange cannot be checked, and messages that wait for a retry wait in this process"
    );
    let fix = format!(
        "give the user the right to configure {queue:?} and \"{}.retry.*\"",
        config.queue
    );
    finding(Severity::Warning, "configure", &problem, &fix)
}

/// RabbitMQ closes the channel of a consumer that does not settle for 30 minutes
/// (<https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>); AMQP does not show the setting.
///
/// Of an ordered consumer this looks at one message. Those behind it wait as well, but how many there
/// are of a key, and how long their handlers take, nobody knows; what is taken back comes in order.
fn consumer_timeout(options: &SubscribeOptions) -> Option<Finding> {
    const DEFAULT: Duration = Duration::from_mins(30);
    let longest = match options.order {
        backstop_core::SubscriptionOrder::Unordered => options.handler_timeout,
        // The wait for a retry is spent in the lane.
        backstop_core::SubscriptionOrder::ByPartitionKey => {
            options.handler_timeout + options.longest_wait
        }
    };
    (longest >= DEFAULT).then(|| {
        let problem = format!(
            "a delivery may stay unsettled for {longest:?}, and RabbitMQ takes it back after \
             consumer_timeout, 30 minutes by default"
        );
        let fix =
            "raise consumer_timeout in rabbitmq.conf or by a policy, or lower handler_timeout";
        finding(Severity::Warning, "consumer_timeout", &problem, fix)
    })
}

fn finding(severity: Severity, setting: &str, problem: &str, fix: &str) -> Finding {
    Finding {
        severity,
        setting: setting.to_owned(),
        problem: problem.to_owned(),
        fix: fix.to_owned(),
    }
}
