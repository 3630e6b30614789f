//! `backstop publish`

mod lines;
mod sender;
mod sending;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstop::{Message, Publisher, Shutdown};
use clap::{Args, ValueEnum};
use serde_json::json;

pub(crate) use self::lines::{Defaults, Lines};
pub(crate) use self::sender::{Sender, Unconfirmed};
use self::sending::Ended;
use crate::exit::{Code, CommandError};
use crate::{connect, logs, output};

const ABOUT: &str = "\
Publish messages, each confirmed by the broker

One message from the arguments, or one for each line of a file or of stdin. A line is JSON:

  {\"id\": \"o-1\", \"key\": \"customer-7\", \"headers\": {\"tenant\": \"a\"}, \"body\": {\"amount\": 7}, \"delay\": \"5s\"}

Only the body is needed: as text, as any JSON value, or as body_base64. A message without an id \
gets a new one. The key is the partition key; the delay is a text such as \"5s\", or seconds.

A file is checked to its end before its first message is published. Of stdin, what stands before a \
bad line is published.

Ctrl-C or SIGTERM takes no further line, waits up to 5 s for what is not confirmed, says from which line \
to go on, and ends with 75. A second one ends at once.";

/// Publish messages, each confirmed by the broker
#[derive(Args)]
#[command(long_about = ABOUT)]
pub(crate) struct Publish {
    /// The queue: `amqp://user:password@host/vhost?queue=<queue>` (amqps:// for TLS),
    /// `sqs://<host>/<account>/<queue>` (or `sqs:///<queue>?region=<region>`), or `memory://<queue>`
    #[arg(long, env = "BACKSTOP_URL", hide_env_values = true)]
    url: String,
    /// The body of one message
    #[arg(conflicts_with = "file")]
    body: Option<String>,
    /// Publish each line of this file; `-` is stdin
    #[arg(long)]
    file: Option<PathBuf>,
    /// What a line is
    #[arg(long, value_enum, default_value_t = Format::Json, conflicts_with = "body")]
    format: Format,
    /// The message's id; the same id twice is a repeat, which consumers absorb
    #[arg(long, requires = "body")]
    id: Option<String>,
    /// The partition key, for messages that have none: order is kept within it
    #[arg(long)]
    key: Option<String>,
    /// A header, for messages that do not set it; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Deliver not before this long from now, such as `90s` or `15min`, for messages that say
    /// nothing else
    #[arg(long, value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What a line of input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A JSON object with body, id, key, headers and delay
    Json,
    /// The body itself
    Lines,
}

/// Where messages come from.
enum Source {
    Argument(String),
    File(PathBuf),
    Stdin,
}

impl Publish {
    pub(crate) async fn execute(self) -> Result<(), CommandError> {
        logs::start("warn", logs::Look::of_json_flag(self.json));
        let source = self.source()?;
        if let Source::File(path) = &source {
            // Before connecting: a typing error should not cost a connection.
            open(path)?;
        }
        let broker = connect::broker(&self.url).await?;
        if connect::memory_queue(&self.url).is_some() {
            output::note(
                "note: a memory:// queue lives inside this command, and its messages end with it",
            );
        }
        let defaults = Defaults {
            format: self.format,
            key: self.key.clone(),
            headers: self.headers.clone(),
            delay: self.delay.unwrap_or_default(),
            max_body: broker.capabilities().max_body,
        };
        // Until now a signal has ended the command, and nothing was published.
        let shutdown = Shutdown::on_signals().map_err(|error| {
            CommandError::new(Code::Software, format!("cannot listen to signals: {error}"))
        })?;
        let mut sender = Sender::new(Publisher::new(broker.clone()), self.json);
        let begun = Instant::now();
        let sending = self.send(&source, defaults, &mut sender, &shutdown);
        let ended = sending::until_interrupted(sending, &shutdown).await;
        sender.finish();
        tokio::select! {
            () = broker.close() => {}
            () = shutdown.cut_short() => {}
        }
        let next_line = (!matches!(source, Source::Argument(_))).then(|| sender.next_line());
        let sent = match ended {
            Ok(Ended::Complete) => Ok(()),
            Ok(Ended::Interrupted) => Err(interrupted(&mut sender, next_line)),
            Err(error) => Err(error),
        };
        self.report(&sender, broker.queue(), begun.elapsed(), sent, next_line)
    }

    fn source(&self) -> Result<Source, CommandError> {
        match (&self.body, &self.file) {
            (Some(body), _) => Ok(Source::Argument(body.clone())),
            (None, Some(path)) if path.as_os_str() != "-" => Ok(Source::File(path.clone())),
            (None, None) if io::stdin().is_terminal() => {
                let text = "nothing to publish: give a body, --file FILE, or lines on stdin";
                Err(CommandError::new(Code::Usage, text))
            }
            (None, _) => Ok(Source::Stdin),
        }
    }

    async fn send(
        &self,
        source: &Source,
        defaults: Defaults,
        sender: &mut Sender,
        shutdown: &Shutdown,
    ) -> Result<Ended, CommandError> {
        match source {
            Source::Argument(body) => {
                let mut message = Message::new(body.clone());
                if let Some(id) = &self.id {
                    message = message.with_id(id.as_str());
                }
                let entry = defaults.complete(message, None, 0);
                let entry = entry.map_err(|problem| CommandError::new(Code::Data, problem))?;
                sender.expect(None);
                sender.send(entry).await?;
                sender.flush().await?;
                Ok(Ended::Complete)
            }
            Source::File(path) => {
                let name = path.display().to_string();
                let lines = Lines::new(open(path)?, name.clone(), defaults.clone());
                let Some(bytes) = sending::measure(lines, shutdown).await? else {
                    return Ok(Ended::Interrupted);
                };
                sender.expect(Some(bytes));
                let lines = Lines::new(open(path)?, name, defaults);
                sending::send_lines(lines, sender, shutdown).await
            }
            Source::Stdin => {
                sender.expect(None);
                let stdin = BufReader::new(io::stdin());
                let lines = Lines::new(stdin, "stdin".to_owned(), defaults);
                sending::send_lines(lines, sender, shutdown).await
            }
        }
    }

    fn report(
        &self,
        sender: &Sender,
        queue: &str,
        took: Duration,
        sent: Result<(), CommandError>,
        next_line: Option<usize>,
    ) -> Result<(), CommandError> {
        let published = sender.published();
        let told = if self.json {
            let unconfirmed: Vec<_> = sender.unconfirmed().iter().map(Unconfirmed::json).collect();
            output::print_json(&json!({
                "queue": queue,
                "published": published,
                "not_confirmed": unconfirmed,
                "error": sent.as_ref().err().map(ToString::to_string),
                "resume_from_line": next_line.filter(|_| sent.is_err()),
                "seconds": took.as_secs_f64(),
            }))
        } else if sent.is_ok() {
            let count = output::counted(published, "message");
            let took = output::brief(took);
            output::print(&format!("published {count} to {queue:?} in {took}"))
        } else {
            Ok(())
        };
        // What was not published matters more than whether somebody reads about it.
        sent?;
        Ok(told?)
    }
}

/// Says what became of it, and where to go on.
fn interrupted(sender: &mut Sender, next_line: Option<usize>) -> CommandError {
    let confirmed = output::counted(sender.published(), "message");
    let mut text = format!("interrupted: {confirmed} confirmed");
    if sender.pending() > 0 {
        let pending = output::counted(sender.pending(), "message");
        let _ = write!(text, "; {pending} not, and may or may not have arrived");
    }
    if let Some(line) = next_line {
        let _ = write!(
            text,
            "; to go on, publish from line {line} on (tail -n +{line})"
        );
    }
    sender.abandon();
    CommandError::new(Code::TempFail, text)
}

/// Opens a file to read lines from.
pub(crate) fn open(path: &Path) -> Result<BufReader<File>, CommandError> {
    let opened = File::open(path).and_then(|file| {
        if file.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        Ok(file)
    });
    opened.map(BufReader::new).map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied => Code::NoPermission,
            _ => Code::NoInput,
        };
        CommandError::new(code, format!("cannot read {}: {error}", path.display()))
    })
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}
