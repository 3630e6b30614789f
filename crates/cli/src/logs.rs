//! Logs, on stderr.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::output;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Look {
    /// What `--json` says about logs.
    pub(crate) const fn of_json_flag(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// Sends logs to stderr, from the level that `RUST_LOG` names, or else from `default` on.
pub(crate) fn start(default: &str, look: Look) {
    let mut wanted = std::env::var("RUST_LOG").unwrap_or_default();
    if wanted.trim().is_empty() {
        default.clone_into(&mut wanted);
    }
    // What the client of RabbitMQ has to say is said by our errors, without the bodies that it logs.
    if !wanted.contains("lapin") {
        wanted.push_str(",lapin=off");
    }
    // Below that the client of SQS tells of each request, at last with headers and bodies.
    if !wanted.contains("aws") {
        wanted.push_str(",aws=warn");
    }
    let filter = EnvFilter::new(wanted);
    let registry = tracing_subscriber::registry().with(filter);
    // Fails only if logs are started already.
    let _ = match look {
        Look::Text => {
            let text = layer().with_writer(io::stderr).with_target(false);
            registry
                .with(text.with_ansi(output::is_watched()))
                .try_init()
        }
        Look::Json => {
            let json = layer().json().flatten_event(true).with_writer(io::stderr);
            registry.with(json).try_init()
        }
    };
}
