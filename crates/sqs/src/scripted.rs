//! An SQS whose answers are written down beforehand: no emulator takes a batch in part.

use std::collections::VecDeque;
use std::sync::Arc;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region, SharedHttpClient};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// What was asked, and what is still to be answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    answers: Arc<Mutex<VecDeque<Value>>>,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Script {
    /// Answers one request after the other; the last answer stands for all that follow.
    pub(crate) fn new(answers: impl IntoIterator<Item = Value>) -> Self {
        Self {
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            asked: Arc::default(),
        }
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

    /// The ids of the entries of each batch that was asked for.
    pub(crate) fn batches(&self) -> Vec<Vec<String>> {
        let ids = |request: &Value| {
            let entries = request["Entries"].as_array().cloned().unwrap_or_default();
            let id = |entry: &Value| entry["Id"].as_str().unwrap_or_default().to_owned();
            entries.iter().map(id).collect()
        };
        self.asked.lock().iter().map(ids).collect()
    }
}

impl HttpConnector for Script {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let body = request.body().bytes().unwrap_or_default();
        self.asked
            .lock()
            .push(serde_json::from_slice(body).unwrap());
        let mut answers = self.answers.lock();
        let answer = match answers.len() {
            1 => answers.front().cloned(),
            _ => answers.pop_front(),
        };
        let answer = answer.expect("an answer for every request").to_string();
        let status = 200_u16.try_into().unwrap();
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, answer.into())))
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
