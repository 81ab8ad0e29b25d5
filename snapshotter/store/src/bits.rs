//! A bit per piece that readers test without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

const WORD: u32 = u64::BITS;

/// Number of words that hold `len` bits.
pub(crate) fn words_for(len: u32) -> usize {
    len.div_ceil(WORD) as usize
}

/// Whether bit `index` is set in plain `words`; bits beyond the end are clear.
pub(crate) fn test(words: &[u64], index: u32) -> bool {
    words.get((index / WORD) as usize).is_some_and(|word| word >> (index % WORD) & 1 == 1)
}

/// A fixed number of bits. Setting a bit releases what was written before it to whoever sees the bit.
#[derive(Debug)]
pub(crate) struct AtomicBits {
    words: Box<[AtomicU64]>,
    len: u32,
}

impl AtomicBits {
    /// `len` bits with the values in `words`, which has [`words_for`]`(len)` entries and no bit beyond `len`.
    pub(crate) fn from_words(words: Vec<u64>, len: u32) -> Self {
        assert_eq!(words.len(), words_for(len), "one word per 64 bits");
        Self { words: words.into_iter().map(AtomicU64::new).collect(), len }
    }

    pub(crate) fn get(&self, index: u32) -> bool {
        index < self.len
            && self.words[(index / WORD) as usize].load(Ordering::Acquire) >> (index % WORD) & 1 == 1
    }

    /// Sets a bit below the length; true if it was clear.
    pub(crate) fn set(&self, index: u32) -> bool {
        assert!(index < self.len, "bit {index} of {}", self.len);
        let mask = 1 << (index % WORD);
        self.words[(index / WORD) as usize].fetch_or(mask, Ordering::AcqRel) & mask == 0
    }

    /// Clears every bit that is not set in `keep`; returns the cleared ones, ascending.
    pub(crate) fn retain(&self, keep: &[u64]) -> Vec<u32> {
        let mut cleared = Vec::new();
        for (number, (word, keep)) in self.words.iter().zip(keep).enumerate() {
            let mut gone = word.fetch_and(*keep, Ordering::AcqRel) & !keep;
            while gone != 0 {
                cleared.push(number as u32 * WORD + gone.trailing_zeros());
                gone &= gone - 1;
            }
        }
        cleared
    }

    /// The first clear bit at or after `from`.
    pub(crate) fn next_clear(&self, from: u32) -> Option<u32> {
        let mut mask = u64::MAX << (from % WORD);
        for number in (from / WORD) as usize..self.words.len() {
            let clear = !self.words[number].load(Ordering::Acquire) & mask;
            if clear != 0 {
                let index = number as u32 * WORD + clear.trailing_zeros();
                return (index < self.len).then_some(index);
            }
            mask = u64::MAX;
        }
        None
    }

    /// A copy of the words. A bit that was set before the call is in it.
    pub(crate) fn snapshot(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::Acquire)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_behave_like_a_list_of_bools(
            len in 0..300u32,
            sets in proptest::collection::vec(any::<u32>(), 0..200),
            keeps in proptest::collection::vec(any::<u64>(), 5),
        ) {
            let bits = AtomicBits::from_words(vec![0; words_for(len)], len);
            let mut model = vec![false; len as usize];
            for set in sets.iter().filter(|_| len > 0).map(|set| set % len) {
                prop_assert_eq!(bits.set(set), !model[set as usize]);
                model[set as usize] = true;
            }
            let check = |model: &[bool]| {
                for index in 0..len + 70 {
                    let expected = model.get(index as usize).copied().unwrap_or(false);
                    assert_eq!(bits.get(index), expected);
                    assert_eq!(test(&bits.snapshot(), index), expected);
                    let clear = (index..len).find(|i| !model[*i as usize]);
                    assert_eq!(bits.next_clear(index), clear, "from {index}");
                }
            };
            check(&model);
            let keep = &keeps[..words_for(len)];
            let gone: Vec<u32> = (0..len).filter(|i| model[*i as usize] && !test(keep, *i)).collect();
            prop_assert_eq!(bits.retain(keep), gone.clone());
            gone.iter().for_each(|i| model[*i as usize] = false);
            check(&model);
        }
    }
}
