//! `backstop run`

mod endpoint;
mod feed;
mod metadata;
mod process_group;
mod program;
mod report;
mod settings;
mod tail;
mod target;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backstop::{BrokerHandle, Consumer, Shutdown};
use clap::Args;
use tokio_util::task::TaskTracker;

use self::endpoint::Endpoint;
use self::feed::Feed;
use self::metadata::Metadata;
use self::process_group::{Ending, keep_ends};
use self::program::{Program, Stdout};
use self::report::Report;
use self::settings::Settings;
use self::target::{Target, To};
use crate::exit::{Code, CommandError};
use crate::{connect, logs};

/// The longest time between SIGTERM and SIGKILL.
const LONGEST_KILL_AFTER: Duration = Duration::from_hours(12);
/// How long a handler may take to end, beyond what SIGKILL waits for.
const SPARE: Duration = Duration::from_secs(5);

const ABOUT: &str = "\
Consume a queue with a program or an HTTP endpoint

A program behind `--` is started once for each message. It gets the body on stdin, and in its environment BACKSTOP_MESSAGE_ID, \
BACKSTOP_IDEMPOTENCY_KEY, BACKSTOP_ATTEMPT (from 1), BACKSTOP_FENCE, BACKSTOP_PARTITION_KEY, \
BACKSTOP_REDRIVES, BACKSTOP_QUEUE, BACKSTOP_HEADER_<NAME> for each header, and BACKSTOP_HEADERS, all \
headers as JSON. Its exit code decides: 0 is done, 75 asks for a retry, 65 sends the message to the \
dead-letter queue, anything else is a failure and is retried. The end of its stderr becomes the \
error that the dead letter shows.

An --endpoint gets a POST for each message, with the body, its content-type, Idempotency-Key, \
Backstop-Message-Id, Backstop-Attempt, Backstop-Fence, Backstop-Partition-Key, Backstop-Redrives, \
Backstop-Queue, Backstop-Header-<name> for each header, and traceparent. Its answer decides: 2xx is \
done; 408, 425, 429, 5xx, no answer in time and no connection are retried, after Retry-After where \
429 or 503 say so; any other 4xx sends the message to the dead-letter queue. Redirects are not \
followed.

Ctrl-C or SIGTERM drains: running programs may finish within --grace, and get SIGTERM shortly before \
its end. A second one stops at once. A program is killed at once, with all that it has started, when \
the grace is over and when the lease of its message is lost, because somebody else may start the \
message. If backstop itself is killed, its programs run on, and after --claim-lease their messages are \
handled again, under a higher fence.

As the first process of a container, backstop reaps what programs leave behind, except for what has \
called setsid or setpgid: with such programs, use `docker run --init`.

declare=true among the parameters of --url makes the queue and its dead-letter queue where they are \
missing. On RabbitMQ, partitions=<number> lets --ordered keep order across processes; on SQS a FIFO queue \
does. Messages that their publisher gives no id need --key-from on RabbitMQ; SQS gives them one. AWS \
credentials come from where the AWS command has them.";

/// Consume a queue with a program or an HTTP endpoint
#[derive(Args)]
#[command(long_about = ABOUT)]
pub(crate) struct Run {
    /// The queue: `amqp://user:password@host/vhost?queue=<queue>` (amqps:// for TLS),
    /// `sqs://<host>/<account>/<queue>` (or `sqs:///<queue>?region=<region>`), or `memory://<queue>`
    #[arg(long, env = "BACKSTOP_URL", hide_env_values = true)]
    url: String,
    /// Where repeats are remembered: redis://, rediss://, redis+cluster://, redis+sentinel://, or
    /// memory:// (this process alone, until it ends)
    #[arg(
        long,
        env = "BACKSTOP_STORE",
        hide_env_values = true,
        conflicts_with = "idempotent_by_nature"
    )]
    store: Option<String>,
    /// Needs no store: the program may run twice for one message without harm
    #[arg(long)]
    idempotent_by_nature: bool,
    #[command(flatten)]
    settings: Settings,
    /// Wait this long after SIGTERM before SIGKILL, when a program takes longer than
    /// --handler-timeout; at most 12h. One whose message is lost, or whose grace is over, is killed
    /// at once
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5s")]
    kill_after: Duration,
    /// Fill a memory:// queue from this file of JSON lines first (see `backstop publish`), and end
    /// when it is empty: a dry run of the program, without a server
    #[arg(long, value_name = "FILE")]
    feed: Option<PathBuf>,
    /// Print events and the summary as JSON lines on stdout, and logs as JSON on stderr
    #[arg(long)]
    json: bool,
    /// Post each message to this URL, http:// or https://, instead of starting a program
    #[arg(
        long,
        value_name = "URL",
        env = "BACKSTOP_ENDPOINT",
        hide_env_values = true,
        conflicts_with = "program"
    )]
    endpoint: Option<String>,
    /// The program and its arguments, behind `--`
    #[arg(last = true)]
    program: Vec<OsString>,
}

impl Run {
    pub(crate) async fn execute(self) -> Result<(), CommandError> {
        logs::start("info", logs::Look::of_json_flag(self.json));
        self.check()?;
        let listening = keep_ends().and_then(|()| Shutdown::on_signals());
        let shutdown = listening.map_err(|error| {
            CommandError::new(Code::Software, format!("cannot listen to signals: {error}"))
        })?;
        let Some(broker) = connect::broker_with_patience(&self.url, &shutdown).await? else {
            return Ok(());
        };
        let ended = self.consume(&broker, &shutdown).await;
        broker.close().await;
        ended
    }

    /// Refuses what cannot work before anything is connected to.
    fn check(&self) -> Result<(), CommandError> {
        let refuse = |text: &str| Err(CommandError::new(Code::Usage, text));
        match (&self.endpoint, self.program.first()) {
            (Some(url), _) => drop(endpoint::read_url(url)?),
            (None, Some(program)) => drop(program::find(program)?),
            (None, None) => {
                return refuse(
                    "nobody to hand messages to: give a program behind `--`, or --endpoint URL",
                );
            }
        }
        if self.store.is_none() && !self.idempotent_by_nature {
            return refuse(
                "say how repeats are made harmless: --store redis://<host> remembers what was \
                 handled; --idempotent-by-nature says that a message may be handled twice",
            );
        }
        if self.kill_after > LONGEST_KILL_AFTER {
            let given = humantime::format_duration(self.kill_after);
            let longest = humantime::format_duration(LONGEST_KILL_AFTER);
            return refuse(&format!(
                "--kill-after cannot be {given}: at most {longest}"
            ));
        }
        self.settings.check(self.spare())?;
        feed::check(self.feed.as_deref(), &self.url)
    }

    async fn consume(
        &self,
        broker: &BrokerHandle,
        shutdown: &Shutdown,
    ) -> Result<(), CommandError> {
        let feed = Feed::begin(self.feed.as_deref(), &self.url).await?;
        let endings = TaskTracker::new();
        let target = Arc::new(self.target(broker, shutdown, &endings)?);
        let builder = Consumer::builder(Arc::clone(broker));
        let builder = self.settings.apply(builder, self.spare())?;
        let builder = match &self.store {
            Some(url) => match connect::store_with_patience(url, shutdown).await? {
                Some(store) => builder.store(store),
                None => return Ok(()),
            },
            None => builder.idempotent_by_nature(),
        };
        let consumer = builder.raw(target::handler(Arc::clone(&target)));
        let consumer = consumer.map_err(|error| CommandError::setting(&error))?;
        let report = Report::new(self.json, broker.queue(), consumer.monitor());
        let announcing = report.announce_readiness(&target);
        let feeding = feed.end_when_drained(shutdown);
        let ended = tokio::select! {
            ended = consumer.run(shutdown) => ended,
            never = announcing => match never {},
            never = feeding => match never {},
        };
        // Programs that were cancelled are on their way out; none is left behind.
        endings.close();
        endings.wait().await;
        let told = report.summary(&target);
        // How it ended matters more than whether somebody reads about it.
        ended.map_err(|error| CommandError::run(&error))?;
        if is_cut_short(shutdown).await {
            let text = "stopped at once: what was being handled is given back and comes again";
            return Err(CommandError::new(Code::TempFail, text));
        }
        Ok(told?)
    }

    /// How long a handler may take to end after its timeout.
    fn spare(&self) -> Duration {
        match self.endpoint {
            Some(_) => SPARE,
            None => self.kill_after + SPARE,
        }
    }

    fn target(
        &self,
        broker: &BrokerHandle,
        shutdown: &Shutdown,
        endings: &TaskTracker,
    ) -> Result<Target, CommandError> {
        let metadata = Metadata::new(broker.queue(), self.settings.key_source());
        if let Some(url) = &self.endpoint {
            let endpoint = Endpoint::new(url, metadata, &self.settings)?;
            return Ok(Target::new(To::Endpoint(endpoint)));
        }
        let (name, arguments) = self
            .program
            .split_first()
            .ok_or_else(|| CommandError::new(Code::Usage, "nobody to hand messages to"))?;
        let program = Program {
            path: program::find(name)?,
            arguments: arguments.to_vec(),
            metadata,
            timeout: self.settings.handler_timeout,
            ending: Ending {
                kill_after: self.kill_after,
                grace: self.settings.grace,
                shutdown: shutdown.clone(),
                tasks: endings.clone(),
            },
            stdout: if self.json {
                Stdout::ToStderr
            } else {
                Stdout::Inherited
            },
        };
        Ok(Target::new(To::Program(program)))
    }
}

async fn is_cut_short(shutdown: &Shutdown) -> bool {
    tokio::select! {
        biased;
        () = shutdown.cut_short() => true,
        () = std::future::ready(()) => false,
    }
}
