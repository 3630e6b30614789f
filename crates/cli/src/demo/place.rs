//! Where the story is played: in this process, or on a real broker.

use backstop::{BrokerHandle, InProcessBroker, InProcessStore, StoreHandle};

use crate::connect;
use crate::exit::{Code, CommandError};

/// A broker's queue and a store, each worker with connections of its own.
pub(super) struct Place {
    queue: Queue,
    store: Store,
    /// Stands before every id, so that a run on a real broker has ids of its own.
    pub(super) run: String,
    /// The consumer's name, which no other run has.
    pub(super) consumer: String,
}

enum Queue {
    InProcess(InProcessBroker),
    Url(String),
}

enum Store {
    InProcess(InProcessStore),
    Url(String),
}

/// The only queues that the demo touches: it consumes all that it finds.
const QUEUES: &str = "backstop-demo";

impl Place {
    pub(super) async fn find(url: Option<&str>, store: Option<&str>) -> Result<Self, CommandError> {
        let run = format!("{:08x}", rand::random::<u32>());
        let queue = match url {
            None => Queue::InProcess(InProcessBroker::new("orders")),
            Some(url) => {
                let broker = connect::broker(url).await?;
                let name = broker.queue().to_owned();
                broker.close().await;
                if !name.starts_with(QUEUES) {
                    let text = format!(
                        "the demo consumes whatever is in its queue, so it does not touch {name:?}: \
                         give it a queue of its own whose name begins with {QUEUES:?}"
                    );
                    return Err(CommandError::new(Code::Usage, text));
                }
                Queue::Url(url.to_owned())
            }
        };
        let store = match store {
            None => Store::InProcess(InProcessStore::new()),
            Some(url) => {
                connect::store(url).await?;
                Store::Url(url.to_owned())
            }
        };
        let prefix = match queue {
            Queue::InProcess(_) => String::new(),
            Queue::Url(_) => format!("{run}-"),
        };
        Ok(Self {
            queue,
            store,
            run: prefix,
            consumer: format!("demo-{run}"),
        })
    }

    /// A new connection to the queue.
    pub(super) async fn connect(&self) -> Result<BrokerHandle, CommandError> {
        match &self.queue {
            Queue::InProcess(broker) => Ok(broker.clone().into()),
            Queue::Url(url) => connect::broker(url).await,
        }
    }

    /// A new connection to the store.
    pub(super) async fn connect_store(&self) -> Result<StoreHandle, CommandError> {
        match &self.store {
            Store::InProcess(store) => Ok(store.clone().into()),
            Store::Url(url) => connect::store(url).await,
        }
    }

    /// Whether the queue is known to be empty; a real broker does not say.
    pub(super) fn is_drained(&self) -> Option<bool> {
        match &self.queue {
            Queue::InProcess(broker) => Some(broker.counts().is_drained()),
            Queue::Url(_) => None,
        }
    }

    /// Where it is, in words.
    pub(super) fn in_words(&self) -> String {
        let queue = match &self.queue {
            Queue::InProcess(_) => "in this process".to_owned(),
            Queue::Url(url) => format!("on {}", scheme(url)),
        };
        match &self.store {
            Store::InProcess(_) => queue,
            Store::Url(url) => format!("{queue} and {}", scheme(url)),
        }
    }
}

/// The scheme of a URL that has been connected to.
fn scheme(url: &str) -> &str {
    url.split("://").next().unwrap_or_default()
}
