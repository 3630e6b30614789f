//! Logins, permissions, certificates and URLs, right and wrong.

use std::num::NonZeroU32;
use std::time::Duration;

use backstop_core::{
    Claim, IdempotencyStore as _, Ownership, ReleaseKind, StoreError, StoreErrorKind,
};
use backstop_redis_dedupe::RedisStore;

use crate::setup::{
    LONG, One as _, PATIENCE, chain, config, fresh_key, request, say, shared_cluster,
    shared_sentinels, ticket,
};

async fn refusal(url: &str) -> StoreError {
    let error = RedisStore::connect(url).await.expect_err(url);
    assert!(!chain(&error).contains("secret"), "{}", chain(&error));
    error
}

/// A URL with a login.
fn with(url: &str, login: &str) -> String {
    url.replace("://", &format!("://{login}@"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_right_or_told_to_be_wrong() {
    let server = integration::start_redis(&["--requirepass", "secret"])
        .await
        .unwrap();
    let url = server.url();
    for (url, said) in [
        (url.to_owned(), "wants a password"),
        (
            with(url, ":wrong-secret"),
            "does not know this username and password",
        ),
        (
            with(url, "nobody:secret"),
            "does not know this username and password",
        ),
    ] {
        let error = refusal(&url).await;
        assert_eq!(
            error.kind(),
            StoreErrorKind::AccessDenied,
            "{}",
            chain(&error)
        );
        assert!(chain(&error).contains(said), "{}", chain(&error));
    }
    for login in [":secret", "default:secret"] {
        let store = RedisStore::connect(&with(url, login)).await.unwrap();
        assert!(!format!("{store:?}").contains("secret"));
        store
            .claim_one(request(&fresh_key(), "me", 1))
            .await
            .unwrap();
    }
    let set = config(url).login(Some("default"), "secret");
    set.connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_where_none_is_set_is_told() {
    let error = refusal(&with(integration::redis().await, ":secret")).await;
    assert_eq!(error.kind(), StoreErrorKind::AccessDenied);
    assert!(
        chain(&error).contains("has no password set"),
        "{}",
        chain(&error)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_becomes_right_is_taken_without_a_restart() {
    let server = integration::start_redis(&["--requirepass", "old"])
        .await
        .unwrap();
    let store = config(&with(server.url(), ":secret")).open().unwrap();
    let key = fresh_key();
    let error = store.claim_one(request(&key, "me", 1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::AccessDenied);
    say(&with(server.url(), ":old"), "CONFIG SET requirepass secret").await;
    let end = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = store.claim_one(request(&key, "me", 1)).await {
        assert!(tokio::time::Instant::now() < end, "{}", chain(&error));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the documentation lists, for each way to run Redis.
const ALWAYS: &str = "+evalsha +script|load +time +mget +set +pexpire +del +select +info +wait";
const IN_A_CLUSTER: &str = "+cluster|slots +asking";
const UNDER_SENTINEL: &str = "+role";

/// Adds a user with these commands, of the password `secret`.
fn rule(commands: &str) -> String {
    format!("ACL SETUSER app on >secret resetkeys ~backstop:* nocommands {commands}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_permissions_are_enough() {
    let server = integration::start_redis(&[]).await.unwrap();
    say(server.url(), &rule(ALWAYS)).await;
    let url = with(server.url(), "app:secret");
    every_call_is_permitted(&RedisStore::connect(&format!("{url}/2")).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_permissions_are_enough_in_a_cluster_and_under_sentinel() {
    let cluster = shared_cluster().await;
    let rules = rule(&format!("{ALWAYS} {IN_A_CLUSTER}"));
    for node in cluster.addresses() {
        say(&format!("redis://{node}"), &rules).await;
    }
    let wait = |url: &str| {
        let wait = Duration::from_secs(20);
        config(url)
            .wait_for_replicas(NonZeroU32::MIN, wait)
            .connect()
    };
    let store = wait(&with(cluster.url(), "app:secret")).await.unwrap();
    every_call_is_permitted(&store).await;

    let sentinels = shared_sentinels().await;
    let rules = rule(&format!("{ALWAYS} {UNDER_SENTINEL}"));
    let master = sentinels.master().await.unwrap();
    say(&format!("redis://127.0.0.1:{master}"), &rules).await;
    let store = wait(&with(sentinels.url(), "app:secret")).await.unwrap();
    every_call_is_permitted(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_have_a_login_of_their_own() {
    let sentinels = shared_sentinels().await;
    for sentinel in sentinels.addresses() {
        let rule = "ACL SETUSER app on >secret nocommands +sentinel|get-master-addr-by-name";
        say(&format!("redis://{sentinel}"), rule).await;
    }
    let right = config(sentinels.url()).sentinel_login(Some("app"), "secret");
    let store = right.connect().await.unwrap();
    let claim = store.claim_one(request(&fresh_key(), "me", 1)).await;
    assert!(matches!(claim.unwrap(), Claim::Acquired { .. }));
    let wrong = config(sentinels.url()).sentinel_login(Some("app"), "wrong");
    let error = wrong.connect().await.unwrap_err();
    assert_eq!(
        error.kind(),
        StoreErrorKind::AccessDenied,
        "{}",
        chain(&error)
    );
}

async fn every_call_is_permitted(store: &RedisStore) {
    let key = fresh_key();
    store.claim_one(request(&key, "me", 1)).await.unwrap();
    let ticket = [ticket(&key, "me", 1)];
    for ownership in [
        store.renew(&ticket, LONG).await,
        store.complete(&ticket, LONG).await,
        store.complete(&ticket, LONG).await,
    ] {
        assert_eq!(
            ownership.into_iter().next().unwrap().unwrap(),
            Ownership::Held
        );
    }
    let fenced = store
        .release(&[(ticket[0].clone(), ReleaseKind::Failed)], LONG)
        .await;
    assert_eq!(
        fenced.into_iter().next().unwrap().unwrap(),
        Ownership::Fenced
    );
    let claim = store.claim_one(request(&key, "other", 1)).await.unwrap();
    assert_eq!(claim, Claim::Completed);
    store.forget(&[key]).await.pop().unwrap().unwrap();
    assert_eq!(store.inspect().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_permission_is_told() {
    let server = integration::start_redis(&[]).await.unwrap();
    let lacking = [
        ("load", "~* +@all -script"),
        ("eval", "~* +@all -evalsha"),
        ("set", "~* +@all -set"),
        ("keys", "~other:* +@all"),
    ];
    for (user, rules) in lacking {
        say(
            server.url(),
            &format!("ACL SETUSER {user} on >secret {rules}"),
        )
        .await;
        let url = with(server.url(), &format!("{user}:secret"));
        let store = config(&url).open().unwrap();
        let error = store
            .claim_one(request(&fresh_key(), "me", 1))
            .await
            .unwrap_err();
        assert_eq!(
            error.kind(),
            StoreErrorKind::AccessDenied,
            "{}",
            chain(&error)
        );
        assert!(error.to_string().contains("lacks a permission"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_trusted_by_its_authority_only() {
    let (mine, others) = tokio::join!(integration::start_redis_tls(), async {
        integration::start_redis_tls().await
    });
    let (mine, others) = (mine.unwrap(), others.unwrap());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let url = mine.server.url();
    let right = file("right.pem", &mine.ca);
    let store = config(url).ca_file(&right).connect().await.unwrap();
    store
        .claim_one(request(&fresh_key(), "me", 1))
        .await
        .unwrap();
    let by_url = format!("{url}?ca_file={}", right.display());
    RedisStore::connect(&by_url).await.unwrap();

    let wrong = config(url).ca_file(file("wrong.pem", &others.ca));
    for config in [wrong, config(url)] {
        let error = config.connect().await.unwrap_err();
        assert_eq!(
            error.kind(),
            StoreErrorKind::Configuration,
            "{}",
            chain(&error)
        );
        let text = chain(&error);
        assert!(
            text.contains("not trusted") && text.contains("ca_file"),
            "{text}"
        );
    }
    for (name, content) in [("empty.pem", ""), ("text.pem", "no certificate")] {
        let error = config(url).ca_file(file(name, content)).open().unwrap_err();
        assert!(error.to_string().contains("certificates in PEM"), "{error}");
    }
    let error = config(url).ca_file("missing.pem").open().unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("ca_file cannot be `missing.pem`"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_plain_text_do_not_meet() {
    let encrypted = integration::start_redis_tls().await.unwrap();
    let plain = integration::redis().await;
    for url in [
        encrypted.server.url().replace("rediss:", "redis:"),
        plain.replace("redis:", "rediss:"),
    ] {
        let error = refusal(&url).await;
        assert_eq!(
            error.kind(),
            StoreErrorKind::Unreachable,
            "{}",
            chain(&error)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_names_another_kind_of_server_is_told() {
    let one = integration::redis().await;
    let sentinels = shared_sentinels().await;
    let cluster = shared_cluster().await;
    let sentinel = &sentinels.addresses()[0];
    let node = &cluster.addresses()[0];
    let cases = [
        (one.replace("redis:", "redis+cluster:"), "is no Cluster"),
        (
            format!("redis+sentinel://{sentinel}/other"),
            "knows no service `other`",
        ),
        (format!("{one}/77"), "no database of the URL's number"),
    ];
    for (url, said) in cases {
        let error = refusal(&url).await;
        assert_eq!(
            error.kind(),
            StoreErrorKind::Configuration,
            "{}",
            chain(&error)
        );
        assert!(error.to_string().contains(said), "{}", chain(&error));
    }
    // A node has a third of the slots.
    let store = RedisStore::connect(&format!("redis://{node}"))
        .await
        .unwrap();
    let requests: Vec<_> = (0..50).map(|_| request(&fresh_key(), "me", 1)).collect();
    let answers = store.claim(&requests).await;
    let told = answers.iter().filter_map(|answer| answer.as_ref().err());
    let told: Vec<_> = told
        .map(|error| (error.kind(), error.to_string()))
        .collect();
    assert!(!told.is_empty());
    for (kind, text) in told {
        assert_eq!(kind, StoreErrorKind::Configuration, "{text}");
        assert!(text.contains("redis+cluster://"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_out_of_range_are_refused() {
    let url = "redis://localhost";
    let wait = |millis| {
        let one = std::num::NonZeroU32::MIN;
        config(url).wait_for_replicas(one, Duration::from_millis(millis))
    };
    let cases = [
        (
            config(url).response_timeout(Duration::ZERO),
            "response_timeout cannot be 0ns: 10 ms",
        ),
        (
            config(url).connect_timeout(LONG),
            "connect_timeout cannot be 600s: 10 ms to 60 s",
        ),
        (wait(0), "wait_for_replicas cannot be 0ns: at least 1 ms"),
        (wait(30_000), "shorter than response_timeout, 30s"),
    ];
    for (config, said) in cases {
        let error = config.open().unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let error = refusal("redis://me:secret@").await;
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
    assert!(
        chain(&error).contains("the Redis URL cannot be `redis://me:***@`"),
        "{}",
        chain(&error)
    );
}
