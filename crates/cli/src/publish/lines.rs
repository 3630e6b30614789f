//! From lines of text to messages.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufRead, Read as _};
use std::time::Duration;

use backstop::Message;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Format;
use crate::exit::{Code, CommandError};

/// A message from the input.
pub(crate) struct Entry {
    pub(crate) message: Message,
    pub(crate) delay: Duration,
    /// The line's number from 1; 0 for a message from the arguments.
    pub(crate) line: usize,
    /// Bytes that were read for it.
    pub(crate) read: usize,
}

/// What messages get that do not say it themselves, and how large they may be.
#[derive(Clone)]
pub(crate) struct Defaults {
    pub(crate) format: Format,
    pub(crate) key: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) delay: Duration,
    pub(crate) max_body: usize,
}

/// A line that is no message.
#[derive(Debug)]
pub(crate) struct BadLine {
    name: String,
    line: usize,
    problem: String,
    code: Code,
}

/// The messages of a file or a stream, line by line; blank lines are passed over.
pub(crate) struct Lines<R> {
    reader: R,
    name: String,
    line: usize,
    defaults: Defaults,
}

/// What stands in a line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    key: Option<Cow<'a, str>>,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    // Raw, so that JSON arrives as it was written, and no error quotes it.
    #[serde(borrow, default)]
    body: Option<&'a RawValue>,
    #[serde(default)]
    body_base64: Option<Cow<'a, str>>,
    #[serde(default)]
    delay: Option<Value>,
}

impl Defaults {
    /// For the queue of a dry run.
    pub(crate) const fn for_feed(max_body: usize) -> Self {
        Self {
            format: Format::Json,
            key: None,
            headers: Vec::new(),
            delay: Duration::ZERO,
            max_body,
        }
    }

    /// Completes a message with what it does not say.
    pub(crate) fn complete(
        &self,
        mut message: Message,
        delay: Option<Duration>,
        line: usize,
    ) -> Result<Entry, String> {
        let (size, limit) = (message.body.len(), self.max_body);
        if size > limit {
            return Err(format!(
                "the body has {size} bytes, and this broker takes at most {limit}"
            ));
        }
        if message.partition_key.is_none()
            && let Some(key) = &self.key
        {
            message = message.with_partition_key(key.as_str());
        }
        for (name, value) in &self.headers {
            if message.headers.get(name).is_none() {
                message = message.with_header(name.as_str(), value.as_str());
            }
        }
        Ok(Entry {
            message,
            delay: delay.unwrap_or(self.delay),
            line,
            read: size,
        })
    }

    fn parse(&self, text: &[u8], line: usize) -> Result<Entry, String> {
        if self.format == Format::Lines {
            return self.complete(Message::new(text.to_vec()), None, line);
        }
        let written: Written<'_> = serde_json::from_slice(text).map_err(|error| problem(&error))?;
        let mut message = Message::new(written.body()?);
        if let Some(id) = &written.id {
            if id.is_empty() {
                return Err("the id is empty: leave it out to get a new one".to_owned());
            }
            message = message.with_id(&**id);
        }
        if let Some(key) = &written.key {
            message = message.with_partition_key(&**key);
        }
        for (name, value) in &written.headers {
            message = message.with_header(name.as_str(), header_text(name, value)?);
        }
        let delay = written.delay.as_ref().map(delay_of).transpose()?;
        self.complete(message, delay, line)
    }

    /// Twice the largest body: base64 takes a third more, and a text's escapes rarely as much again.
    const fn longest_line(&self) -> u64 {
        const ROOM_FOR_THE_REST: u64 = 1 << 20;
        (self.max_body as u64).saturating_mul(2) + ROOM_FOR_THE_REST
    }
}

impl Written<'_> {
    fn body(&self) -> Result<Vec<u8>, String> {
        match (self.body, &self.body_base64) {
            (Some(_), Some(_)) => Err("it has both body and body_base64: keep one".to_owned()),
            (None, None) => Err("it has neither body nor body_base64".to_owned()),
            (None, Some(text)) => {
                let decoded = STANDARD.decode(text.as_bytes());
                decoded.map_err(|_| "body_base64 is not base64 (standard alphabet, padded)".into())
            }
            (Some(raw), None) if raw.get().starts_with('"') => {
                let text = serde_json::from_str::<String>(raw.get());
                let text =
                    text.map_err(|_| "the body's text has an escape that is no character")?;
                Ok(text.into_bytes())
            }
            (Some(raw), None) => Ok(raw.get().as_bytes().to_vec()),
        }
    }
}

/// Says what is wrong, without the column that `serde_json` counts in one line.
fn problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    let text = &text[..end];
    if error.is_data() {
        return text.to_owned();
    }
    format!(
        "not valid JSON at column {}: {text} (each line is one JSON object; --format lines \
         publishes lines as they are)",
        error.column()
    )
}

fn header_text(name: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err(format!(
            "the header {name:?} has to be a text, a number, true or false"
        )),
    }
}

fn delay_of(value: &Value) -> Result<Duration, String> {
    let delay = match value {
        Value::String(text) => humantime::parse_duration(text).ok(),
        Value::Number(seconds) => seconds
            .as_f64()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        _ => None,
    };
    delay.ok_or_else(|| "the delay has to be a text such as \"5s\", or seconds".to_owned())
}

impl<R: BufRead> Lines<R> {
    pub(crate) const fn new(reader: R, name: String, defaults: Defaults) -> Self {
        Self {
            reader,
            name,
            line: 0,
            defaults,
        }
    }

    fn bad(&self, code: Code, problem: String) -> BadLine {
        BadLine {
            name: self.name.clone(),
            line: self.line,
            problem,
            code,
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Entry, BadLine>;

    fn next(&mut self) -> Option<Self::Item> {
        let longest = self.defaults.longest_line();
        loop {
            let mut text = Vec::new();
            let read = (&mut self.reader)
                .take(longest)
                .read_until(b'\n', &mut text);
            self.line += 1;
            let read = match read {
                Ok(0) => return None,
                Ok(read) => read,
                Err(error) => {
                    let problem = format!("cannot be read: {error}");
                    return Some(Err(self.bad(Code::InputOutput, problem)));
                }
            };
            if read as u64 == longest {
                let problem = format!("longer than {longest} bytes: no broker takes such a body");
                return Some(Err(self.bad(Code::Data, problem)));
            }
            let mut text = text.strip_suffix(b"\n").unwrap_or(&text);
            text = text.strip_suffix(b"\r").unwrap_or(text);
            if self.line == 1 {
                text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let entry = self.defaults.parse(text, self.line);
            let entry = entry.map(|entry| Entry { read, ..entry });
            return Some(entry.map_err(|problem| self.bad(Code::Data, problem)));
        }
    }
}

impl BadLine {
    fn place(&self) -> String {
        format!("{}, line {}: {}", self.name, self.line, self.problem)
    }

    /// In a file, which is checked first.
    pub(crate) fn in_file(&self) -> CommandError {
        CommandError::new(
            self.code,
            format!("{}; nothing was published", self.place()),
        )
    }

    /// In a stream, of which what came before is published.
    pub(crate) fn in_stream(&self, published: u64) -> CommandError {
        let text = format!(
            "{}; the {published} messages before it were published, and nothing from this line on",
            self.place()
        );
        CommandError::new(self.code, text)
    }
}

#[cfg(test)]
mod tests;
