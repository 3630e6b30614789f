//! The stub on a port of this machine.

use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::stub::Stub;

/// A stub that is served until this is dropped.
pub(crate) struct Server {
    pub(crate) stub: Arc<Stub>,
    _serving: AbortOnDropHandle<()>,
}

impl Server {
    /// Serves a new stub by the runtime that this is called on.
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let stub = Arc::new(Stub::new(format!("http://{}", listener.local_addr()?)));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&stub));
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                eprintln!("the stub may answer late: {error}");
            }
        });
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the stub has ended: {error}");
            }
        });
        Ok(Self {
            stub,
            _serving: AbortOnDropHandle::new(serving),
        })
    }
}

async fn answer(State(stub): State<Arc<Stub>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target");
    let target = target.and_then(|target| target.to_str().ok());
    let (status, answer) = match stub.answer(target.unwrap_or_default(), &body).await {
        Ok(answer) => (StatusCode::OK, answer),
        Err(refusal) => (
            StatusCode::BAD_REQUEST,
            serde_json::to_vec(&refusal).unwrap_or_default(),
        ),
    };
    let content_type = [(header::CONTENT_TYPE, "application/x-amz-json-1.0")];
    (status, content_type, answer).into_response()
}
