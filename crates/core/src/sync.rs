//! Locks and flags that threads share.
//!
//! Under `--cfg shuttle` the unit tests get those of shuttle, which tries orders of threads:
//! `consumer/threads.rs`.

#[cfg(not(all(test, shuttle)))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(all(test, shuttle)))]
pub(crate) use std::sync::atomic::AtomicBool;

#[cfg(all(test, shuttle))]
pub(crate) use self::shuttled::Mutex;
#[cfg(all(test, shuttle))]
pub(crate) use shuttle::sync::atomic::AtomicBool;

#[cfg(all(test, shuttle))]
mod shuttled {
    use shuttle::sync::MutexGuard;

    /// Shuttle's lock as `parking_lot` has it: without poison.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a test that panics has failed")
        }
    }
}
