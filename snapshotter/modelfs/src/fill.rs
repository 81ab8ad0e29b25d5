//! The order in which a model becomes whole: that in which model servers load it.

use std::cmp::Ordering;
use std::ops::Range;

use towline_artifact::Model;

/// Names a fill that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FillId(pub(crate) u64);

impl FillId {
    /// The number that it is.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Parts of the weight files of `model`, as positions in [`Model::files`] and half-open ranges of pieces.
///
/// First the head of every file that starts with a header (loaders read all headers before any tensor), then every
/// file whole, in natural order of the paths (`model-2` before `model-10`), as loaders walk shards.
#[must_use]
pub fn fill_order(model: &Model) -> Vec<(usize, Range<u32>)> {
    let mut files: Vec<usize> = (0..model.files.len()).filter(|&n| model.files[n].layer > 0).collect();
    files.sort_by(|&a, &b| natural(&model.files[a].path, &model.files[b].path));
    let has_header = |n: &&usize| {
        let path = &model.files[**n].path;
        [".safetensors", ".gguf"].iter().any(|suffix| path.ends_with(suffix))
    };
    let heads = files.iter().filter(has_header).map(|&n| (n, 0..model.files[n].table.piece_count().min(1)));
    let whole = files.iter().map(|&n| (n, 0..model.files[n].table.piece_count()));
    heads.chain(whole).collect()
}

/// Compares names so that numbers in them count as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while !left.is_empty() && !right.is_empty() {
        let (l_digits, l_rest) = split_digits(left);
        let (r_digits, r_rest) = split_digits(right);
        let order = if l_digits.is_empty() || r_digits.is_empty() {
            let (l, r) = (first_char(left), first_char(right));
            left = &left[l.len()..];
            right = &right[r.len()..];
            l.cmp(r)
        } else {
            left = l_rest;
            right = r_rest;
            let (l, r) = (l_digits.trim_start_matches('0'), r_digits.trim_start_matches('0'));
            l.len().cmp(&r.len()).then_with(|| l.cmp(r))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

fn first_char(text: &str) -> &str {
    &text[..text.chars().next().map_or(0, char::len_utf8)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names = ["m-10.gguf", "m-9.gguf", "m-010.gguf", "m.gguf", "é2", "é10", "a/2/b", "a/10/b", ""];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(
            names,
            ["", "a/2/b", "a/10/b", "m-9.gguf", "m-010.gguf", "m-10.gguf", "m.gguf", "é2", "é10"]
        );
    }

    proptest! {
        #[test]
        fn natural_order_is_total(names in prop::collection::vec("[a-c0-2é/.]{0,6}", 3)) {
            let [a, b, c] = &names[..] else { unreachable!() };
            prop_assert_eq!(natural(a, b), natural(b, a).reverse());
            prop_assert_eq!(natural(a, b) == Ordering::Equal, a == b);
            if natural(a, b).is_le() && natural(b, c).is_le() {
                prop_assert!(natural(a, c).is_le());
            }
        }
    }
}
