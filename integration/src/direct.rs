//! The way to a server past docker's proxy.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::docker::docker;

/// The same server by its container's own address, if it is in a container here and that address can
/// be reached; else the URL as it is.
///
/// Docker hands each byte that comes by way of `127.0.0.1` through a process of its own, which costs
/// about as much of the processor as Redis does: a benchmark would measure that, too. The address is
/// another one after a restart.
///
/// # Cancel safety
///
/// Cancel-safe.
pub async fn past_proxy(url: &str) -> String {
    match container_address(url).await {
        Some((shown, direct)) => url.replacen(&shown, &direct, 1),
        None => url.to_owned(),
    }
}

/// What stands in the URL, and what may stand there instead.
async fn container_address(url: &str) -> Option<(String, String)> {
    let (_, port) = url.rsplit_once("127.0.0.1:")?;
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    let shown = format!("127.0.0.1:{port}");
    let published = format!("publish={port}");
    let id = docker(&["ps", "--quiet", "--filter", &published])
        .await
        .ok()?;
    let ports = docker(&["port", id.trim()]).await.ok()?;
    let line = ports.lines().find(|line| line.ends_with(&shown))?;
    let (inside, _) = line.split_once("/tcp")?;
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = docker(&["inspect", "--format", format, id.trim()])
        .await
        .ok()?;
    let direct = format!("{}:{inside}", address.trim());
    let connected = timeout(Duration::from_secs(2), TcpStream::connect(&direct)).await;
    connected.ok()?.ok()?;
    Some((shown, direct))
}
