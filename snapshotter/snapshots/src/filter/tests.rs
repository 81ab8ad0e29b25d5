use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An object of named values; a field's name is its path joined with dots.
struct Object(BTreeMap<Vec<u8>, Vec<u8>>);

impl Object {
    fn of(fields: &[(&str, &str)]) -> Self {
        Self(
            fields
                .iter()
                .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
                .collect(),
        )
    }
}

impl Fields for Object {
    fn field(&self, path: &[Vec<u8>]) -> Option<&[u8]> {
        self.0.get(&path.join(&b'.')).map(Vec::as_slice)
    }
}

#[track_caller]
fn check(filters: &[&str], expected: bool) {
    let object = Object::of(&[
        ("name", "foo"),
        ("parent", ""),
        ("kind", "committed"),
        ("labels.l", "2"),
        ("labels.containerd.io/snapshot.ref", "sha256:ab"),
        ("labels.ü", "a,b \"c\"/"),
    ]);
    let parsed = Filters::parse(filters).unwrap_or_else(|error| panic!("{filters:?}: {error}"));
    assert_eq!(parsed.matches(&object), expected, "{filters:?}");
}

#[test]
fn filters_match_as_in_containerd() {
    check(&[], true);
    check(&[""], true);
    check(&["name==foo"], true);
    check(&["name==bar"], false);
    check(&["name!=bar"], true);
    check(&["name"], true);
    check(&["nothing"], false);
    check(&["nothing!=x"], true);
    check(&["nothing!=\"\""], false);
    check(&["nothing==\"\""], false);
    check(&["parent==\"\""], true);
    check(&["parent!=\"\""], false);
    check(&["name==bar", "labels.l"], true);
    check(&["name==foo,labels.l==2,kind==committed"], true);
    check(&["name==foo,labels.l==3"], false);
    check(&["labels.\"containerd.io/snapshot.ref\"==sha256:ab,parent==\"\""], true);
    check(&["labels.\"containerd.io/snapshot.ref\"==\"sha256:\\x61b\""], true);
    check(&["labels.\"\\u00fc\"==\"a,b \\\"c\\\"/\""], true);
    check(&["name~=^f"], true);
    check(&["name~=/^f.o$/"], true);
    check(&["name~=|^[a-e]|"], false);
    check(&["name~=\"o{2}\""], true);
    check(&["nothing~=^$"], true);
    check(&["name~=/\\//,labels.l"], false);
    check(&["labels.l ==\t2"], true);
    check(&[" name== foo, labels. l"], true);
    check(&["labels.l==\"\\062\""], true);
    check(&["name==\"\\U00000066oo\""], true);
    check(&["name!=\"\\ud800\""], true);
}

#[test]
fn what_is_no_filter_is_refused() {
    for bad in [
        " ",
        ",",
        "name==",
        "name==foo,",
        "name=foo",
        "name===foo",
        "name<foo",
        "==foo",
        "name==foo ",
        "name==foo bar",
        ".name",
        "name.",
        "labels..l",
        "name==.x",
        "name==,",
        "name==/foo/",
        "name==|foo|",
        "/name/",
        "name==\"foo",
        "name==\"\\q\"",
        "name==\"\\'\"",
        "name==\"\\x6\"",
        "name==\"\\400\"",
        "name==\"\\U00110000\"",
        "name==\"a\nb\"",
        "name\0",
        "name==\0",
        "name~=[",
        "name~=(((",
        "name~=\"\\xff\"",
        "name==\"a\"b",
        "name ,labels",
        "é==x",
        "name~=/(a{1000}){1000}/",
        "name~=/\\d/",
        "name==\"\\62\"",
    ] {
        let filters = [bad];
        assert!(Filters::parse(&filters).is_err(), "{bad:?}");
    }
}

#[test]
fn filters_are_bounded() {
    let many = |count| vec!["name"; count];
    assert!(Filters::parse(&many(MAX_FILTERS)).is_ok());
    assert_eq!(Filters::parse(&many(MAX_FILTERS + 1)).err(), Some(FilterError::TooMany));
    let long = |len: usize| ["n".repeat(len)];
    assert!(Filters::parse(&long(MAX_FILTERS_LEN)).is_ok());
    assert_eq!(Filters::parse(&long(MAX_FILTERS_LEN + 1)).err(), Some(FilterError::TooLong));
    let regexes = |count| [vec!["name~=x"; count].join(",")];
    assert!(Filters::parse(&regexes(MAX_REGEXES)).is_ok());
    assert_eq!(Filters::parse(&regexes(MAX_REGEXES + 1)).err(), Some(FilterError::TooManyRegexes));
}

/// A selector as data, to be written as text and judged by the obvious rule.
#[derive(Clone, Debug)]
struct Plain {
    field: String,
    operator: Option<(bool, String)>,
}

fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => Cow::Owned(format!("\\{c}")),
        '\n' => Cow::Borrowed("\\n"),
        '\0' => Cow::Borrowed("\\x00"),
        c => Cow::Owned(c.to_string()),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

impl Plain {
    fn text(&self) -> String {
        let field = quoted(&self.field);
        match &self.operator {
            None => field,
            Some((true, value)) => format!("{field}=={}", quoted(value)),
            Some((false, value)) => format!("{field}!={}", quoted(value)),
        }
    }

    fn holds(&self, object: &BTreeMap<String, String>) -> bool {
        let value = object.get(&self.field);
        match &self.operator {
            None => value.is_some(),
            Some((true, wanted)) => value == Some(wanted),
            Some((false, unwanted)) => value.map_or("", String::as_str) != unwanted,
        }
    }
}

fn some_text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[ab,.= \"/\\\\\\n\\x00é]{1,3}"]
}

fn some_selector() -> impl Strategy<Value = Plain> {
    (some_text(), proptest::option::of((any::<bool>(), some_text())))
        .prop_map(|(field, operator)| Plain { field, operator })
}

proptest! {
    #[test]
    fn quoted_filters_mean_what_they_say(
        filters in proptest::collection::vec(proptest::collection::vec(some_selector(), 1..4), 0..4),
        object in proptest::collection::btree_map(some_text(), some_text(), 0..6),
    ) {
        let texts: Vec<_> =
            filters.iter().map(|f| f.iter().map(Plain::text).collect::<Vec<_>>().join(",")).collect();
        let expected = filters.is_empty() || filters.iter().any(|f| f.iter().all(|s| s.holds(&object)));
        let fields: Vec<_> = object.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let parsed = Filters::parse(&texts).expect("well-formed");
        prop_assert_eq!(parsed.matches(&Object::of(&fields)), expected, "{:?}", texts);
    }

    #[test]
    fn hostile_filters_never_panic(
        filters in proptest::collection::vec("[a-z.,=!~ \"/|\\\\xuU0-9\\x00\\n(){}\\[\\]*+?é]{0,40}", 0..4),
        anything in any::<String>(),
    ) {
        let object = Object::of(&[("a", "b")]);
        for filters in [filters, vec![anything]] {
            if let Ok(parsed) = Filters::parse(&filters) {
                let _ = parsed.matches(&object);
            }
        }
    }
}
