//! Canonical JSON: one text for one value.

use serde_json::Value;

/// Writes `value` with keys in bytewise order, no whitespace, and no escapes but those JSON demands.
///
/// Numbers in this format are integers, so their text is unique, too.
#[must_use]
pub(crate) fn canonical(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|&(key, _)| key);
            list(b'{', b'}', entries, out, |(key, value), out| {
                scalar(&Value::from(key.as_str()), out);
                out.push(b':');
                write(value, out);
            });
        }
        Value::Array(items) => list(b'[', b']', items, out, write),
        _ => scalar(value, out),
    }
}

fn list<T>(
    open: u8,
    close: u8,
    items: impl IntoIterator<Item = T>,
    out: &mut Vec<u8>,
    each: impl Fn(T, &mut Vec<u8>),
) {
    out.push(open);
    for (n, item) in items.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        each(item, out);
    }
    out.push(close);
}

fn scalar(value: &Value, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("strings and numbers are writable, and so is memory");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_text_for_one_value() {
        let value = json!({"b": [1, {"z": "ü\n\"\\/", "a": null}], "a": true, "": {}});
        let text = "{\"\":{},\"a\":true,\"b\":[1,{\"a\":null,\"z\":\"ü\\n\\\"\\\\/\"}]}";
        assert_eq!(String::from_utf8(canonical(&value)).unwrap(), text);
    }
}
