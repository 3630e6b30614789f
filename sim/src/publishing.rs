//! Publishing a world's messages.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::{Message, Outgoing};
use futures_util::FutureExt;

use crate::event::Event;
use crate::facts::CopyFacts;
use crate::sim::Sim;
use crate::state::State;
use crate::world::Publication;

/// The header that names a copy.
pub(crate) const COPY: &str = "copy";

impl Sim {
    /// Publishes what is next.
    pub(crate) fn publish_next(&self, state: &mut State) {
        let publication = self.world.publications[state.published];
        state.published += 1;
        self.publish(state, publication);
    }

    pub(crate) fn publish(&self, state: &mut State, publication: Publication) {
        let copy = state.facts.copies.len();
        state.facts.copies.push(CopyFacts {
            publication,
            left: None,
            delivery: None,
            due: state.facts.now,
            attempts_used: 0,
            not_before: None,
        });
        state.redriven.push(false);
        let mut message = Message::without_id(format!("body {}", publication.body))
            .with_id(format!("m{}", publication.id))
            .with_partition_key(format!("k{}", publication.key))
            .with_header(COPY, copy.to_string());
        if publication.redrives > 0 {
            let redrives = publication.redrives.to_string();
            message = message.with_header(Message::REDRIVES_HEADER, redrives);
        }
        message.published_at = Some(std::time::SystemTime::UNIX_EPOCH);
        let outgoing = Outgoing {
            message: Arc::new(message),
            delay: Duration::ZERO,
        };
        let published = backstop_core::Broker::publish(&self.broker, &[outgoing]).now_or_never();
        assert!(
            published.is_some_and(|all| all.iter().all(Result::is_ok)),
            "nothing keeps the broker from it"
        );
        state.see(&self.world, Event::Published { copy });
    }
}
