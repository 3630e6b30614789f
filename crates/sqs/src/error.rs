//! From the SDK's errors to ours.

use std::error::Error as StdError;
use std::fmt;

use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::BatchResultErrorEntry;
use backstop_core::{BrokerError, BrokerErrorKind, ConfigError, with_causes};

/// What SQS or the way to it said: one line, without the request.
#[derive(Debug)]
struct Told(String);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Told {}

/// Says what failed, and keeps what SQS said as the cause.
pub(crate) fn failed<E>(doing: &str, error: &SdkError<E, HttpResponse>) -> BrokerError
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let Some(service) = error.as_service_error() else {
        let told = with_causes(error);
        let kind = kind_on_the_way(error, &told);
        let doing = match advice_on_the_way(&told) {
            Some(advice) => format!("{doing}: {advice}"),
            None => doing.to_owned(),
        };
        return BrokerError::new(kind, doing).with_source(Told(told));
    };
    let status = error.raw_response().map_or(0, |raw| raw.status().as_u16());
    let code = service.code().unwrap_or_default();
    refused(doing, code, service.message().unwrap_or_default(), status)
}

/// The error of one entry of a batch.
pub(crate) fn entry_failed(doing: &str, entry: &BatchResultErrorEntry) -> BrokerError {
    let status = if entry.sender_fault() { 400 } else { 500 };
    let text = entry.message().unwrap_or_default();
    refused(doing, entry.code(), text, status)
}

fn refused(doing: &str, code: &str, text: &str, status: u16) -> BrokerError {
    let kind = kind(code, text, status);
    let doing = match advice(code) {
        Some(advice) => format!("{doing}: {advice}"),
        None => doing.to_owned(),
    };
    BrokerError::new(kind, doing).with_source(Told(format!("{code}: {text}")))
}

/// Codes stand with and without the prefix of the older protocol, `AWS.SimpleQueueService.`. Where an
/// answer has the header `x-amzn-query-error`, as those of SQS have, the SDK tells the older protocol's
/// code: `KMS.AccessDeniedException` for `KmsAccessDenied`.
fn bare(code: &str) -> &str {
    let code = code.rsplit_once('#').map_or(code, |(_, code)| code);
    code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code)
}

fn kind(code: &str, text: &str, status: u16) -> BrokerErrorKind {
    match bare(code) {
        "NonExistentQueue" | "QueueDoesNotExist" | "QueueDeletedRecently" => {
            BrokerErrorKind::NotFound
        }
        // `OverLimit` is too many messages in flight (120,000): it ends when some are settled.
        "OverLimit"
        | "RequestThrottled"
        | "KmsThrottled"
        | "KMS.ThrottlingException"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "PriorRequestNotComplete" => BrokerErrorKind::Throttled,
        // The chain brings new ones, and a key that is being changed may come back.
        "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "KmsInvalidState"
        | "KMS.InvalidStateException" => BrokerErrorKind::Other,
        "AccessDenied"
        | "AccessDeniedException"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "InvalidSecurity"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "InvalidAccessKeyId"
        | "NotAuthorized"
        | "OptInRequired"
        | "KmsAccessDenied"
        | "KMS.AccessDeniedException"
        | "KmsDisabled"
        | "KMS.DisabledException"
        | "KmsNotFound"
        | "KMS.NotFoundException"
        | "KmsOptInRequired"
        | "KMS.OptInRequired"
        | "KmsInvalidKeyUsage"
        | "KMS.InvalidKeyUsageException" => BrokerErrorKind::AccessDenied,
        "ReceiptHandleIsInvalid" | "MessageNotInflight" => BrokerErrorKind::LeaseLost,
        "BatchRequestTooLong" => BrokerErrorKind::TooLarge,
        "InvalidParameterValue" | "InvalidParameterValueException" => parameter(text),
        "InvalidMessageContents"
        | "UnsupportedOperation"
        | "InvalidAttributeName"
        | "InvalidAttributeValue"
        | "MissingParameter"
        | "InvalidAddress" => BrokerErrorKind::Unsupported,
        _ if status == 429 => BrokerErrorKind::Throttled,
        _ if status == 401 || status == 403 => BrokerErrorKind::AccessDenied,
        _ if status >= 500 => BrokerErrorKind::Unreachable,
        _ => BrokerErrorKind::Other,
    }
}

/// One code stands for an expired receipt handle on a FIFO queue, for a total of more than 12 hours,
/// for a message that is too long, and for other values that SQS does not take.
fn parameter(text: &str) -> BrokerErrorKind {
    let text = text.to_ascii_lowercase();
    if text.contains("receipt handle") || text.contains("receipthandle") {
        BrokerErrorKind::LeaseLost
    } else if text.contains("must be shorter than") || text.contains("message length") {
        BrokerErrorKind::TooLarge
    } else {
        BrokerErrorKind::Unsupported
    }
}

/// What to do, where that is known.
fn advice(code: &str) -> Option<&'static str> {
    Some(match bare(code) {
        "NonExistentQueue" | "QueueDoesNotExist" => {
            "it does not exist in this account and region, or may not be seen; declare=true creates it"
        }
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => {
            "the credentials have expired: waiting for new ones"
        }
        "AccessDenied" | "AccessDeniedException" => {
            "the credentials lack a permission; the crate's documentation has the least policies"
        }
        "KmsAccessDenied" | "KMS.AccessDeniedException" => {
            "the credentials may not use the queue's KMS key: allow kms:Decrypt and kms:GenerateDataKey"
        }
        "KmsDisabled"
        | "KMS.DisabledException"
        | "KmsNotFound"
        | "KMS.NotFoundException"
        | "KmsInvalidState"
        | "KMS.InvalidStateException"
        | "KmsInvalidKeyUsage"
        | "KMS.InvalidKeyUsageException"
        | "KmsOptInRequired"
        | "KMS.OptInRequired" => "the queue's KMS key cannot be used",
        "OverLimit" => "too many messages of the queue are in flight",
        "QueueDeletedRecently" => "the queue was deleted less than a minute ago",
        _ => return None,
    })
}

/// What went wrong before SQS answered. Credentials that cannot be had may come back, like an instance's
/// metadata service.
fn kind_on_the_way<E>(error: &SdkError<E, HttpResponse>, told: &str) -> BrokerErrorKind {
    match error {
        SdkError::ConstructionFailure(_) => BrokerErrorKind::Configuration,
        SdkError::DispatchFailure(failure) if failure.is_user() => BrokerErrorKind::Configuration,
        _ if told.contains(NO_REGION) => BrokerErrorKind::Configuration,
        _ => BrokerErrorKind::Unreachable,
    }
}

/// As the SDK says it.
const NO_CREDENTIALS: &str = "no providers in chain provided credentials";
const NO_REGION: &str = "Missing Region";

fn advice_on_the_way(told: &str) -> Option<&'static str> {
    if told.contains(NO_CREDENTIALS) {
        Some(
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
        )
    } else if told.contains(NO_REGION) {
        Some("no region is known: give the URL region=<region>, or set AWS_REGION")
    } else {
        None
    }
}

pub(crate) fn closed() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Closed, "this handle was closed")
}

pub(crate) fn misconfigured(error: &ConfigError) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Configuration, error.to_string())
}

/// A request that cannot be written; a bug in this crate.
pub(crate) fn unwritable(error: &aws_sdk_sqs::error::BuildError) -> BrokerError {
    let text = format!("a request to SQS cannot be written: {error}");
    BrokerError::new(BrokerErrorKind::Unsupported, text)
}

/// The same error for another caller.
pub(crate) fn again(error: &BrokerError) -> BrokerError {
    let again = BrokerError::new(error.kind(), error.to_string());
    match error.source() {
        Some(source) => again.with_source(Told(source.to_string())),
        None => again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{Answer, Script};

    #[test]
    fn codes_are_sorted_by_what_helps() {
        use BrokerErrorKind::*;
        for (code, text, status, expected) in [
            ("AWS.SimpleQueueService.NonExistentQueue", "", 400, NotFound),
            ("QueueDoesNotExist", "", 400, NotFound),
            ("com.amazonaws.sqs#QueueDoesNotExist", "", 400, NotFound),
            ("ThrottlingException", "Rate exceeded", 400, Throttled),
            ("RequestThrottled", "", 403, Throttled),
            ("OverLimit", "", 403, Throttled),
            ("ExpiredToken", "", 403, Other),
            ("AccessDeniedException", "", 403, AccessDenied),
            ("KmsAccessDenied", "", 400, AccessDenied),
            ("KmsThrottled", "", 400, Throttled),
            ("KmsInvalidState", "", 400, Other),
            ("ReceiptHandleIsInvalid", "", 400, LeaseLost),
            (
                "InvalidParameterValue",
                "Reason: The receipt handle has expired.",
                400,
                LeaseLost,
            ),
            (
                "InvalidParameterValue",
                "One or more parameters are invalid. Reason: Message must be shorter than 1048576 bytes.",
                400,
                TooLarge,
            ),
            (
                "InvalidParameterValue",
                "Value 90 for parameter DelaySeconds is invalid.",
                400,
                Unsupported,
            ),
            ("InternalFailure", "", 500, Unreachable),
            ("ServiceUnavailable", "", 503, Unreachable),
            ("", "", 403, AccessDenied),
            ("SomethingNew", "", 400, Other),
        ] {
            assert_eq!(kind(code, text, status), expected, "{code} {text}");
        }
    }

    /// As the SDK reads them, the older protocol's code in the header.
    #[tokio::test(start_paused = true)]
    async fn what_the_key_management_service_refuses_is_told_by_the_code_of_either_protocol() {
        use BrokerErrorKind::*;
        let denied = Some("kms:Decrypt");
        let unusable = Some("KMS key cannot be used");
        for (code, older, expected, advice) in [
            (
                "KmsAccessDenied",
                "KMS.AccessDeniedException",
                AccessDenied,
                denied,
            ),
            (
                "KmsDisabled",
                "KMS.DisabledException",
                AccessDenied,
                unusable,
            ),
            (
                "KmsNotFound",
                "KMS.NotFoundException",
                AccessDenied,
                unusable,
            ),
            (
                "KmsInvalidKeyUsage",
                "KMS.InvalidKeyUsageException",
                AccessDenied,
                unusable,
            ),
            (
                "KmsOptInRequired",
                "KMS.OptInRequired",
                AccessDenied,
                unusable,
            ),
            (
                "KmsInvalidState",
                "KMS.InvalidStateException",
                Other,
                unusable,
            ),
            ("KmsThrottled", "KMS.ThrottlingException", Throttled, None),
        ] {
            for refusal in [Answer::refused(code), Answer::refused(code).older(older)] {
                let client = Script::new([refusal]).client();
                let asked = client.receive_message().queue_url("https://q").send().await;
                let error = failed("receiving from SQS fails", &asked.unwrap_err());
                assert_eq!(error.kind(), expected, "{code} {error}");
                let text = error.to_string();
                assert!(advice.is_none_or(|advice| text.contains(advice)), "{text}");
            }
        }
    }

    #[test]
    fn a_repeated_error_keeps_its_kind_and_cause() {
        let error = refused(
            "the messages cannot be received",
            "OverLimit",
            "too many",
            403,
        );
        let copy = again(&error);
        assert_eq!(copy.kind(), BrokerErrorKind::Throttled);
        assert_eq!(copy.to_string(), error.to_string());
        let cause = StdError::source(&copy).map(ToString::to_string);
        assert_eq!(cause.as_deref(), Some("OverLimit: too many"));
    }
}
