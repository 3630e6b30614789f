//! The SDK's clients, and where the queues are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{
    ConfigBag, Credentials, Intercept, RuntimeComponents, SharedCredentialsProvider,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_sqs::error::BoxError;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use backstop_core::{BrokerError, BrokerErrorKind};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::config::SqsConfig;
use crate::error::{closed, failed};

/// The most tries of a call by the SDK, the first included: it waits up to a second before the second,
/// twice that before the third. Whoever asked then backs off by its own, longer waits.
const TRIES: u32 = 3;

/// A long poll that is not answered has taken its time; that it failed has to show.
const POLLING_TRIES: u32 = 1;

/// What a host of one's own is signed for where nothing names a region.
const NOWHERE: &str = "us-east-1";

/// One way to SQS: clients, and the queue's address once it is known.
pub(crate) struct Link {
    pub(crate) config: SqsConfig,
    clients: OnceCell<Clients>,
    queue_url: Mutex<Option<Arc<str>>>,
    calls: Arc<AtomicU64>,
    closed: AtomicBool,
}

/// Clients of one configuration.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    /// For calls that SQS answers at once.
    pub(crate) prompt: Client,
    /// For long polls: its answers take as long as they may.
    pub(crate) polling: Client,
}

impl Link {
    pub(crate) fn new(config: SqsConfig) -> Self {
        Self {
            config,
            clients: OnceCell::new(),
            queue_url: Mutex::default(),
            calls: Arc::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// HTTP requests that were sent, those of the SDK's own retries included.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) async fn clients(&self) -> Result<&Clients, BrokerError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        Ok(self
            .clients
            .get_or_init(async || self.make_clients().await)
            .await)
    }

    pub(crate) async fn client(&self) -> Result<&Client, BrokerError> {
        Ok(&self.clients().await?.prompt)
    }

    async fn make_clients(&self) -> Clients {
        let config = &self.config;
        let shared = sdk_config(config).await;
        let client = |answer_within: Duration, tries: u32| {
            let timeouts = TimeoutConfig::builder()
                .connect_timeout(config.connect_timeout)
                .operation_attempt_timeout(config.connect_timeout + answer_within)
                .build();
            let mut builder = aws_sdk_sqs::config::Builder::from(&shared)
                .retry_config(RetryConfig::standard().with_max_attempts(tries))
                .timeout_config(timeouts)
                // A long poll sends nothing for a long time; the timeouts above see to the rest.
                .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
                .interceptor(Counter(Arc::clone(&self.calls)));
            if let Some(endpoint) = &config.endpoint {
                builder = builder.endpoint_url(endpoint);
            }
            Client::from_conf(builder.build())
        };
        Clients {
            prompt: client(config.timeout, TRIES),
            polling: client(
                config.timeout + Duration::from_secs(config.wait.into()),
                POLLING_TRIES,
            ),
        }
    }

    /// Asks a script instead of SQS.
    #[cfg(test)]
    pub(crate) fn ask(&self, script: &crate::scripted::Script) {
        self.clients.set(script.clients()).unwrap();
    }

    /// The queue's URL, as SQS gives it.
    ///
    /// # Errors
    ///
    /// When the queue does not exist, or SQS cannot be asked.
    pub(crate) async fn queue_url(&self) -> Result<Arc<str>, BrokerError> {
        if let Some(url) = self.queue_url.lock().clone() {
            return Ok(url);
        }
        let url = self.look_up(&self.config.queue).await?;
        *self.queue_url.lock() = Some(Arc::clone(&url));
        Ok(url)
    }

    /// Asks again next time: the queue may have been deleted and made anew.
    pub(crate) fn forget_queue_url(&self) {
        *self.queue_url.lock() = None;
    }

    /// The URL of a queue of the same account.
    pub(crate) async fn look_up(&self, queue: &str) -> Result<Arc<str>, BrokerError> {
        self.look_up_in(queue, self.config.account.as_deref()).await
    }

    pub(crate) async fn look_up_in(
        &self,
        queue: &str,
        account: Option<&str>,
    ) -> Result<Arc<str>, BrokerError> {
        let asked = self
            .client()
            .await?
            .get_queue_url()
            .queue_name(queue)
            .set_queue_owner_aws_account_id(account.map(str::to_owned))
            .send()
            .await;
        let doing = format!("the queue {queue:?} cannot be found");
        let answer = asked.map_err(|error| failed(&doing, &error))?;
        match answer.queue_url {
            Some(url) => Ok(url.into()),
            None => Err(BrokerError::new(BrokerErrorKind::Other, doing)),
        }
    }
}

async fn sdk_config(config: &SqsConfig) -> SdkConfig {
    let credentials = config.credentials.as_ref().map(|given| {
        let (id, secret) = (&given.access_key_id, &given.secret_access_key);
        Credentials::new(id, secret, None, None, "backstop")
    });
    let region = config.region.clone().map(Region::new);
    if let Some(given) = &config.sdk {
        let mut sdk = given.clone().into_builder();
        let region = region.or_else(|| given.region().cloned());
        let nowhere = || Some(Region::from_static(NOWHERE)).filter(|_| config.endpoint.is_some());
        sdk.set_region(region.or_else(nowhere));
        if let Some(credentials) = credentials {
            sdk.set_credentials_provider(Some(SharedCredentialsProvider::new(credentials)));
        }
        if given.http_client().is_none() {
            sdk.set_http_client(Some(http_client()));
        }
        // Without one the SDK makes no client.
        let behavior = given.behavior_version();
        sdk.set_behavior_version(behavior.or(Some(BehaviorVersion::latest())));
        return sdk.build();
    }
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http_client());
    if let Some(region) = region {
        loader = loader.region(region);
    } else if config.is_plain() {
        // An emulator: no instance need be asked where it is.
        loader = loader.region(configured_region(config.profile.as_deref()));
    }
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    let loaded = loader.load().await;
    if loaded.region().is_some() || config.endpoint.is_none() {
        return loaded;
    }
    let region = Region::from_static(NOWHERE);
    loaded.into_builder().region(region).build()
}

/// As the environment or the profile says, else a region all the same: without one the credentials' chain
/// asks the instance.
fn configured_region(profile: Option<&str>) -> RegionProviderChain {
    let mut by_profile = ProfileFileRegionProvider::builder();
    if let Some(profile) = profile {
        by_profile = by_profile.profile_name(profile);
    }
    RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(by_profile.build())
        .or_else(Region::from_static(NOWHERE))
}

fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https()
}

/// Counts what SQS bills.
#[derive(Debug)]
struct Counter(Arc<AtomicU64>);

impl Intercept for Counter {
    fn name(&self) -> &'static str {
        "backstop-calls"
    }

    fn read_before_transmit(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use aws_sdk_sqs::config::ProvideCredentials as _;
    use serde_json::json;

    use super::*;
    use crate::scripted::Script;

    const URL: &str = "sqs:///123456789012/orders";

    const REGION_OF: &str = "BACKSTOP_TEST_REGION_OF";

    /// The test below starts this one in processes of its own, whose environments differ.
    #[tokio::test]
    async fn a_process_says_what_it_signs_for() {
        if let Ok(url) = std::env::var(REGION_OF) {
            let config = SqsConfig::from_url(&url).unwrap();
            let region = sdk_config(&config).await.region().cloned();
            println!(
                "region: {}",
                region.map_or("none".to_owned(), |r| r.to_string())
            );
        }
    }

    fn region(url: &str, environment: &[(&str, &str)]) -> String {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture"]);
        command.arg("connection::tests::a_process_says_what_it_signs_for");
        command.env_remove("AWS_REGION").env_remove("AWS_PROFILE");
        command.env_remove("AWS_DEFAULT_REGION");
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command
            .env("AWS_CONFIG_FILE", "/nowhere")
            .env(REGION_OF, url);
        let output = command.envs(environment.iter().copied()).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let (_, region) = told.split_once("region: ").expect(&told);
        region.split_whitespace().next().unwrap().to_owned()
    }

    #[test]
    fn the_region_is_the_urls_then_the_hosts_then_the_configurations() {
        let profiles = format!("backstop-profiles-{}", std::process::id());
        let profiles = std::env::temp_dir().join(profiles);
        std::fs::write(&profiles, "[profile work]\nregion = eu-north-1\n").unwrap();
        let file = ("AWS_CONFIG_FILE", profiles.to_str().unwrap());
        let (variable, profile) = (("AWS_REGION", "eu-west-3"), ("AWS_PROFILE", "work"));
        let aws = "sqs://sqs.eu-central-1.amazonaws.com/123456789012/q";
        let (emulator, own) = ("sqs://localhost:1/q", "sqs://sqs.example.com/q");
        for (url, environment, expected) in [
            (aws, &[variable][..], "eu-central-1"),
            (
                "sqs://localhost:1/q?region=eu-west-2",
                &[variable],
                "eu-west-2",
            ),
            (emulator, &[variable], "eu-west-3"),
            (own, &[variable], "eu-west-3"),
            (emulator, &[file, profile], "eu-north-1"),
            ("sqs://localhost:1/q?profile=work", &[file], "eu-north-1"),
            (own, &[file, profile], "eu-north-1"),
            (emulator, &[], "us-east-1"),
            (own, &[], "us-east-1"),
            ("sqs:///q", &[variable], "eu-west-3"),
            ("sqs:///q", &[], "none"),
        ] {
            assert_eq!(region(url, environment), expected, "{url} {environment:?}");
        }
        std::fs::remove_file(profiles).unwrap();
    }

    fn given(http: Option<SharedHttpClient>) -> SdkConfig {
        let credentials = Credentials::new("theirs", "secret", None, None, "test");
        let provider = SharedCredentialsProvider::new(credentials);
        let mut given = SdkConfig::builder().credentials_provider(provider);
        given.set_http_client(http);
        given.region(Region::new("eu-west-3")).build()
    }

    async fn seen(config: SqsConfig) -> (String, String) {
        let sdk = sdk_config(&config).await;
        let credentials = sdk.credentials_provider().unwrap();
        let credentials = credentials.provide_credentials().await.unwrap();
        let region = sdk.region().unwrap().to_string();
        (region, credentials.access_key_id().to_owned())
    }

    #[tokio::test]
    async fn what_is_handed_in_gives_way_to_the_url_and_to_credentials() {
        let sdk = given(None);
        let config = |url| SqsConfig::from_url(url).unwrap().sdk_config(sdk.clone());
        let theirs = ("eu-west-3".to_owned(), "theirs".to_owned());
        assert_eq!(seen(config(URL)).await, theirs);
        assert_eq!(seen(config("sqs://localhost:1/orders")).await, theirs);
        let url = format!("{URL}?region=eu-north-1");
        let config = config(&url).credentials("ours", "secret");
        let ours = ("eu-north-1".to_owned(), "ours".to_owned());
        assert_eq!(seen(config).await, ours);
    }

    #[tokio::test]
    async fn calls_go_by_the_client_that_is_handed_in_and_are_counted() {
        let script = Script::new([json!({"QueueUrl": "https://q"})]);
        let sdk = given(Some(script.http()));
        let link = Link::new(SqsConfig::from_url(URL).unwrap().sdk_config(sdk));
        assert_eq!(&*link.queue_url().await.unwrap(), "https://q");
        assert_eq!(link.calls(), 1);
    }
}
