//! Runs the cases of a suite.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::report::{Failure, LeftOut, Report};

/// What a case comes to.
pub(crate) type Verdict = anyhow::Result<()>;

/// Whether a case bears the company of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// It runs beside others.
    Together,
    /// It restarts the server, or loads it so much that others would suffer.
    Alone,
}

type Run<S> = fn(S) -> Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// A case of a suite about an `S`.
pub(crate) struct Case<S> {
    pub(crate) id: &'static str,
    pub(crate) claim: &'static str,
    pub(crate) company: Company,
    pub(crate) run: Run<S>,
}

/// Makes a [`Case`] of an async function, whose name is its claim.
macro_rules! case {
    ($id:literal, $function:ident) => {
        $crate::runner::case!($id, $function, Together)
    };
    ($id:literal, $function:ident, $company:ident) => {
        $crate::runner::Case {
            id: $id,
            claim: stringify!($function),
            company: $crate::runner::Company::$company,
            run: |subject| Box::pin($function(subject)),
        }
    };
}
pub(crate) use case;

/// Which cases to run.
#[derive(Clone, Debug)]
pub(crate) enum Selection {
    All,
    /// Ids, or letters of groups.
    Named(Vec<String>),
}

impl Selection {
    /// What `BACKSTOP_CASE` says.
    pub(crate) fn from_environment() -> Self {
        match std::env::var("BACKSTOP_CASE") {
            Ok(names) if !names.is_empty() => Self::named(&names),
            _ => Self::All,
        }
    }

    pub(crate) fn named(names: &str) -> Self {
        Self::Named(
            names
                .split(',')
                .map(|name| name.trim().to_owned())
                .collect(),
        )
    }

    fn contains(&self, id: &str) -> bool {
        let group = id.trim_end_matches(|c: char| c.is_ascii_digit());
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| name == id || name == group),
        }
    }
}

/// How many cases run beside each other.
const BESIDE: usize = 8;

/// How long a case may take before it counts as hanging.
const LIMIT: Duration = Duration::from_mins(10);

/// Runs cases, and never stops at a failure.
pub(crate) async fn run<S: Clone + Send + 'static>(
    name: String,
    subject: S,
    selection: &Selection,
    cases: Vec<Case<S>>,
    left_out: impl Fn(&Case<S>) -> Option<&'static str>,
) -> Report {
    let mut report = Report {
        subject: name,
        ..Report::default()
    };
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for case in cases.into_iter().filter(|case| selection.contains(case.id)) {
        if let Some(reason) = left_out(&case) {
            println!("{:>4} left out: {reason}", case.id);
            let case = case.id;
            report.left_out.push(LeftOut { case, reason });
            continue;
        }
        match case.company {
            Company::Together => together.push(case),
            Company::Alone => alone.push(case),
        }
    }
    run_beside(&mut report, &subject, together, BESIDE).await;
    run_beside(&mut report, &subject, alone, 1).await;
    println!("{report}");
    report
}

async fn run_beside<S: Clone + Send + 'static>(
    report: &mut Report,
    subject: &S,
    cases: Vec<Case<S>>,
    beside: usize,
) {
    let places = Arc::new(Semaphore::new(beside));
    let mut running = JoinSet::new();
    for case in cases {
        let (places, subject) = (Arc::clone(&places), subject.clone());
        running.spawn(async move {
            let _place = places.acquire().await;
            let begun = Instant::now();
            // A task of its own: a panic is this case's failure.
            let mut run = tokio::spawn((case.run)(subject));
            let message = match tokio::time::timeout(LIMIT, &mut run).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(error))) => Some(format!("{error:#}")),
                Ok(Err(panic)) => Some(format!("the case panicked: {panic}")),
                Err(_) => {
                    run.abort();
                    Some(format!("it did not come to an end within {LIMIT:?}"))
                }
            };
            (case.id, case.claim, begun.elapsed(), message)
        });
    }
    while let Some(ended) = running.join_next().await {
        let Ok((case, claim, took, message)) = ended else {
            continue;
        };
        match message {
            None => {
                println!("{case:>4} passed in {took:.1?}: {claim}");
                report.passed.push((case, took));
            }
            Some(message) => {
                println!("{case:>4} FAILED after {took:.1?}: {claim}: {message}");
                report.failed.push(Failure {
                    case,
                    claim,
                    message,
                });
            }
        }
    }
}
