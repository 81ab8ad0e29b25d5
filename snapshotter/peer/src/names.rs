//! Which names may stand in a source, or in the path of a request to the Kubernetes API.

/// The most bytes of a label (RFC 1035 §2.3.4).
const MAX_LABEL_LEN: usize = 63;

/// The most bytes of a name as it is written, without a dot at its end: RFC 1035 §2.3.4 allows 255 on the wire, where the
/// first label has its length before it and the root follows the last.
const MAX_NAME_LEN: usize = 253;

/// Whether `text` may name a namespace or a service: a label of RFC 1123 in lower case.
pub(crate) fn is_label(text: &str) -> bool {
    is_host_label(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Whether `text` may name a node: such labels, joined by dots.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN && text.split('.').all(is_label)
}

/// Whether `text` may name a host: labels of RFC 1123 joined by dots, with or without a dot at the end, and nothing the
/// system's resolver would take for an address.
pub(crate) fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    name.len() <= MAX_NAME_LEN && name.split('.').all(is_host_label) && !ends_in_number(name)
}

/// `getaddrinfo` reads `127.1`, `2130706433` and `0x7f.1` as IPv4 addresses. No top-level domain is a number
/// (RFC 3696 §2), so a last label that looks like one, in any notation, marks an address.
pub(crate) fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()))
        || hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_host_label(text: &str) -> bool {
    (1..=MAX_LABEL_LEN).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a text is a label, a subdomain, a host name.
    #[track_caller]
    fn check(text: &str, expected: (bool, bool, bool)) {
        assert_eq!((is_label(text), is_subdomain(text), is_host_name(text)), expected, "{text:?}");
    }

    #[test]
    fn names_follow_the_rules() {
        check("towline", (true, true, true));
        check("a-0", (true, true, true));
        check("node-1.example", (false, true, true));
        check("Peers.example", (false, false, true));
        check("peers.example.", (false, false, true));
        check("0x7g", (true, true, true));
        // What a resolver would take for an address.
        check("7", (true, true, false));
        check("127.1", (false, true, false));
        check("10.0.0.1", (false, true, false));
        check("10.0.0.1.", (false, false, false));
        check("0x7f000001", (true, true, false));
        check("a.0X", (false, false, false));
        for text in
            ["", ".", "..", "a..b", ".a", "a.-b", "-a", "a-", "a_b", "a/b", "a:b", "a b", "é", "a\n", "%61"]
        {
            check(text, (false, false, false));
        }
    }

    #[test]
    fn lengths_at_the_limits() {
        check(&"a".repeat(63), (true, true, true));
        check(&"a".repeat(64), (false, false, false));
        let name = [&*"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)].join(".");
        assert_eq!(name.len(), 253);
        check(&name, (false, true, true));
        check(&format!("{name}."), (false, false, true));
        check(&format!("{name}d"), (false, false, false));
    }
}
