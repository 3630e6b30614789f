//! What stands in Redis: the names of records, their bytes, and what the scripts say of them.

use std::time::Duration;

use backstop_core::{
    Attempt, Claim, ClaimRequest, Fence, Fingerprint, IdempotencyKey, OwnerId, Ownership, Ticket,
};
use redis::Value;
use xxhash_rust::xxh3::xxh3_64;

/// The name of a record: prefix, namespace and key. Colons in the namespace are written otherwise, so
/// that two of them never share a record.
pub(crate) fn name(prefix: &str, key: &IdempotencyKey) -> Vec<u8> {
    let namespace = key.namespace();
    let length = prefix.len() + namespace.len() + key.key().len() + 2;
    let mut name = Vec::with_capacity(length);
    name.extend_from_slice(prefix.as_bytes());
    name.push(b':');
    if namespace.contains([':', '%']) {
        let escaped = namespace.replace('%', "%25").replace(':', "%3A");
        name.extend_from_slice(escaped.as_bytes());
    } else {
        name.extend_from_slice(namespace.as_bytes());
    }
    name.push(b':');
    name.extend_from_slice(key.key().as_bytes());
    name
}

/// The bytes of a record in progress that is made by this claim, all but its deadline.
///
/// `scripts/claim.lua` says what stands where.
pub(crate) fn claimed(request: &ClaimRequest) -> Vec<u8> {
    let mut record = Vec::with_capacity(38);
    record.push(b'P');
    record.extend_from_slice(&fence(Fence(1)));
    record.extend_from_slice(&owner(&request.owner));
    record.extend_from_slice(&fingerprint(request.fingerprint));
    record.extend_from_slice(&first_attempt(request).to_be_bytes());
    record.extend_from_slice(&request.redrives.to_be_bytes());
    record.extend_from_slice(&request.nonce.to_be_bytes());
    record
}

/// The bytes in a record by which its holder is known.
pub(crate) fn holder(ticket: &Ticket) -> [u8; 13] {
    let mut holder = [0; 13];
    holder[..5].copy_from_slice(&fence(ticket.fence));
    holder[5..].copy_from_slice(&owner(&ticket.owner));
    holder
}

/// Five bytes: a thousand thousand millions of claims of one key. A higher one was never given, and
/// stands for the highest.
fn fence(Fence(fence): Fence) -> [u8; 5] {
    let [_, _, _, bytes @ ..] = fence.min((1 << 40) - 1).to_be_bytes();
    bytes
}

/// Eight bytes for an owner: two owners of one key at one fence differ but for one case in 2^64.
fn owner(owner: &OwnerId) -> [u8; 8] {
    xxh3_64(owner.as_str().as_bytes()).to_be_bytes()
}

/// Eight bytes for a fingerprint; zeros for none.
fn fingerprint(fingerprint: Option<Fingerprint>) -> [u8; 8] {
    match fingerprint {
        None => [0; 8],
        Some(Fingerprint(digest)) => xxh3_64(&digest.to_be_bytes()).max(1).to_be_bytes(),
    }
}

fn first_attempt(request: &ClaimRequest) -> u32 {
    Attempt::after(request.attempts_used).get()
}

/// Whole milliseconds, rounded up, of which Redis wants at least one; at most a hundred years.
pub(crate) fn millis(duration: Duration) -> u64 {
    const MOST: u128 = 100 * 365 * 24 * 3_600 * 1_000;
    let millis = duration.as_nanos().div_ceil(1_000_000).clamp(1, MOST);
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// Reads what `scripts/claim.lua` answers for a key.
pub(crate) fn read_claim(request: &ClaimRequest, answer: &Value) -> Option<Claim> {
    let parts = match answer {
        Value::Int(1) => {
            return Some(Claim::Acquired {
                fence: Fence(1),
                attempt: Attempt::after(request.attempts_used),
            });
        }
        Value::Array(parts) => parts,
        _ => return None,
    };
    match &parts[..] {
        [Value::Int(1), Value::Int(fence), Value::Int(attempt)] => Some(Claim::Acquired {
            fence: Fence(u64::try_from(*fence).ok()?),
            attempt: Attempt::after(u32::try_from(*attempt).ok()?.saturating_sub(1)),
        }),
        [Value::Int(2), Value::Int(millis)] => Some(Claim::InProgress {
            remaining: Duration::from_millis(u64::try_from(*millis).ok()?),
        }),
        [Value::Int(3)] => Some(Claim::Completed),
        [Value::Int(4)] => Some(Claim::DeadLettered),
        [Value::Int(5)] => Some(Claim::Conflict),
        _ => None,
    }
}

/// Reads what `scripts/renew.lua` and `scripts/end.lua` answer for a key.
pub(crate) fn read_ownership(answer: &Value) -> Option<Ownership> {
    match answer {
        Value::Int(1) => Some(Ownership::Held),
        Value::Int(0) => Some(Ownership::Fenced),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_never_share_a_record() {
        let pairs = [
            ("a", "b:c"),
            ("a:b", "c"),
            ("a%3Ab", "c"),
            ("a%b", "c"),
            ("", "a:b:c"),
        ];
        let names: std::collections::BTreeSet<_> = pairs
            .into_iter()
            .map(|(namespace, key)| name("p", &IdempotencyKey::new(namespace, key)))
            .collect();
        assert_eq!(names.len(), pairs.len());
        assert!(names.contains(&b"p:a:b:c"[..]));
    }

    #[test]
    fn times_are_rounded_up_to_what_redis_takes() {
        let cases = [
            (Duration::ZERO, 1),
            (Duration::from_nanos(1), 1),
            (Duration::from_micros(1_001), 2),
            (Duration::from_hours(24), 86_400_000),
            (Duration::MAX, 3_153_600_000_000),
        ];
        for (duration, wanted) in cases {
            assert_eq!(millis(duration), wanted, "{duration:?}");
        }
    }
}
