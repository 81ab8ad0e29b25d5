//! Which pieces of a content: a set of small numbers.

/// A set of piece numbers below a fixed length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: u32,
    count: u32,
}

impl Bitmap {
    /// The empty set of numbers below `len`.
    #[must_use]
    pub fn new(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len, count: 0 }
    }

    /// The set of all numbers below `len`.
    #[must_use]
    pub fn full(len: u32) -> Self {
        let mut words = vec![u64::MAX; len.div_ceil(64) as usize];
        if let Some(last) = words.last_mut()
            && !len.is_multiple_of(64)
        {
            *last = (1 << (len % 64)) - 1;
        }
        Self { words, len, count: len }
    }

    /// The set whose number `n` is there when bit `n % 64` (1 is the lowest) of word `n / 64` is set; `None` unless there
    /// are just as many words as `len` needs and no bit beyond it.
    #[must_use]
    pub fn from_words(len: u32, words: Vec<u64>) -> Option<Self> {
        let last_bits = if len.is_multiple_of(64) { u64::MAX } else { (1 << (len % 64)) - 1 };
        let fits = words.len() == len.div_ceil(64) as usize
            && words.last().is_none_or(|last| last & !last_bits == 0);
        let count = words.iter().map(|word| word.count_ones()).sum();
        fits.then_some(Self { words, len, count })
    }

    /// The words of [`Self::from_words`].
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// One more than the greatest number the set could hold.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the length is that of the content, not of the set")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// How many numbers are in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether every number below the length is in the set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Whether `n` is in the set; false beyond its length.
    #[must_use]
    pub fn has(&self, n: u32) -> bool {
        n < self.len && self.words[(n / 64) as usize] >> (n % 64) & 1 == 1
    }

    /// Adds `n`; false if it was there or lies beyond the length.
    pub fn set(&mut self, n: u32) -> bool {
        let new = n < self.len && !self.has(n);
        if new {
            self.words[(n / 64) as usize] |= 1 << (n % 64);
            self.count += 1;
        }
        new
    }

    /// Takes `n` out; false if it was not there.
    pub fn clear(&mut self, n: u32) -> bool {
        let there = self.has(n);
        if there {
            self.words[(n / 64) as usize] &= !(1 << (n % 64));
            self.count -= 1;
        }
        there
    }

    /// The numbers of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().zip(0u32..).flat_map(|(&word, at)| bits(word, at))
    }

    /// The first number at or after `from` that is not in the set; the length if there is none.
    #[must_use]
    pub fn first_absent(&self, from: u32) -> u32 {
        let mut at = from / 64;
        let mut skip = u64::MAX << (from % 64);
        while let Some(&word) = self.words.get(at as usize) {
            let absent = !word & skip;
            if absent != 0 {
                return (at * 64 + absent.trailing_zeros()).min(self.len);
            }
            skip = u64::MAX;
            at += 1;
        }
        self.len
    }

    /// Whether the two sets have a number in common.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// Numbers in both sets, from the first at or after `from` on, around the end.
    pub(crate) fn common<'a>(&'a self, other: &'a Self, from: u32) -> impl Iterator<Item = u32> + 'a {
        let count = self.words.len().min(other.words.len());
        let from = if count == 0 { 0 } else { from as usize % (64 * count) };
        let (first, below) = (from / 64, (1 << (from % 64)) - 1);
        // The word in which it starts comes twice: its end first, its beginning last.
        let whole = (first + 1..count).chain(0..first).map(|at| (at, u64::MAX));
        let parts = (first < count).then_some((first, below));
        let all = parts.map(|(at, below)| (at, !below)).into_iter().chain(whole).chain(parts);
        all.flat_map(move |(at, mask)| bits(self.words[at] & other.words[at] & mask, at as u32))
    }
}

fn bits(mut word: u64, at: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(at * 64 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(
            len in 0..200u32,
            ops in prop::collection::vec((any::<bool>(), 0..220u32), 0..300),
            from in 0..220u32,
        ) {
            let (mut map, mut set) = (Bitmap::new(len), BTreeSet::new());
            for (add, n) in ops {
                if add {
                    prop_assert_eq!(map.set(n), n < len && set.insert(n));
                } else {
                    prop_assert_eq!(map.clear(n), set.remove(&n));
                }
            }
            prop_assert_eq!(map.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(map.count() as usize, set.len());
            let absent = (from..len).find(|n| !set.contains(n)).unwrap_or(len);
            prop_assert_eq!(map.first_absent(from), absent);
            let from = from % (len.div_ceil(64) * 64).max(1);
            let around: Vec<_> = set.range(from..).chain(set.range(..from)).copied().collect();
            prop_assert_eq!(map.common(&Bitmap::full(len), from).collect::<Vec<_>>(), around);
            prop_assert_eq!(Bitmap::full(len).iter().count() as u32, len);
            prop_assert_eq!(map.meets(&Bitmap::full(len)), map.count() > 0);
        }
    }
}
