//! An SQS whose answers are written down beforehand: no emulator takes a batch in part.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region, SharedHttpClient};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::connection::Clients;

/// What was asked, and what is answered.
#[derive(Clone)]
pub(crate) struct Script {
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Answers = Box<dyn FnMut(&Asked) -> Answer + Send>;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The action, such as `ReceiveMessage`.
    pub(crate) action: String,
    pub(crate) body: Value,
}

impl Script {
    /// Answers one request after the other; the last answer stands for all that follow.
    pub(crate) fn new<A: Into<Answer>>(answers: impl IntoIterator<Item = A>) -> Self {
        let mut answers: VecDeque<Answer> = answers.into_iter().map(Into::into).collect();
        Self::by(move |_| {
            let answer = match answers.len() {
                1 => answers.front().cloned(),
                _ => answers.pop_front(),
            };
            answer.expect("an answer for every request")
        })
    }

    /// Answers each request by itself.
    pub(crate) fn by(answers: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        Self {
            answers: Arc::new(Mutex::new(Box::new(answers))),
            asked: Arc::default(),
        }
    }

    /// The requests for this action, in their order.
    pub(crate) fn asked(&self, action: &str) -> Vec<Value> {
        let asked = self.asked.lock();
        let asked = asked.iter().filter(|asked| asked.action == action);
        asked.map(|asked| asked.body.clone()).collect()
    }

    /// What carries requests to it.
    pub(crate) fn http(&self) -> SharedHttpClient {
        let script = self.clone();
        http_client_fn(move |_, _| SharedHttpConnector::new(script.clone()))
    }

    pub(crate) fn client(&self) -> Client {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new("id", "secret", None, None, "scripted"))
            .region(Region::new("us-east-1"))
            .http_client(self.http())
            .build();
        Client::from_conf(config)
    }

    pub(crate) fn clients(&self) -> Clients {
        Clients {
            prompt: self.client(),
            polling: self.client(),
        }
    }

    /// The ids of the entries of each batch that was asked for.
    pub(crate) fn batches(&self) -> Vec<Vec<String>> {
        let ids = |asked: &Asked| {
            let entries = asked.body["Entries"].as_array().cloned();
            let id = |entry: &Value| entry["Id"].as_str().unwrap_or_default().to_owned();
            entries.unwrap_or_default().iter().map(id).collect()
        };
        self.asked.lock().iter().map(ids).collect()
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").finish_non_exhaustive()
    }
}

impl HttpConnector for Script {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let action = request.headers().get("x-amz-target").unwrap_or_default();
        let action = action.rsplit('.').next().unwrap_or_default().to_owned();
        let body = request.body().bytes().unwrap_or_default();
        let body = serde_json::from_slice(body).unwrap();
        let asked = Asked { action, body };
        let answer = (self.answers.lock())(&asked);
        self.asked.lock().push(asked);
        HttpConnectorFuture::new(async move {
            match answer.after {
                Some(Duration::ZERO) => {}
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
            let status = answer.status.try_into().unwrap();
            let mut response = HttpResponse::new(status, answer.body.to_string().into());
            if let Some(code) = answer.older_code {
                let value = format!("{code};Sender");
                response.headers_mut().insert("x-amzn-query-error", value);
            }
            Ok(response)
        })
    }
}

/// What is answered, and when.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: u16,
    body: Value,
    older_code: Option<&'static str>,
    /// Never, if it is none.
    after: Option<Duration>,
}

impl Answer {
    /// A refusal with a code of the JSON protocol.
    pub(crate) fn refused(code: &str) -> Self {
        let body = json!({"__type": format!("com.amazonaws.sqs#{code}"), "message": "no"});
        Self {
            status: 400,
            ..Self::from(body)
        }
    }

    /// With the code of the older protocol, too, in the header where SQS writes it.
    pub(crate) const fn older(mut self, code: &'static str) -> Self {
        self.older_code = Some(code);
        self
    }

    /// Only after a while.
    pub(crate) const fn late(mut self, after: Duration) -> Self {
        self.after = Some(after);
        self
    }

    pub(crate) fn never() -> Self {
        Self {
            after: None,
            ..Self::from(Value::Null)
        }
    }
}

impl From<Value> for Answer {
    fn from(body: Value) -> Self {
        Self {
            status: 200,
            body,
            older_code: None,
            after: Some(Duration::ZERO),
        }
    }
}

/// The answer to a batch: these entries are done, those failed with a code.
pub(crate) fn answer(done: &[usize], failed: &[(usize, &str)]) -> Value {
    let done: Vec<_> = done
        .iter()
        .map(|id| json!({"Id": id.to_string(), "MessageId": "m", "MD5OfMessageBody": "d"}))
        .collect();
    let failed: Vec<_> = failed
        .iter()
        .map(|(id, code)| {
            let sender_fault = !code.contains("Internal");
            json!({"Id": id.to_string(), "Code": code, "SenderFault": sender_fault})
        })
        .collect();
    json!({"Successful": done, "Failed": failed})
}

/// What a receive brings: messages of these numbers.
pub(crate) fn messages(numbers: Range<u64>) -> Value {
    let message = |number| {
        let (id, handle) = (format!("m{number}"), format!("h{number}"));
        json!({"MessageId": id, "ReceiptHandle": handle, "Body": "x"})
    };
    json!({"Messages": numbers.map(message).collect::<Vec<_>>()})
}

/// The answer to who asks for a queue's URL or attributes, or for anything else that a test is not about.
pub(crate) fn described(asked: &Asked) -> Answer {
    let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:123456789012:dead","maxReceiveCount":200}"#;
    match asked.action.as_str() {
        "GetQueueUrl" => json!({"QueueUrl": "https://q"}).into(),
        "GetQueueAttributes" => {
            json!({"Attributes": {"VisibilityTimeout": "30", "RedrivePolicy": policy}}).into()
        }
        _ => answer(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[]).into(),
    }
}
