//! Bugs that are planted to see whether the simulator finds them. They exist only with the feature
//! `planted`, which does not compile without debug assertions: no release can hold them.

use std::cell::Cell;

#[cfg(not(debug_assertions))]
compile_error!(
    "the feature `planted` breaks the pipeline on purpose: it is for tests of the simulator"
);

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The delivery is acknowledged before the completion is recorded.
    AckBeforeComplete,
    /// The store takes the completion of a claim that another one has followed.
    StaleClaimCompletes,
    /// The store forgets the attempt that a failure used.
    ReleaseForgetsCount,
    /// The keeper goes on renewing a claim that was given up.
    RenewsAfterEnd,
    /// A delivery is settled though its lease is lost.
    SettlesAfterLoss,
    /// What waits for its turn when a shutdown begins is dropped.
    DrainDropsBuffer,
    /// A message does not wait for the one before it in its lane.
    LaneFreedEarly,
    /// The broker forgets the attempts that a retry tells it.
    RetryForgetsAttempts,
    /// One attempt more than the cap.
    CapOffByOne,
    /// A last attempt that an open breaker should spare is dead-lettered.
    BreakerDeadLetters,
    /// A handler runs on though its claim was taken over.
    LossIgnored,
    /// The store lets a claim be taken over before it has run out.
    ClaimTakenEarly,
    /// A completion that the store did not confirm counts as recorded.
    SilenceIsConsent,
    /// Retries do not wait.
    RetriesAtOnce,
    /// Claims are never renewed.
    NeverRenews,
    /// Handlers that do not end are waited for.
    GraceWithoutEnd,
    /// The store lets what was completed be claimed again.
    CompletedIsClaimed,
    /// Twice as many handlers as allowed.
    SlotsDoubled,
}

impl Bug {
    /// Every bug.
    pub const ALL: [Self; 18] = [
        Self::AckBeforeComplete,
        Self::StaleClaimCompletes,
        Self::ReleaseForgetsCount,
        Self::RenewsAfterEnd,
        Self::SettlesAfterLoss,
        Self::DrainDropsBuffer,
        Self::LaneFreedEarly,
        Self::RetryForgetsAttempts,
        Self::CapOffByOne,
        Self::BreakerDeadLetters,
        Self::LossIgnored,
        Self::ClaimTakenEarly,
        Self::SilenceIsConsent,
        Self::RetriesAtOnce,
        Self::NeverRenews,
        Self::GraceWithoutEnd,
        Self::CompletedIsClaimed,
        Self::SlotsDoubled,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug for what runs on this thread, instead of the one before.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

pub(crate) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
