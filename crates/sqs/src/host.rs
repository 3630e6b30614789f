//! What the host of a URL tells.

/// The region that a host of AWS is in: `sqs.<region>.amazonaws.com`, also with FIPS, by a VPC
/// endpoint, dual-stack or in China; `<region>.queue.amazonaws.com` is the old form.
pub(crate) fn region(host: &str) -> Option<String> {
    let labels: Vec<_> = host.split('.').collect();
    let is_aws = host.ends_with(".amazonaws.com")
        || host.ends_with(".amazonaws.com.cn")
        || host.ends_with(".api.aws");
    if !is_aws {
        return None;
    }
    if let Some(at) = labels
        .iter()
        .position(|label| matches!(*label, "sqs" | "sqs-fips"))
    {
        return labels.get(at + 1).map(|region| (*region).to_owned());
    }
    let old = labels.iter().position(|label| *label == "queue")?;
    let region = labels.get(old.checked_sub(1)?)?;
    Some((*region).to_owned())
}

/// Whether a host is this machine: an emulator, without TLS.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<std::net::IpAddr>();
    host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_aws_tells_its_region() {
        for (host, expected) in [
            ("sqs.eu-central-1.amazonaws.com", Some("eu-central-1")),
            (
                "sqs-fips.us-gov-west-1.amazonaws.com",
                Some("us-gov-west-1"),
            ),
            ("sqs.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("sqs.eu-west-1.api.aws", Some("eu-west-1")),
            (
                "vpce-0a-1b.sqs.us-east-1.vpce.amazonaws.com",
                Some("us-east-1"),
            ),
            ("eu-west-1.queue.amazonaws.com", Some("eu-west-1")),
            ("sqs.eu-central-1.example.com", None),
            ("localhost", None),
        ] {
            assert_eq!(region(host).as_deref(), expected, "{host}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (host, expected) in [
            ("localhost", true),
            ("sqs.us-east-1.localhost", true),
            ("127.0.0.1", true),
            ("[::1]", true),
            ("10.0.0.1", false),
            ("localhost.example.com", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
