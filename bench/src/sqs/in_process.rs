//! The stub, called without a network: then time can be paused.

use std::sync::Arc;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::SharedHttpClient;
use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};

use super::client;
use super::stub::Stub;

/// Carries requests to the stub by calling it.
#[derive(Clone)]
struct Direct(Arc<Stub>);

impl std::fmt::Debug for Direct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Direct")
    }
}

impl HttpConnector for Direct {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let stub = Arc::clone(&self.0);
        HttpConnectorFuture::new(async move {
            let target = request.headers().get("x-amz-target").unwrap_or_default();
            let body = request.body().bytes().unwrap_or_default();
            let (status, answer) = match stub.answer(target, body).await {
                Ok(answer) => (200, answer),
                Err(refusal) => (400, serde_json::to_vec(&refusal).unwrap()),
            };
            let status = u16::try_into(status).unwrap();
            Ok(HttpResponse::new(status, answer.into()))
        })
    }
}

fn http(stub: &Arc<Stub>) -> SharedHttpClient {
    let direct = Direct(Arc::clone(stub));
    http_client_fn(move |_, _| SharedHttpConnector::new(direct.clone()))
}

pub(crate) fn client(stub: &Arc<Stub>) -> Client {
    client::client_by(stub.endpoint(), http(stub))
}

pub(crate) fn sdk_config(stub: &Arc<Stub>) -> SdkConfig {
    let config = SdkConfig::builder().behavior_version(BehaviorVersion::latest());
    config.http_client(http(stub)).build()
}
