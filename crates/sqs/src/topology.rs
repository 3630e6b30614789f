//! The queue and its dead-letter queue: looked at, and created if asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::QueueAttributeName as Name;
use backstop_core::{BrokerError, BrokerErrorKind};
use serde::{Deserialize, Deserializer};

use crate::config::{QueueKind, SqsConfig};
use crate::connection::Link;
use crate::error::failed;

/// A queue's attributes, read.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) arn: String,
    pub(crate) visibility: Duration,
    pub(crate) retention: Duration,
    pub(crate) max_bytes: usize,
    pub(crate) redrive: Option<RedrivePolicy>,
    /// Visible, in flight and delayed; SQS calls the numbers approximate.
    pub(crate) depth: u64,
}

/// Where SQS moves what was received too often.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RedrivePolicy {
    pub(crate) dead_letter_target_arn: String,
    #[serde(deserialize_with = "number_or_text")]
    pub(crate) max_receive_count: u32,
}

impl RedrivePolicy {
    /// The target's account and name: `arn:aws:sqs:<region>:<account>:<name>`.
    pub(crate) fn target(&self) -> Option<(&str, &str)> {
        let mut parts = self.dead_letter_target_arn.split(':').skip(4);
        Some((parts.next()?, parts.next()?))
    }
}

/// SQS gives back what was set: some tools write the number as text.
fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u32),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

/// Asks for a queue's attributes.
pub(crate) async fn look(link: &Link, url: &str, queue: &str) -> Result<Queue, BrokerError> {
    let asked = link
        .client()
        .await?
        .get_queue_attributes()
        .queue_url(url)
        .attribute_names(Name::All)
        .send()
        .await;
    let doing = format!("the attributes of the queue {queue:?} cannot be read");
    let answer = asked.map_err(|error| failed(&doing, &error))?;
    let attributes = answer.attributes.unwrap_or_default();
    let number = |name: Name| {
        attributes
            .get(&name)
            .and_then(|text| text.parse::<u64>().ok())
    };
    let redrive = attributes
        .get(&Name::RedrivePolicy)
        .filter(|text| !text.is_empty());
    let redrive = redrive.map(|json| serde_json::from_str(json)).transpose();
    Ok(Queue {
        arn: attributes.get(&Name::QueueArn).cloned().unwrap_or_default(),
        visibility: Duration::from_secs(number(Name::VisibilityTimeout).unwrap_or(30)),
        retention: Duration::from_secs(number(Name::MessageRetentionPeriod).unwrap_or(345_600)),
        max_bytes: number(Name::MaximumMessageSize)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or(crate::encode::MAX_BYTES),
        redrive: redrive.map_err(|error| {
            let text = format!("the RedrivePolicy of the queue {queue:?} cannot be read");
            BrokerError::new(BrokerErrorKind::UnsafeTopology, text).with_source(error)
        })?,
        depth: [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
            Name::ApproximateNumberOfMessagesDelayed,
        ]
        .into_iter()
        .filter_map(number)
        .sum(),
    })
}

/// Looks at the queue, whose URL may be outdated.
pub(crate) async fn look_at_source(link: &Link) -> Result<(Arc<str>, Queue), BrokerError> {
    let url = link.queue_url().await?;
    match look(link, &url, &link.config.queue).await {
        Ok(queue) => Ok((url, queue)),
        Err(error) => {
            if error.kind() == BrokerErrorKind::NotFound {
                link.forget_queue_url();
            }
            Err(error)
        }
    }
}

/// Creates the queue and its dead-letter queue where they are missing. Another dead-letter queue that the
/// queue has is left to whoever made it.
pub(crate) async fn declare(link: &Link) -> Result<(), BrokerError> {
    let config = &link.config;
    let source = match look_at_source(link).await {
        Ok((_, queue)) => Some(queue),
        Err(error) if error.kind() == BrokerErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let redrive = source.as_ref().and_then(|queue| queue.redrive.as_ref());
    let other_target = redrive
        .and_then(RedrivePolicy::target)
        .is_some_and(|(_, name)| name != config.dead_letter_queue);
    if other_target {
        return Ok(());
    }
    let letters = &config.dead_letter_queue;
    let url = match link.look_up(letters).await {
        Ok(url) => url,
        Err(error) if error.kind() == BrokerErrorKind::NotFound => {
            create(link, letters, dead_letter_attributes(config)).await?
        }
        Err(error) => return Err(error),
    };
    if source.is_none() {
        let target = look(link, &url, letters).await?;
        create(link, &config.queue, source_attributes(config, &target.arn)).await?;
    }
    Ok(())
}

type Attributes = HashMap<Name, String>;

fn source_attributes(config: &SqsConfig, target: &str) -> Attributes {
    let redrive = serde_json::json!({
        "deadLetterTargetArn": target,
        "maxReceiveCount": config.max_receive_count,
    });
    let mut attributes = common_attributes(config);
    attributes.insert(Name::RedrivePolicy, redrive.to_string());
    attributes.insert(
        Name::VisibilityTimeout,
        config.lease.unwrap_or(30).to_string(),
    );
    attributes.insert(Name::ReceiveMessageWaitTimeSeconds, config.wait.to_string());
    attributes
}

fn dead_letter_attributes(config: &SqsConfig) -> Attributes {
    const FOURTEEN_DAYS: u32 = 14 * 24 * 60 * 60;
    let mut attributes = common_attributes(config);
    attributes.insert(Name::MessageRetentionPeriod, FOURTEEN_DAYS.to_string());
    attributes
}

fn common_attributes(config: &SqsConfig) -> Attributes {
    let bytes = crate::encode::MAX_BYTES.to_string();
    let mut attributes = Attributes::from([(Name::MaximumMessageSize, bytes)]);
    if config.kind() == QueueKind::Fifo {
        attributes.insert(Name::FifoQueue, "true".to_owned());
    }
    attributes
}

async fn create(link: &Link, queue: &str, attributes: Attributes) -> Result<Arc<str>, BrokerError> {
    let asked = link
        .client()
        .await?
        .create_queue()
        .queue_name(queue)
        .set_attributes(Some(attributes))
        .send()
        .await;
    let doing = format!("the queue {queue:?} cannot be created");
    match asked {
        Ok(answer) => match answer.queue_url {
            Some(url) => Ok(url.into()),
            None => link.look_up(queue).await,
        },
        // Somebody else was quicker, with other attributes: they stay, and are inspected.
        Err(error) if is_there_already(error.code()) => link.look_up(queue).await,
        Err(error) => Err(failed(&doing, &error)),
    }
}

fn is_there_already(code: Option<&str>) -> bool {
    matches!(code, Some("QueueAlreadyExists" | "QueueNameExists"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redrive_policy_is_read_with_its_count_as_number_or_text() {
        for count in ["5", "\"5\""] {
            let json = format!(
                r#"{{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:123456789012:dead","maxReceiveCount":{count}}}"#
            );
            let policy: RedrivePolicy = serde_json::from_str(&json).unwrap();
            assert_eq!(policy.max_receive_count, 5);
            assert_eq!(policy.target(), Some(("123456789012", "dead")));
        }
    }
}
