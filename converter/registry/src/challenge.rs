//! `WWW-Authenticate` as registries use it (RFC 9110 §11.6.1), and the scopes a token is asked for.

use std::collections::BTreeMap;

/// The most bytes of a header we read: real ones have about 200.
const MAX_HEADER_LEN: usize = 8 << 10;

/// How a registry wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The challenge to answer among those in a response, Bearer before Basic; `None` when there is none we know.
    pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let known: Vec<Self> = headers.flat_map(parse).collect();
        let bearer = known.iter().find(|challenge| matches!(challenge, Self::Bearer { .. }));
        bearer.or(known.first()).cloned()
    }
}

/// All challenges of one header that we know. Malformed parts end the reading; what came before them counts.
fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header.get(..MAX_HEADER_LEN).unwrap_or(header);
    while let Some((scheme, after)) = take_token(rest) {
        let mut params = BTreeMap::new();
        rest = after;
        while let Some((name, value, after)) = take_param(rest) {
            params.entry(name.to_ascii_lowercase()).or_insert(value);
            rest = after.trim_start();
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => break,
            }
        }
        if params.is_empty() {
            rest = skip_token68(rest);
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = params.remove("realm")
        {
            found.push(Challenge::Bearer {
                realm,
                service: params.remove("service"),
                scope: params.remove("scope"),
            });
        }
    }
    found
}

fn take_token(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let end = text.bytes().position(|b| !is_token(b)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Skips the base64 that some schemes have in place of parameters.
fn skip_token68(text: &str) -> &str {
    let is_token68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    let rest = text.trim_start().trim_start_matches(is_token68).trim_start_matches('=').trim_start();
    if rest.is_empty() || rest.starts_with(',') { rest } else { text }
}

/// Reads `name = token-or-quoted-string`; `None` when the next thing is another scheme or the end.
fn take_param(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = take_token(text)?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, rest) = take_token(rest)?;
        return Some((name, value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

/// What a token must allow, as words such as `repository:models/x:pull,push`, sorted.
///
/// The registry's own wish comes first, widened by the actions we know we will need on the same object; `extra` words
/// (the source of a cross-repository mount) are always asked for. Without a wish, ours is used.
pub(crate) fn scopes(wish: Option<&str>, own: &str, extra: Option<&str>) -> Vec<String> {
    let mut words: Vec<String> = wish.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        words.push(own.to_owned());
    }
    for word in &mut words {
        if let Some(actions) = same_object(word, own) {
            *word = widen(word, actions);
        }
    }
    if let Some(extra) = extra {
        words.push(extra.to_owned());
    }
    words.sort();
    words.dedup();
    words
}

/// The actions of `other` when both words are about one object.
fn same_object<'a>(word: &str, other: &'a str) -> Option<&'a str> {
    let (object, _) = word.rsplit_once(':')?;
    let (other_object, actions) = other.rsplit_once(':')?;
    (object == other_object).then_some(actions)
}

fn widen(word: &str, actions: &str) -> String {
    let (object, have) = word.rsplit_once(':').expect("same_object split it");
    let mut all: Vec<&str> = have.split(',').chain(actions.split(',')).filter(|a| !a.is_empty()).collect();
    all.sort_unstable();
    all.dedup();
    format!("{object}:{}", all.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(headers: &[&str], expected: Option<Challenge>) {
        assert_eq!(Challenge::choose(headers.iter().copied()), expected);
    }

    #[test]
    fn challenges_as_registries_send_them() {
        check(
            &[
                r#"Bearer realm="https://auth.example.com/token",service="registry",scope="repository:a/b:pull,push""#,
            ],
            Some(bearer(
                "https://auth.example.com/token",
                Some("registry"),
                Some("repository:a/b:pull,push"),
            )),
        );
        check(&[r#"Basic realm="Registry Realm""#], Some(Challenge::Basic));
        check(&["basic"], Some(Challenge::Basic));
        check(&[r#"Basic realm="x", Bearer realm="https://t/""#], Some(bearer("https://t/", None, None)));
        check(
            &["Basic", r#"bearer REALM = "https://t/" , Service=s"#],
            Some(bearer("https://t/", Some("s"), None)),
        );
        check(&[r#"Bearer realm="a\"b""#], Some(bearer("a\"b", None, None)));
        check(&["Negotiate abc==, Basic realm=x"], Some(Challenge::Basic));
        check(&["Bearer"], None);
        check(&[r#"Bearer realm="unterminated"#], None);
        check(&["", ",,,", "Digest realm=x"], None);
    }

    #[test]
    fn scopes_are_widened_to_what_we_need() {
        let own = "repository:a/b:pull,push";
        assert_eq!(scopes(None, own, None), [own]);
        assert_eq!(scopes(Some("repository:a/b:pull"), own, None), [own]);
        assert_eq!(scopes(Some("aws"), own, None), ["aws"]);
        assert_eq!(scopes(Some("repository:a/b:*"), own, None), ["repository:a/b:*,pull,push"]);
        assert_eq!(scopes(Some(own), own, Some("repository:c:pull")), [own, "repository:c:pull"]);
    }

    proptest! {
        #[test]
        fn any_header_is_survived(header in "\\PC{0,200}") {
            Challenge::choose([header.as_str()].into_iter());
        }

        #[test]
        fn quoted_values_come_back(realm in "[ -~]{1,40}", service in "[ -~]{0,40}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer realm=\"{}\", service=\"{}\"", quote(&realm), quote(&service));
            let expected = Challenge::Bearer { realm, service: Some(service), scope: None };
            prop_assert_eq!(Challenge::choose([header.as_str()].into_iter()), Some(expected));
        }
    }
}
