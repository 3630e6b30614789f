//! The dead-letter queue.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_sqs::types::MessageSystemAttributeName as System;
use backstop_core::{BrokerError, DeadLetterQueue, DeadLetterRecord, with_causes};
use futures_util::future::join_all;

use crate::batches::{self, Change, carry_out};
use crate::broker::{Shared, Target};
use crate::decode::{self, Arrival};
use crate::error::failed;
use crate::publish::BATCH;
use crate::topology;

/// How long what is looked at is hidden from others, unless it is given back before. Seconds.
const HIDDEN: i32 = 30;

/// How long the last look waits for more; less would ask only some of SQS's servers. Seconds.
const WAIT: i32 = 1;

pub(crate) struct DeadLetters {
    shared: Arc<Shared>,
    target: Arc<Target>,
}

impl DeadLetters {
    pub(crate) const fn new(shared: Arc<Shared>, target: Arc<Target>) -> Self {
        Self { shared, target }
    }

    /// Takes up to `max` messages; they come back by themselves after [`HIDDEN`] seconds. A look that takes
    /// longer meets them again: by then all have been seen that can be.
    async fn take(&self, max: NonZeroUsize, taken: &mut Vec<Arrival>) -> Result<(), BrokerError> {
        let client = &self.shared.link.clients().await?.polling;
        let mut places = HashMap::new();
        while taken.len() < max.get() {
            let most = (max.get() - taken.len()).min(BATCH);
            let asked = client
                .receive_message()
                .queue_url(&*self.target.url)
                .max_number_of_messages(i32::try_from(most).unwrap_or(1))
                .wait_time_seconds(WAIT)
                .visibility_timeout(HIDDEN)
                .message_attribute_names("All")
                .message_system_attribute_names(System::All)
                .send()
                .await;
            let doing = "the dead-letter queue cannot be read";
            let answer = asked.map_err(|error| failed(doing, &error))?;
            let messages = answer.messages.unwrap_or_default();
            let before = taken.len();
            for arrival in messages.into_iter().map(decode::arrival) {
                match places.entry(arrival.original.message_id.clone()) {
                    // What gives it back is its latest receipt handle.
                    Entry::Occupied(place) => taken[*place.get()] = arrival,
                    Entry::Vacant(place) => {
                        place.insert(taken.len());
                        taken.push(arrival);
                    }
                }
            }
            if taken.len() == before {
                break;
            }
        }
        Ok(())
    }

    async fn give_back(&self, taken: &[Arrival]) {
        let change = Change::Visibility(0);
        let entries: Vec<_> = taken
            .iter()
            .map(|arrival| batches::Entry {
                handle: Arc::clone(&arrival.handle),
                change,
                turn: None,
            })
            .collect();
        let Ok(client) = self.shared.link.client().await else {
            return;
        };
        let giving = entries
            .chunks(BATCH)
            .map(|chunk| carry_out(client, &self.target.url, chunk));
        for answer in join_all(giving).await.into_iter().flatten() {
            if let Err(error) = answer {
                tracing::debug!(error = %with_causes(&error), "a dead letter that was looked at comes back in half a minute");
            }
        }
    }
}

#[async_trait]
impl DeadLetterQueue for DeadLetters {
    async fn depth(&self) -> Result<u64, BrokerError> {
        let queue = topology::look(&self.shared.link, &self.target.url, &self.target.name).await?;
        Ok(queue.depth)
    }

    async fn browse(&self, max: NonZeroUsize) -> Result<Vec<DeadLetterRecord>, BrokerError> {
        let mut taken = Vec::new();
        let looked = self.take(max, &mut taken).await;
        self.give_back(&taken).await;
        looked?;
        let origin = &self.shared.link.config.queue;
        let count = self.target.max_receive_count;
        let mut records: Vec<_> = taken
            .into_iter()
            .map(|arrival| decode::dead_letter(arrival, origin, count))
            .collect();
        records.sort_by_key(|record| record.dead_letter.at);
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use backstop_core::Broker as _;

    use super::*;
    use crate::broker::Sqs;
    use crate::scripted::{Answer, Script, described, messages};

    /// What is hidden for half a minute comes again when a look takes longer.
    #[tokio::test(start_paused = true)]
    async fn a_look_shows_each_message_once_and_ends_when_nothing_new_comes() {
        let mut looks = 0;
        let script = Script::by(move |asked| match asked.action.as_str() {
            "ReceiveMessage" => {
                looks += 1;
                Answer::from(messages(if looks == 2 { 5..15 } else { 0..10 }))
            }
            _ => described(asked),
        });
        let broker = Sqs::open("sqs:///q").unwrap();
        broker.ask(&script);
        let dead_letters = broker.dead_letters().await.unwrap();
        let records = dead_letters.browse(1000.try_into().unwrap()).await.unwrap();
        let id = |record: &DeadLetterRecord| record.message.id.clone();
        let ids: HashSet<_> = records.iter().map(id).collect();
        assert_eq!((records.len(), ids.len()), (15, 15));
        assert_eq!(script.asked("ReceiveMessage").len(), 3);
        let given_back = script.asked("ChangeMessageVisibilityBatch");
        let count = |asked: &serde_json::Value| asked["Entries"].as_array().map_or(0, Vec::len);
        assert_eq!(given_back.iter().map(count).sum::<usize>(), 15);
    }
}
