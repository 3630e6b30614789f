//! What the consumer says about failures.

use std::io;

use async_trait::async_trait;
use tracing::subscriber::DefaultGuard;

use super::stubborn::{Stubborn, Where};
use super::*;
use crate::error::{StoreError, StoreErrorKind};
use crate::in_process::BrokerOperation;
use crate::ports::{
    Claim, ClaimRequest, Finding, IdempotencyKey, IdempotencyStore, Ownership, ReleaseKind,
    Severity, StoreHandle, Survival, Ticket,
};
use crate::{BrokerErrorKind, Consumer};

/// What this thread says, until the guard is dropped.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn keep() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines with this text.
    fn lines(&self, text: &str) -> Vec<String> {
        let said = String::from_utf8_lossy(&self.0.lock()).into_owned();
        let lines = said.lines().filter(|line| line.contains(text));
        lines.map(ToOwned::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A store that has something to say about its set-up.
struct Outspoken {
    inner: InProcessStore,
    says: Result<Finding, StoreErrorKind>,
}

#[async_trait]
impl IdempotencyStore for Outspoken {
    fn survival(&self) -> Survival {
        self.inner.survival()
    }

    async fn inspect(&self) -> Result<Vec<Finding>, StoreError> {
        match &self.says {
            Ok(finding) => Ok(vec![finding.clone()]),
            Err(kind) => Err(StoreError::new(*kind, "INFO is not allowed")),
        }
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Vec<Result<Claim, StoreError>> {
        self.inner.claim(requests).await
    }

    async fn renew(&self, tickets: &[Ticket], lease: Duration) -> Owned {
        self.inner.renew(tickets, lease).await
    }

    async fn complete(&self, tickets: &[Ticket], retention: Duration) -> Owned {
        self.inner.complete(tickets, retention).await
    }

    async fn release(&self, tickets: &[(Ticket, ReleaseKind)], retention: Duration) -> Owned {
        self.inner.release(tickets, retention).await
    }

    async fn forget(&self, keys: &[IdempotencyKey]) -> Vec<Result<(), StoreError>> {
        self.inner.forget(keys).await
    }
}

type Owned = Vec<Result<Ownership, StoreError>>;

const HELD: usize = 20;

async fn publish_many(scene: &Scene) {
    let names: Vec<_> = (0..HELD).map(|n| n.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    scene.publish(&names).await;
}

/// Handlers that outlast the first renewals.
async fn long() -> Result<(), HandlerError> {
    tokio::time::sleep(13 * SECOND).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn leases_that_cannot_be_extended_are_told_once_a_round_and_with_the_cause() {
    let (log, _guard) = Log::keep();
    let scene = Scene::new();
    publish_many(&scene).await;
    let stubborn = Stubborn {
        broker: scene.broker.clone(),
        at: Where::ExtendRefused,
    };
    let builder = Consumer::builder(stubborn).store(scene.store.clone());
    let running = scene.start(builder, |_, _| long());
    let stats = scene.finish(running).await;
    let lines = log.lines("leases could not be extended");
    assert!(!lines.is_empty());
    assert_eq!(stats.renewal_errors, (HELD * lines.len()) as u64);
    for line in lines {
        assert!(line.contains("leases=20"), "{line}");
        assert!(
            line.contains("no way to the broker: connection refused"),
            "{line}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn claims_that_cannot_be_renewed_are_told_once_a_round() {
    let (log, _guard) = Log::keep();
    let scene = Scene::new();
    publish_many(&scene).await;
    let running = scene.start(scene.builder(), |_, _| long());
    tokio::time::sleep(5 * SECOND).await;
    scene.store.faults().go_down();
    tokio::time::sleep(7 * SECOND).await;
    scene.store.faults().come_back();
    let stats = scene.finish(running).await;
    let lines = log.lines("claims could not be renewed");
    assert!(!lines.is_empty());
    assert!(
        lines.iter().all(|line| line.contains("claims=20")),
        "{lines:?}"
    );
    assert_eq!(stats.renewal_errors, (HELD * lines.len()) as u64);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_told_at_once_and_with_the_reason() {
    let (log, _guard) = Log::keep();
    let scene = Scene::new();
    scene.store.faults().go_down();
    scene.publish(&["1"]).await;
    let running = scene.start(scene.builder(), |_, _| succeeds());
    tokio::time::sleep(SECOND).await;
    let lines = log.lines("nothing is handled until it answers");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("the in-process store was told to fail"),
        "{lines:?}"
    );
    scene.store.faults().come_back();
    scene.finish(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_cannot_be_subscribed_to_yet_is_told_with_the_reason() {
    let (log, _guard) = Log::keep();
    let scene = Scene::new();
    let kind = BrokerErrorKind::Unreachable;
    scene
        .broker
        .faults()
        .fail(BrokerOperation::Subscribe, kind, 1);
    scene.publish(&["1"]).await;
    let running = scene.start(scene.builder(), |_, _| succeeds());
    scene.finish(running).await;
    let lines = log.lines("cannot be subscribed to yet");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("the in-process broker was told to fail"),
        "{lines:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_endangers_the_records_is_told_at_the_start_and_keeps_nobody_from_consuming() {
    let finding = Finding {
        severity: Severity::Warning,
        setting: "maxmemory-policy".to_owned(),
        problem: "records may be evicted".to_owned(),
        fix: "set it to noeviction".to_owned(),
    };
    for (says, told) in [
        (
            Ok(finding),
            ["records may be evicted", "set it to noeviction"],
        ),
        (
            Err(StoreErrorKind::Other),
            ["set-up cannot be looked at", "INFO is not allowed"],
        ),
    ] {
        let (log, _guard) = Log::keep();
        let scene = Scene::new();
        scene.publish(&["1"]).await;
        let inner = scene.store.clone();
        let store: StoreHandle = Arc::new(Outspoken { inner, says });
        let running = scene.start(scene.builder().store(store), |_, _| succeeds());
        let stats = scene.finish(running).await;
        assert_eq!(stats.completed, 1);
        let [problem, fix] = told;
        let lines = log.lines(problem);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(fix), "{lines:?}");
    }
}

/// The line that wakes somebody: CONFORMANCE, L3.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_queue_that_takes_no_message_is_told_as_an_error_each_time() {
    const REFUSALS: u32 = 7;
    let (log, _guard) = Log::keep();
    let scene = Scene::new();
    scene.broker.faults().refuse_dead_letters(REFUSALS);
    scene.publish(&["order-7"]).await;
    let running = scene.start(scene.builder(), |_, _| async {
        Err(HandlerError::permanent("no such customer"))
    });
    let stats = scene.finish(running).await;
    let lines = log.lines("the dead-letter queue does not take a message; it stays in its queue");
    assert_eq!(lines.len(), REFUSALS as usize, "{lines:?}");
    for line in lines {
        assert!(line.contains("ERROR"), "{line}");
        assert!(line.contains("order-7"), "{line}");
        assert!(line.contains("permanent-error"), "{line}");
        assert!(
            line.contains("the in-process broker was told to fail"),
            "{line}"
        );
    }
    // The same for the metric that an alert may watch, `backstop_settle_errors_total`.
    assert_eq!(stats.settle_errors, u64::from(REFUSALS));
    assert_eq!(stats.dead_lettered, 1);
}
