//! The shop: its orders, its bank, its ledger, and the handler that charges an order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop::{Context, Handler, HandlerError, Randomness};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::ledger::Ledger;
use super::plan::{Order, Plan, UNKNOWN_CURRENCY};

/// The wait before a second attempt.
pub(super) const BASE: Duration = Duration::from_millis(100);

/// All that the story plays with.
pub(super) struct Shop {
    pub(super) plan: Arc<Plan>,
    pub(super) ledger: Ledger,
    pub(super) bank: Bank,
}

/// The service that every order needs.
#[derive(Default)]
pub(super) struct Bank {
    out: AtomicBool,
}

impl Bank {
    /// Puts it out of service, or back into it.
    pub(super) fn put_out(&self, out: bool) {
        self.out.store(out, Ordering::Relaxed);
    }

    pub(super) fn is_out(&self) -> bool {
        self.out.load(Ordering::Relaxed)
    }

    fn call(&self) -> Result<(), &'static str> {
        if self.is_out() {
            return Err("the bank is out of service (503)");
        }
        Ok(())
    }
}

impl Shop {
    pub(super) fn new(plan: Plan) -> Self {
        let plan = Arc::new(plan);
        Self {
            ledger: Ledger::new(Arc::clone(&plan), BASE),
            bank: Bank::default(),
            plan,
        }
    }

    /// Jitter that repeats with the seed.
    pub(super) fn randomness(&self, worker: u64) -> Randomness {
        let random = Mutex::new(StdRng::seed_from_u64(self.plan.seed ^ worker));
        Arc::new(move || random.lock().random())
    }

    /// The handler that a user would write.
    async fn charge(&self, order: Order, context: Context) -> Result<(), HandlerError> {
        let id = context.id().map_or("", |id| id.as_str());
        let Some(index) = self.plan.find(id) else {
            self.ledger.foreign();
            return Ok(());
        };
        let attempt = context.attempt().get();
        self.ledger.started(index, attempt);
        tokio::time::sleep(Duration::from_millis(self.plan.orders[index].work)).await;
        if order.card.as_deref() == Some("closed") {
            self.ledger.failed(index, attempt);
            return Err(HandlerError::permanent("the card was closed by its owner"));
        }
        if let Err(error) = self.bank.call() {
            self.ledger.failed_by_bank(index, attempt);
            return Err(error.into());
        }
        if order.currency == UNKNOWN_CURRENCY {
            self.ledger.failed(index, attempt);
            return Err("there is no exchange rate for the currency XTS".into());
        }
        if let Some(fence) = context.fence() {
            self.ledger.charge(index, fence);
        }
        Ok(())
    }
}

/// The shop's handler.
pub(super) fn handler(shop: Arc<Shop>) -> impl Handler<Order> {
    move |order: Order, context: Context| {
        let shop = Arc::clone(&shop);
        async move { shop.charge(order, context).await }
    }
}
