//! Which server is the master, by the word of sentinels and of the server itself.

use backstop_core::StoreErrorKind;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::{FromRedisValue, Pipeline, Value};

use crate::address::Address;
use crate::connection::{Connection, Dialer, no_error};
use crate::error::{Fault, Remedy};

/// Asks every sentinel at once; the first that knows the master is believed.
pub(crate) async fn master(dialer: &Dialer, service: &str) -> Result<Address, Fault> {
    let sentinels = dialer.config.addresses.iter();
    let mut asked: FuturesUnordered<_> = sentinels
        .map(|sentinel| ask_one(dialer, sentinel, service))
        .collect();
    let mut failure = Fault::senseless();
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(master) => return Ok(master),
            Err(fault) => failure = fault,
        }
    }
    Err(failure)
}

async fn ask_one(dialer: &Dialer, sentinel: &Address, service: &str) -> Result<Address, Fault> {
    let login = dialer.config.sentinel_login.as_ref();
    let connection = dialer.open(sentinel, login).await?;
    let mut question = Pipeline::new();
    question
        .cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(service);
    match no_error(sentinel, first(&connection, &question).await?)? {
        Value::Nil => {
            let text = format!(
                "the sentinel at {sentinel} knows no service `{service}`: correct its name in the URL"
            );
            Err(Fault::new(
                StoreErrorKind::Configuration,
                Remedy::Tell,
                text,
            ))
        }
        answer => {
            let (host, port) = FromRedisValue::from_redis_value(answer)
                .map_err(|_: redis::ParsingError| Fault::senseless())?;
            let host: String = host;
            Ok(Address::new(host, port))
        }
    }
}

/// A sentinel may name a master that is one no more.
///
/// <https://redis.io/docs/latest/develop/reference/sentinel-clients/>, step 3.
pub(crate) async fn must_be_master(connection: &Connection) -> Result<(), Fault> {
    let mut question = Pipeline::new();
    question.cmd("ROLE");
    let answer = no_error(&connection.address, first(connection, &question).await?)?;
    let is_master = match &answer {
        Value::Array(role) => match role.first() {
            Some(Value::BulkString(role)) => role == b"master",
            _ => false,
        },
        _ => false,
    };
    if is_master {
        return Ok(());
    }
    let text = format!("redis at {} is not the master", connection.address);
    Err(Fault::new(
        StoreErrorKind::Unreachable,
        Remedy::AskAgain,
        text,
    ))
}

async fn first(connection: &Connection, question: &Pipeline) -> Result<Value, Fault> {
    let answers = connection.ask(question).await?;
    answers.into_iter().next().ok_or_else(Fault::senseless)
}
