//! What is unsafe about a queue.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::{BrokerError, BrokerErrorKind, Finding, Severity, SubscribeOptions};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::config::RabbitMqConfig;
use crate::connection::{Link, Live};
use crate::error::{failed, refusal};
use crate::headers;
use crate::topology::{Hashing, NO_PLUGIN, close, depth, exists, hashing, source_arguments};
use crate::version::ServerVersion;
/// Arguments of a queue, by name.
type Arguments = BTreeMap<String, String>;

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
    if !exists(&live, &config.dead_letter_queue).await? {
        findings.push(no_dead_letter_queue(config, live.version));
    }
    // Partitions are declared alike; the first stands for all.
    if let Some(queue) = sources.first() {
        match arguments_of(&live, queue, config).await {
            Ok(arguments) => judge(&mut findings, queue, &arguments, options, &live, config),
            // Who may only read and write is not to be kept from consuming.
            Err(error) if error.kind() == BrokerErrorKind::AccessDenied => {
                findings.push(not_shown(config, queue));
            }
            Err(error) => return Err(error),
        }
    }
    if config.partitions.is_some() && hashing(config, &live).await? == Hashing::Publisher {
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

/// The arguments that a queue was declared with.
///
/// AMQP has no question for that, but a declaration that differs is refused with the name and the
/// value of one argument: so they are learned one after the other, beginning with what backstop itself
/// declares. Each refusal leaves a line in the server's log.
async fn arguments_of(
    live: &Live,
    queue: &str,
    config: &RabbitMqConfig,
) -> Result<Arguments, BrokerError> {
    /// More than RabbitMQ knows.
    const ROUNDS: usize = 32;
    let mut arguments = source_arguments(config).inner().clone();
    for _ in 0..ROUNDS {
        let channel = live.channel().await?;
        let table = FieldTable::from(arguments.clone());
        let options = QueueDeclareOptions::durable();
        let declared = channel.queue_declare(queue.into(), options, table).await;
        let Err(error) = declared else {
            close(channel).await;
            break;
        };
        let told = refusal(&error).filter(|(precondition, _)| *precondition);
        let Some(learned) = told.and_then(|(_, text)| learn(&text)) else {
            let text = format!("the queue {queue:?} cannot be looked at");
            return Err(failed(&text, error));
        };
        match learned.value {
            Some((value, kind)) => {
                arguments.insert(learned.name.as_str().into(), native(&value, &kind));
            }
            None => drop(arguments.remove(learned.name.as_str())),
        }
        // A queue of another type is refused for that alone: what else it has does not matter.
        if learned.name == "x-queue-type" {
            break;
        }
    }
    let text = |(name, value): (&ShortString, &AMQPValue)| {
        (name.as_str().to_owned(), headers::text_of(value))
    };
    Ok(arguments.iter().map(text).collect())
}

struct Learned {
    name: String,
    /// The value and its type's name; `None` if the queue has no such argument.
    value: Option<(String, String)>,
}

/// Reads a refusal such as `inequivalent arg 'x' for queue 'q' in vhost '/': received none but current
/// is the value '7' of type 'signedint'`; the end may also be `current is 'classic'` or `current is none`.
fn learn(text: &str) -> Option<Learned> {
    let name = text
        .split("inequivalent arg '")
        .nth(1)?
        .split('\'')
        .next()?
        .to_owned();
    let current = text.split("but current is ").nth(1)?;
    if current.trim_start().starts_with("none") {
        return Some(Learned { name, value: None });
    }
    let mut quoted = current.split('\'');
    let value = quoted.nth(1)?.to_owned();
    let kind = quoted.nth(1).unwrap_or("longstr").to_owned();
    Some(Learned {
        name,
        value: Some((value, kind)),
    })
}

fn native(value: &str, kind: &str) -> AMQPValue {
    let number = value.parse::<i64>();
    match (kind, value, number) {
        ("bool", "true", _) => AMQPValue::Boolean(true),
        ("bool", _, _) => AMQPValue::Boolean(false),
        ("longstr", _, _) | (_, _, Err(_)) => AMQPValue::LongString(value.into()),
        (_, _, Ok(number)) => AMQPValue::LongLongInt(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_declaration_tells_an_argument() {
        let prefix = "PRECONDITION_FAILED - inequivalent arg";
        for (text, name, value) in [
            (
                "'x-delivery-limit' for queue 'f3' in vhost '/': received none but current is the value '7' of type 'signedint'",
                "x-delivery-limit",
                Some(("7", "signedint")),
            ),
            (
                "'x-dead-letter-exchange' for queue 'q' in vhost '/': received none but current is the value '' of type 'longstr'",
                "x-dead-letter-exchange",
                Some(("", "longstr")),
            ),
            (
                "'x-queue-type' for queue 'f4' in vhost '/': received 'quorum' but current is 'classic'",
                "x-queue-type",
                Some(("classic", "longstr")),
            ),
            (
                "'x-queue-type' for queue 'f4' in vhost '/': received the value 'quorum' of type 'longstr' but current is none",
                "x-queue-type",
                None,
            ),
        ] {
            let learned = learn(&format!("{prefix} {text}")).unwrap();
            assert_eq!(learned.name, name);
            let value =
                value.map(|(value, kind): (&str, &str)| (value.to_owned(), kind.to_owned()));
            assert_eq!(learned.value, value, "{text}");
        }
        assert!(learn("NOT_FOUND - no queue 'q' in vhost '/'").is_none());
    }
}
