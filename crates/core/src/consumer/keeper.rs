//! The lease keeper: while a delivery is with us, its broker lease and its claim are renewed.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use slab::Slab;
use tokio::time::Instant;

use super::cancellation::Cancellation;
use super::stats::Counters;
use crate::causes::with_causes;
use crate::delivery::LeaseId;
use crate::ports::{
    DeliveryLease, IdempotencyStore, LeaseState, Ownership, StoreHandle, Subscription, Ticket,
};
use crate::sync::Mutex;

/// Whether a delivery may still be settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Lease and claim are ours.
    Held,
    /// A verdict is on its way to the broker: what becomes of the lease is no news.
    Settling,
    /// The broker has taken the delivery back.
    LeaseLost,
    /// Another consumer has taken the claim over, or may have.
    ClaimLost,
    /// The shutdown grace is over.
    Stopped,
}

/// How the keeper keeps time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeeperSettings {
    /// How long a claim lasts.
    pub(crate) claim_lease: Duration,
    /// How the broker leases.
    pub(crate) delivery_lease: DeliveryLease,
}

impl KeeperSettings {
    /// A connection-bound lease costs nothing to check; this is how soon its loss is noticed.
    const CONNECTION_CHECK: Duration = Duration::from_secs(1);

    fn tick(&self, shortest_lease: Option<Duration>) -> Duration {
        let shortest = shortest_lease.map_or(self.claim_lease, |l| l.min(self.claim_lease));
        (shortest / 6).clamp(Duration::from_millis(1), Self::CONNECTION_CHECK)
    }

    /// How long broker and store may take to answer, so that there is time to ask again.
    fn patience(&self, shortest_lease: Option<Duration>) -> Duration {
        let shortest = shortest_lease.map_or(self.claim_lease, |l| l.min(self.claim_lease));
        (shortest / 3).max(Duration::from_millis(1))
    }
}

struct Entry {
    serial: u64,
    lease: LeaseId,
    received: Instant,
    lease_renewed: Instant,
    lease_lasts: Option<Duration>,
    // Until when the broker may take the delivery for ours, whatever our clock says: an extension whose
    // answer is missing may have been made. None once the broker has said that it is not.
    lingers: Option<Instant>,
    claim: Option<(Ticket, Instant)>,
    standing: Standing,
    cancellation: Cancellation,
}

#[derive(Default)]
struct Entries {
    slab: Slab<Entry>,
    serial: u64,
    shortest_lease: Option<Duration>,
    // Of deliveries that have ended; no more than were held at once.
    spare: Vec<Cancellation>,
}

/// Keeps the leases and claims of everything that a consumer holds.
pub(crate) struct Keeper {
    entries: Mutex<Entries>,
    settings: KeeperSettings,
    counters: Arc<Counters>,
}

/// One delivery's place with the keeper; dropping it ends the renewals.
pub(crate) struct Hold {
    keeper: Arc<Keeper>,
    index: usize,
    cancellation: Cancellation,
}

type Due<T> = Vec<(usize, u64, T)>;

/// A lease of which nobody sees the end, and which a clock can still tell.
const FOREVER: Duration = Duration::from_hours(366 * 24);

impl Keeper {
    pub(crate) fn new(settings: KeeperSettings, counters: Arc<Counters>) -> Self {
        Self {
            entries: Mutex::default(),
            settings,
            counters,
        }
    }

    /// Begins to keep a delivery that was received at `now`.
    pub(crate) fn hold(
        self: &Arc<Self>,
        lease: LeaseId,
        lasts: Option<Duration>,
        now: Instant,
    ) -> Hold {
        let lasts = lasts.map(|lasts| lasts.min(FOREVER));
        let mut entries = self.entries.lock();
        let cancellation = entries.spare.pop().unwrap_or_default();
        entries.serial += 1;
        if let Some(lasts) = lasts {
            let shortest = entries.shortest_lease.map_or(lasts, |s| s.min(lasts));
            entries.shortest_lease = Some(shortest);
        }
        let entry = Entry {
            serial: entries.serial,
            lease,
            received: now,
            lease_renewed: now,
            lease_lasts: lasts,
            lingers: lasts.map(|lasts| now + lasts),
            claim: None,
            standing: Standing::Held,
            cancellation: cancellation.clone(),
        };
        let index = entries.slab.insert(entry);
        drop(entries);
        Hold {
            keeper: Arc::clone(self),
            index,
            cancellation,
        }
    }

    /// Cancels everything that is held: the shutdown grace is over.
    pub(crate) fn stop_all(&self) {
        for (_, entry) in &mut self.entries.lock().slab {
            lose(entry, Standing::Stopped);
            entry.cancellation.cancel();
        }
    }

    /// Renews until dropped.
    pub(crate) async fn run(&self, subscription: &dyn Subscription, store: Option<StoreHandle>) {
        loop {
            let shortest = self.entries.lock().shortest_lease;
            let tick = self.settings.tick(shortest);
            tokio::time::sleep(tick).await;
            let asked = Instant::now();
            let (leases, claims) = self.due(asked, tick);
            let patience = self.settings.patience(shortest);
            let extending = self.extend_leases(subscription, leases, asked);
            let renewing = self.renew_claims(store.as_deref(), claims, asked);
            let round = async {
                tokio::join!(
                    self.bounded(patience, extending),
                    self.bounded(patience, renewing)
                )
            };
            let mut round = pin!(round);
            loop {
                tokio::select! {
                    biased;
                    _ = &mut round => break,
                    // An answer that does not come hides nothing that runs out meanwhile.
                    () = tokio::time::sleep(tick) => drop(self.due(Instant::now(), tick)),
                }
            }
            // Between a round's last look and the next round's first, no more than a tick may pass.
            drop(self.due(Instant::now(), tick));
        }
    }

    /// Asks broker or store, who may hang, and whose adapter may panic.
    async fn bounded(&self, patience: Duration, asking: impl Future<Output = ()>) {
        let asking = AssertUnwindSafe(asking).catch_unwind();
        let problem = match tokio::time::timeout(patience, asking).await {
            Ok(Ok(())) => return,
            Ok(Err(_)) => "panicked: a bug in an adapter",
            Err(_) => "did not end in time",
        };
        self.counters.renewal_errors.raise();
        tracing::error!("renewing leases or claims {problem}");
    }

    /// What has used up a third of its time, and what has run out; a claim that would run out before
    /// the next tick counts as lost, so that its handler has ended when another one begins.
    pub(super) fn due(&self, now: Instant, tick: Duration) -> (Due<LeaseId>, Due<Ticket>) {
        let (mut leases, mut claims) = (Vec::new(), Vec::new());
        let claim_lease = self.settings.claim_lease;
        for (index, entry) in &mut self.entries.lock().slab {
            let since_extended = now.duration_since(entry.lease_renewed);
            match entry.lease_lasts {
                Some(lasts) if since_extended >= lasts => self.lose_lease(entry),
                Some(_) if self.past_limit(entry, now) => {}
                Some(lasts) if since_extended < lasts / 3 => {}
                _ => {
                    entry.lingers = entry.lease_lasts.map(|lasts| now + lasts);
                    leases.push((index, entry.serial, entry.lease));
                }
            }
            let since_renewed = entry
                .claim
                .as_ref()
                .map(|(_, renewed)| now.duration_since(*renewed));
            match since_renewed {
                Some(since) if since + tick >= claim_lease => lose(entry, Standing::ClaimLost),
                Some(since) if since >= claim_lease / 3 => {
                    let ticket = entry.claim.as_ref().map(|(ticket, _)| ticket.clone());
                    claims.extend(ticket.map(|ticket| (index, entry.serial, ticket)));
                }
                _ => {}
            }
        }
        (leases, claims)
    }

    fn lose_lease(&self, entry: &mut Entry) {
        match entry.standing {
            Standing::Held => {
                self.counters.lost_leases.raise();
                lose(entry, Standing::LeaseLost);
            }
            // Cancelled already, but until now there was a lease to settle under.
            Standing::ClaimLost | Standing::Stopped => {
                self.counters.lost_leases.raise();
                entry.standing = Standing::LeaseLost;
            }
            Standing::Settling | Standing::LeaseLost => {}
        }
    }

    fn past_limit(&self, entry: &Entry, now: Instant) -> bool {
        match self.settings.delivery_lease {
            DeliveryLease::Timed {
                max_total: Some(limit),
            } => now.duration_since(entry.received) + entry.lease_lasts.unwrap_or_default() > limit,
            _ => false,
        }
    }

    pub(super) async fn extend_leases(
        &self,
        subscription: &dyn Subscription,
        due: Due<LeaseId>,
        at: Instant,
    ) {
        if due.is_empty() {
            return;
        }
        let leases: Vec<_> = due.iter().map(|(_, _, lease)| *lease).collect();
        let answers = subscription.extend(&leases).await;
        let mut failures = None;
        for ((index, serial, _), answer) in due.into_iter().zip(answers) {
            self.with(index, serial, |entry| match answer {
                Ok(LeaseState::Held(lasts)) => {
                    entry.lease_renewed = at;
                    entry.lease_lasts = lasts;
                }
                Ok(LeaseState::Lost) => {
                    entry.lingers = None;
                    self.lose_lease(entry);
                }
                Err(_) if entry.standing == Standing::Settling => {}
                Err(error) => count(&mut failures, error),
            });
        }
        if let Some((error, leases)) = failures {
            self.counters.renewal_errors.add(leases);
            tracing::warn!(leases, error = %with_causes(&error), "leases could not be extended; trying again until they run out");
        }
    }

    async fn renew_claims(
        &self,
        store: Option<&dyn IdempotencyStore>,
        due: Due<Ticket>,
        at: Instant,
    ) {
        let Some(store) = store.filter(|_| !due.is_empty() && !planted!(NeverRenews)) else {
            return;
        };
        let tickets: Vec<_> = due.iter().map(|(_, _, ticket)| ticket.clone()).collect();
        let answers = store.renew(&tickets, self.settings.claim_lease).await;
        let mut failures = None;
        for ((index, serial, ticket), answer) in due.into_iter().zip(answers) {
            self.with(index, serial, |entry| {
                let Some((current, renewed)) = entry.claim.as_mut().filter(|(t, _)| *t == ticket)
                else {
                    return;
                };
                match answer {
                    Ok(Ownership::Held) => *renewed = at,
                    Ok(Ownership::Fenced) if planted!(LossIgnored) => *renewed = at,
                    Ok(Ownership::Fenced) => {
                        tracing::warn!(key = ?current.key, fence = %current.fence, "a claim was taken over; its handler is cancelled");
                        lose(entry, Standing::ClaimLost);
                    }
                    Err(error) => count(&mut failures, error),
                }
            });
        }
        if let Some((error, claims)) = failures {
            self.counters.renewal_errors.add(claims);
            tracing::warn!(claims, error = %with_causes(&error), "claims could not be renewed; trying again until they run out");
        }
    }

    /// Changes an entry, if the index still belongs to the delivery with this serial number.
    fn with(&self, index: usize, serial: u64, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.slab.get_mut(index).filter(|e| e.serial == serial) {
            change(entry);
        }
    }
}

/// Keeps the first error of a round, and counts the others. An outage meets everything that is held, once
/// a tick: a line for each would bury whatever else there is to say.
fn count<E>(failures: &mut Option<(E, u64)>, error: E) {
    match failures {
        Some((_, count)) => *count += 1,
        None => *failures = Some((error, 1)),
    }
}

fn lose(entry: &mut Entry, standing: Standing) {
    if entry.standing == Standing::Held {
        entry.standing = standing;
        entry.cancellation.cancel();
    }
}

impl Hold {
    /// Keeps this claim too, made at `asked`.
    pub(crate) fn keep_claim(&self, ticket: Ticket, asked: Instant) {
        self.keeper.entries.lock().slab[self.index].claim = Some((ticket, asked));
    }

    /// Keeps no claim any more.
    pub(crate) fn drop_claim(&self) {
        if !planted!(RenewsAfterEnd) {
            self.keeper.entries.lock().slab[self.index].claim = None;
        }
    }

    /// Whether the delivery may still be settled.
    pub(crate) fn standing(&self) -> Standing {
        let now = Instant::now();
        let mut entries = self.keeper.entries.lock();
        let entry = &mut entries.slab[self.index];
        if let Some(lasts) = entry.lease_lasts
            && now.duration_since(entry.lease_renewed) >= lasts
        {
            self.keeper.lose_lease(entry);
        }
        entry.standing
    }

    /// Until when the broker may take the delivery for ours, though we are done with it.
    pub(crate) fn lingers_until(&self) -> Option<Instant> {
        self.keeper.entries.lock().slab[self.index].lingers
    }

    /// Says that the broker does not take the delivery for ours any more.
    pub(crate) fn is_gone(&self) {
        self.keeper.entries.lock().slab[self.index].lingers = None;
    }

    /// Says that a verdict is on its way.
    pub(crate) fn settling(&self) {
        let mut entries = self.keeper.entries.lock();
        let entry = &mut entries.slab[self.index];
        if entry.standing == Standing::Held {
            entry.standing = Standing::Settling;
        }
    }

    /// Is cancelled when the standing is no longer [`Standing::Held`].
    pub(crate) const fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut entries = self.keeper.entries.lock();
        let entry = entries.slab.remove(self.index);
        let (claim, theirs) = (entry.claim, entry.cancellation);
        drop(theirs);
        entries.spare.extend(self.cancellation.give_away());
        drop(entries);
        drop(claim);
    }
}
