//! The in-process broker passes the suite, and broken ones do not.

mod broken;
mod in_process;
mod remote;
mod store;
mod store_broken;
mod suite;
