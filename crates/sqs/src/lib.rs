//! Amazon SQS for backstop: standard and FIFO queues.
//!
//! ```no_run
//! use backstop_core::{Consumer, Context, HandlerError, Shutdown};
//! use backstop_sqs::Sqs;
//! # use backstop_core::InProcessStore;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = Sqs::open("sqs://sqs.eu-central-1.amazonaws.com/123456789012/orders")?;
//! let consumer = Consumer::builder(broker)
//!     .store(InProcessStore::new())
//!     .raw(async |body: bytes::Bytes, _: Context| {
//!         println!("{} bytes", body.len());
//!         Ok::<_, HandlerError>(())
//!     })?;
//! consumer.run(&Shutdown::new()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How promises are kept
//!
//! | promise | by |
//! |---|---|
//! | nothing is lost | a message is deleted after its handler succeeded, or after SQS has confirmed its copy in the dead-letter queue |
//! | retry | `ChangeMessageVisibility` with the policy's wait, in whole seconds, never shorter; up to 12 hours |
//! | retry, ordered | the message waits in its lane, its visibility extended; its group is blocked meanwhile |
//! | release | visibility 0; SQS counts the receipt |
//! | dead letter | a copy with annotations in the queue that the `RedrivePolicy` names, then the deletion |
//! | poison that we never see | `maxReceiveCount`, above the consumer's cap |
//! | order | FIFO queues: the partition key is the `MessageGroupId` |
//! | leases | the visibility timeout, sent with each receive and extended while a handler runs, up to SQS's 12 hours |
//!
//! SQS bills by call. An idle consumer keeps one long poll of 20 s under way; under load it receives and
//! deletes by tens where it can, with up to `receives` (16) receives under way, and never asks for more than
//! it has room for. [`Sqs::api_calls`] counts the calls.
//!
//! All of this was tested on LocalStack 2026.3, not on AWS itself. Two cases of the brokers' suite, on
//! order, are left out there: LocalStack hands out what follows a message in flight of its FIFO group, once
//! another one of the group has become visible again.
//!
//! # Messages of others
//!
//! Text arrives as it was sent, attributes are headers (numbers as text, bytes in base64), the
//! `MessageGroupId` is the partition key, on standard queues (fair queues) too. Messages that backstop sends
//! are read by others likewise: headers are string attributes. What SQS cannot carry travels in attributes
//! that begin with `backstop`:
//!
//! | attribute | holds |
//! |---|---|
//! | `backstop-id` | the message's id; other publishers may set it |
//! | `backstop-content-type` | `application/octet-stream; base64` for a body that is not text, `application/octet-stream; empty` for none; other publishers may set the first |
//! | `backstop` | JSON: an id, a key or headers that no attribute can carry, and more headers than six |
//! | `backstop-dead-letter` | JSON: reason, error, attempts, origin, consumer, redrives, and times in milliseconds |
//!
//! The idempotency key of a message is `backstop-id`, else its `MessageDeduplicationId`, else SQS's own
//! `MessageId`. **The last differs between two sendings of one message**: a publisher that repeats a sending
//! makes two messages, and both are handled. Let it set `backstop-id`, or choose another key (a header, a
//! part of the body, the body's hash).
//!
//! # What SQS cannot do
//!
//! - A standard queue keeps no order across consumers: an ordered consumer of one is refused.
//! - A FIFO queue delays no single message, a standard queue by at most 15 minutes; longer delays of a
//!   publication are refused. Waits are whole seconds.
//! - SQS counts receipts, not attempts: what is given back counts, and in order also what waited behind the
//!   first of its group. The idempotency store counts exactly. Without one, a standard queue's messages may
//!   get fewer attempts than the cap after releases; an ordered queue's count starts anew with each process,
//!   and `maxReceiveCount` alone bounds what kills its process.
//! - A message has 1 MiB with its attributes, an id and headers included. A body that is not text is a third
//!   larger in base64. Annotations give way to a message that fills the mebibyte: its error is cut, then its
//!   copy goes without its id, and at last without annotations, which is logged. A copy without both is a
//!   message of its own when it comes back, by its `MessageId`. **Where the key is not the id, but a header or
//!   the body, it is taken for a repeat of its dead letter instead**: give it the attribute
//!   `backstop-redrives` of `1`, and some bytes less.
//! - Looking at a dead-letter queue receives its messages and gives them back. Others do not see them
//!   meanwhile, and on a FIFO queue a look shows no more than ten of a group.
//! - SQS does not say when it moved a message to the dead-letter queue: the time shown is that of sending.
//! - Copies in a dead-letter queue are sent, not moved: `StartMessageMoveTask` needs a `DestinationArn` for
//!   them. A FIFO queue drops a copy that returns within five minutes of its first sending, if it has the
//!   same `MessageDeduplicationId`. What comes back with its attributes, by whatever means, counts as
//!   redriven, and has all its attempts again. What SQS itself had dead-lettered has no annotations: when it
//!   comes back it has them again if SQS still says which queue it was moved from (LocalStack does, the first
//!   time), or if it has no id but SQS's, which is then another; else it has those that are left.
//! - A FIFO queue takes a second message of one id within five minutes for a repeat, and drops it.
//!   Of a batch that it took in part, what is sent again stands behind what was taken.
//! - A long poll that ends with its process may take a message along: it comes back when its lease ends.
//!
//! # Permissions
//!
//! The least that an identity needs, by the calls that are made (the emulator checks none of it); `orders`
//! is the queue, `orders-dead-letters` its dead-letter queue. To consume (`backstop run`, `Consumer`):
//!
//! ```json
//! {
//!   "Version": "2012-10-17",
//!   "Statement": [
//!     {
//!       "Effect": "Allow",
//!       "Action": ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"],
//!       "Resource": "arn:aws:sqs:eu-central-1:123456789012:orders"
//!     },
//!     {
//!       "Effect": "Allow",
//!       "Action": ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:SendMessage"],
//!       "Resource": "arn:aws:sqs:eu-central-1:123456789012:orders-dead-letters"
//!     }
//!   ]
//! }
//! ```
//!
//! To publish (`backstop publish`, `Publisher`):
//!
//! ```json
//! {
//!   "Version": "2012-10-17",
//!   "Statement": [
//!     {
//!       "Effect": "Allow",
//!       "Action": ["sqs:GetQueueUrl", "sqs:SendMessage"],
//!       "Resource": "arn:aws:sqs:eu-central-1:123456789012:orders"
//!     }
//!   ]
//! }
//! ```
//!
//! To look at dead letters (`DeadLetterQueue`):
//!
//! ```json
//! {
//!   "Version": "2012-10-17",
//!   "Statement": [
//!     {
//!       "Effect": "Allow",
//!       "Action": ["sqs:GetQueueUrl", "sqs:GetQueueAttributes"],
//!       "Resource": "arn:aws:sqs:eu-central-1:123456789012:orders"
//!     },
//!     {
//!       "Effect": "Allow",
//!       "Action": ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage", "sqs:ChangeMessageVisibility"],
//!       "Resource": "arn:aws:sqs:eu-central-1:123456789012:orders-dead-letters"
//!     }
//!   ]
//! }
//! ```
//!
//! `declare=true` and `backstop demo --url` (which does all of the above) also need, on both queues:
//!
//! ```json
//! {
//!   "Version": "2012-10-17",
//!   "Statement": [
//!     {
//!       "Effect": "Allow",
//!       "Action": ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:CreateQueue"],
//!       "Resource": [
//!         "arn:aws:sqs:eu-central-1:123456789012:orders",
//!         "arn:aws:sqs:eu-central-1:123456789012:orders-dead-letters"
//!       ]
//!     }
//!   ]
//! }
//! ```
//!
//! A queue that is encrypted by a KMS key asks for `kms:Decrypt` of its consumers, and `kms:Decrypt` and
//! `kms:GenerateDataKey` of whoever sends to it, a consumer that dead-letters included.
//!
//! # Credentials
//!
//! They come from the AWS chain: environment, profile (`profile=`, also with `credential_process`), web
//! identity, container, instance. IAM Identity Center (SSO) is left out for its weight: `aws configure
//! export-credentials` puts its credentials into the environment. A program that has a configuration of the
//! SDK of its own hands it in: [`SqsConfig::sdk_config`].
//!
//! The SDK logs requests with headers and bodies at level `trace`, target `aws_smithy_runtime`: keep that
//! target at `debug` where they must not be logged.

mod attributes;
mod batches;
mod broker;
mod config;
mod connection;
mod dead_letters;
mod decode;
mod encode;
mod error;
mod host;
mod inspect;
mod leases;
mod pace;
mod polls;
mod publish;
#[cfg(test)]
mod scripted;
mod settle;
mod subscription;
mod topology;

pub use broker::Sqs;
pub use config::{SqsConfig, SqsTopology};
