//! Which I/O mode an open gets. Pure: who is open is state here, registering a file with the kernel is the caller's.
//!
//! The kernel's rule (fs/fuse/iomode.c): an inode's opens are either all cached or all pass through, and those that pass
//! through must all name the same backing. An open that breaks it fails with `EIO` in the face of the user. A mapping
//! keeps its open alive, and `RELEASE` is sent only after the kernel has stopped counting the open, so the counts here
//! are never lower than the kernel's: what they allow, it allows.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::Ino;

/// How an open is to be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Granted<B> {
    /// Through the daemon and the page cache of the FUSE inode.
    Cached,
    /// Straight to the backing file.
    Passthrough(Arc<B>),
}

#[derive(Debug)]
struct Opens<B> {
    /// At least 1: the entry goes with the last open.
    count: u64,
    /// What the opens pass through to; `None` for cached ones.
    backing: Option<Arc<B>>,
}

/// The files that are open, and their modes.
#[derive(Debug)]
pub(crate) struct IoModes<B> {
    inodes: HashMap<Ino, Opens<B>>,
}

impl<B> Default for IoModes<B> {
    fn default() -> Self {
        Self { inodes: HashMap::new() }
    }
}

impl<B> IoModes<B> {
    /// Counts one more open of `ino` and says which mode it gets.
    ///
    /// `register` is asked for a backing only if the inode is free to choose, that is if nobody has it open; `None`
    /// from it (not sealed, or the kernel does not want it) means cached. Later opens follow the first one.
    pub(crate) fn open(&mut self, ino: Ino, register: impl FnOnce() -> Option<B>) -> Granted<B> {
        let opens = match self.inodes.entry(ino) {
            Entry::Occupied(entry) => {
                let opens = entry.into_mut();
                opens.count += 1;
                opens
            }
            Entry::Vacant(entry) => entry.insert(Opens { count: 1, backing: register().map(Arc::new) }),
        };
        opens.backing.as_ref().map_or(Granted::Cached, |backing| Granted::Passthrough(Arc::clone(backing)))
    }

    /// Counts one open of `ino` less; the last one lets go of the backing. Returns whether there was one: a kernel that
    /// releases what it never opened is not followed.
    #[must_use]
    pub(crate) fn release(&mut self, ino: Ino) -> bool {
        let Entry::Occupied(mut entry) = self.inodes.entry(ino) else { return false };
        entry.get_mut().count -= 1;
        if entry.get().count == 0 {
            entry.remove();
        }
        true
    }

    /// How many opens there are.
    pub(crate) fn count(&self) -> u64 {
        self.inodes.values().map(|opens| opens.count).sum()
    }

    /// Forgets every open and yields each inode once per open it had, for the end of a session.
    pub(crate) fn drain(&mut self) -> Vec<Ino> {
        let inodes = std::mem::take(&mut self.inodes);
        inodes.into_iter().flat_map(|(ino, opens)| (0..opens.count).map(move |_| ino)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet, VecDeque};
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sealed_while_cached_opens_live_stays_cached_until_the_last_is_gone() {
        let mut modes = IoModes::default();
        assert_eq!(modes.open(2, || None::<u32>), Granted::Cached);
        assert_eq!(modes.open(2, || panic!("a cached open lives")), Granted::Cached);
        assert!(modes.release(2));
        assert_eq!(modes.open(2, || panic!("a cached open lives")), Granted::Cached);
        assert!(modes.release(2) && modes.release(2));
        assert_eq!(modes.open(2, || Some(7)), Granted::Passthrough(Arc::new(7)));
    }

    #[test]
    fn every_open_passes_through_while_one_does_and_shares_its_backing() {
        let mut modes = IoModes::default();
        assert_eq!(modes.open(2, || Some(7)), Granted::Passthrough(Arc::new(7)));
        assert_eq!(modes.open(2, || panic!("passthrough lives")), Granted::Passthrough(Arc::new(7)));
        assert_eq!(modes.open(3, || None), Granted::Cached);
        assert!(modes.release(2) && modes.release(2));
        assert_eq!(modes.open(2, || None), Granted::Cached);
    }

    #[test]
    fn releases_of_what_is_not_open_are_not_counted() {
        let mut modes = IoModes::<u32>::default();
        assert!(!modes.release(2));
        modes.open(2, || None);
        assert!(modes.release(2));
        assert!(!modes.release(2));
        assert_eq!(modes.count(), 0);
    }

    #[test]
    fn draining_yields_each_open_once() {
        let mut modes = IoModes::default();
        for (ino, opens) in [(2, 3), (3, 1)] {
            (0..opens).for_each(|_| drop(modes.open(ino, || (ino == 3).then_some(0))));
        }
        let mut drained = modes.drain();
        drained.sort_unstable();
        assert_eq!(drained, [2, 2, 2, 3]);
        assert_eq!(modes.count(), 0);
    }

    /// A backing that is registered with the (model of the) kernel while it lives.
    #[derive(Debug, PartialEq, Eq)]
    struct Backing {
        id: u32,
        registered: Rc<RefCell<BTreeSet<u32>>>,
    }

    impl Drop for Backing {
        fn drop(&mut self) {
            self.registered.borrow_mut().remove(&self.id);
        }
    }

    /// The kernel's rule, as slow and obvious as possible, with the delays it has: it applies an answer some time after
    /// the answer was decided, and its RELEASE arrives some time after it stopped counting the open.
    #[derive(Default)]
    struct Kernel {
        /// Answers on their way: inode and backing id (`None`: cached).
        answers: Vec<(Ino, Option<u32>)>,
        /// Opens it counts.
        open: Vec<(Ino, Option<u32>)>,
        /// RELEASE requests on their way.
        releases: VecDeque<Ino>,
    }

    impl Kernel {
        fn apply(&mut self, answer: usize, registered: &BTreeSet<u32>) -> Result<(), TestCaseError> {
            let (ino, backing) = self.answers.remove(answer);
            for (_, other) in self.open.iter().filter(|(other, _)| *other == ino) {
                prop_assert_eq!(*other, backing, "inode {} mixes modes or backings", ino);
            }
            if let Some(id) = backing {
                prop_assert!(registered.contains(&id), "backing {} was closed before the open used it", id);
            }
            self.open.push((ino, backing));
            Ok(())
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open { ino: Ino, sealed: bool },
        Apply(prop::sample::Index),
        Close(prop::sample::Index),
        Release(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (2..5u64, any::<bool>()).prop_map(|(ino, sealed)| Step::Open { ino, sealed }),
            any::<prop::sample::Index>().prop_map(Step::Apply),
            any::<prop::sample::Index>().prop_map(Step::Close),
            any::<prop::sample::Index>().prop_map(Step::Release),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn the_kernel_never_refuses_what_was_granted(steps in steps()) {
            let registered = Rc::new(RefCell::new(BTreeSet::new()));
            let mut next_id = 0;
            let mut modes = IoModes::default();
            let mut kernel = Kernel::default();
            // What the daemon knows to be open, counted apart: inode to opens.
            let mut known = BTreeMap::<Ino, u64>::new();
            for step in steps {
                match step {
                    Step::Open { ino, sealed } => {
                        let free = known.get(&ino).is_none_or(|opens| *opens == 0);
                        let granted = modes.open(ino, || sealed.then(|| {
                            next_id += 1;
                            registered.borrow_mut().insert(next_id);
                            Backing { id: next_id, registered: Rc::clone(&registered) }
                        }));
                        let backing = match granted {
                            Granted::Cached => None,
                            Granted::Passthrough(backing) => Some(backing.id),
                        };
                        if free {
                            prop_assert_eq!(backing.is_some(), sealed, "a free inode takes the mode it can have");
                        }
                        *known.entry(ino).or_default() += 1;
                        kernel.answers.push((ino, backing));
                    }
                    Step::Apply(which) if !kernel.answers.is_empty() => {
                        let which = which.index(kernel.answers.len());
                        kernel.apply(which, &registered.borrow())?;
                    }
                    Step::Close(which) if !kernel.open.is_empty() => {
                        let (ino, _) = kernel.open.remove(which.index(kernel.open.len()));
                        kernel.releases.push_back(ino);
                    }
                    Step::Release(which) if !kernel.releases.is_empty() => {
                        let which = which.index(kernel.releases.len());
                        let ino = kernel.releases.remove(which).expect("the index is in range");
                        prop_assert!(modes.release(ino));
                        *known.get_mut(&ino).expect("it was opened") -= 1;
                    }
                    Step::Apply(_) | Step::Close(_) | Step::Release(_) => {}
                }
                prop_assert_eq!(modes.count(), known.values().sum::<u64>());
            }
            for (ino, opens) in known {
                (0..opens).for_each(|_| assert!(modes.release(ino)));
            }
            prop_assert!(registered.borrow().is_empty(), "the last release closes the backing");
        }
    }
}
