//! A container that ends with the test that started it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use testcontainers::core::{IntoContainerPort as _, WaitFor};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt as _};
use tokio::time::{Instant, sleep};

use crate::docker::{OWNER_LABEL, choose_image, docker, owner};
use crate::ports::free_port;

const STARTUP_TIMEOUT: Duration = Duration::from_mins(5);

/// What to run.
pub(crate) struct Plan {
    /// The official image.
    pub(crate) official: String,
    /// The image that `cargo xtask images` builds.
    pub(crate) local: String,
    pub(crate) command: Vec<String>,
    /// Ports of the host, each with the container's.
    pub(crate) ports: Vec<(u16, u16)>,
    /// Part of a line on stdout that says that it is up.
    pub(crate) ready: &'static str,
    /// Files to put in: path and content.
    pub(crate) files: Vec<(&'static str, String)>,
    pub(crate) url: String,
}

/// A server in a container of its own, which is removed when this is dropped.
///
/// Its methods that stop, start and freeze it run the docker command; they need real time, not tokio's
/// paused one.
pub struct Server {
    url: String,
    container: ContainerAsync<GenericImage>,
    ready: &'static str,
}

impl Server {
    /// Runs what `plan` says for as many free ports as it asks for. A port that another process took
    /// meanwhile is no reason to fail.
    pub(crate) async fn run<const PORTS: usize>(
        plan: impl Fn([u16; PORTS]) -> Plan,
    ) -> Result<(Self, [u16; PORTS])> {
        let mut tries = 0;
        loop {
            let ports = std::array::from_fn(|_| free_port());
            match Self::try_run(plan(ports)).await {
                Err(error) if tries < 3 && is_port_taken(&error) => tries += 1,
                result => return result.map(|server| (server, ports)),
            }
        }
    }

    async fn try_run(plan: Plan) -> Result<Self> {
        let image = choose_image(&plan.official, &plan.local).await?;
        let (url, ready) = (plan.url.clone(), plan.ready);
        let request = request(plan, &image)?;
        let container = request
            .start()
            .await
            .with_context(|| format!("cannot start a container of {image}"))?;
        println!("{url} is a container of {image}");
        Ok(Self {
            url,
            container,
            ready,
        })
    }

    /// The URL at which clients reach it; the same after a restart.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        self.container.id()
    }

    /// Leaves it running until this process ends.
    pub(crate) fn keep(self) -> String {
        let url = self.url.clone();
        std::mem::forget(self);
        url
    }

    /// Stops it by SIGTERM and starts it again; returns when it is up.
    ///
    /// # Errors
    ///
    /// When docker cannot, or it is not up within five minutes.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe: the server may be left stopped.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Stops it by SIGTERM; by SIGKILL if it has not ended after 20 seconds.
    ///
    /// # Errors
    ///
    /// When docker cannot.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: docker goes on.
    pub async fn stop(&self) -> Result<()> {
        docker(&["stop", "--time", "20", self.id()]).await.map(drop)
    }

    /// Kills it by SIGKILL.
    ///
    /// # Errors
    ///
    /// When docker cannot.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: docker goes on.
    pub async fn kill(&self) -> Result<()> {
        docker(&["kill", self.id()]).await.map(drop)
    }

    /// Starts it after a stop or a kill; returns when it is up.
    ///
    /// # Errors
    ///
    /// When docker cannot, or it is not up within five minutes.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe: the server may come up later, or never.
    pub async fn start(&self) -> Result<()> {
        let before = self.times_ready().await?;
        docker(&["start", self.id()]).await?;
        let end = Instant::now() + STARTUP_TIMEOUT;
        while self.times_ready().await? <= before {
            if Instant::now() > end {
                bail!("{} was not up again within {STARTUP_TIMEOUT:?}", self.url);
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Freezes it: connections stay open, and nothing answers.
    ///
    /// # Errors
    ///
    /// When docker cannot.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: docker goes on.
    pub async fn pause(&self) -> Result<()> {
        docker(&["pause", self.id()]).await.map(drop)
    }

    /// Ends a pause.
    ///
    /// # Errors
    ///
    /// When docker cannot.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: docker goes on.
    pub async fn unpause(&self) -> Result<()> {
        docker(&["unpause", self.id()]).await.map(drop)
    }

    /// Runs a command inside, as root, and gives its output.
    ///
    /// # Errors
    ///
    /// When docker cannot, or the command fails.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: the command goes on.
    pub async fn exec(&self, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", self.id()];
        arguments.extend(command);
        docker(&arguments).await
    }

    async fn times_ready(&self) -> Result<usize> {
        Ok(docker(&["logs", self.id()])
            .await?
            .matches(self.ready)
            .count())
    }
}

fn request(plan: Plan, image: &str) -> Result<ContainerRequest<GenericImage>> {
    let (name, tag) = image.rsplit_once(':').context("an image has a tag")?;
    let mut request = GenericImage::new(name, tag)
        .with_wait_for(WaitFor::message_on_stdout(plan.ready))
        .with_cmd(plan.command)
        .with_label(OWNER_LABEL, owner()?)
        .with_startup_timeout(STARTUP_TIMEOUT)
        // Servers with well-known passwords are for this machine alone.
        .with_host_config_modifier(|config| {
            let bindings = config
                .port_bindings
                .iter_mut()
                .flat_map(|map| map.values_mut());
            for binding in bindings.flatten().flatten() {
                binding.host_ip = Some("127.0.0.1".to_owned());
            }
        });
    for (host, container) in plan.ports {
        request = request.with_mapped_port(host, container.tcp());
    }
    for (path, content) in plan.files {
        request = request.with_copy_to(path, content.into_bytes());
    }
    Ok(request)
}

fn is_port_taken(error: &anyhow::Error) -> bool {
    let text = format!("{error:?}");
    text.contains("port is already allocated") || text.contains("address already in use")
}
