//! How a request for a piece proves who asks, and an answer who answers.
//!
//! The control stream between two nodes is encrypted and bound to their identities. On it each node gives the other a key
//! of its own making, for requests to it alone. A request carries a number and a MAC over everything it asks for; the answer
//! carries a MAC over that number and what it answers. So neither side needs a second handshake, the bytes themselves can go
//! out by `sendfile`, and what a piece holds is proven by its digest. Numbers are taken once: what was overheard cannot be
//! asked again.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngCore;
use towline_artifact::ContentId;
use towline_swarm::{Ask, PeerId, Refusal};

/// A MAC key between two nodes, for requests in one direction.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RequestKey([u8; 32]);

impl RequestKey {
    /// A new one.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// To be sent on the control stream, and nowhere else.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Over a request; see [`PieceRequest`].
    pub(crate) fn sign_request(&self, request: &PieceRequest) -> blake3::Hash {
        let mut mac = blake3::Hasher::new_keyed(&self.0);
        mac.update(b"towline piece request 1\0");
        mac.update(&request.from.0.to_le_bytes());
        mac.update(&request.number.to_le_bytes());
        mac.update(&request.content.0);
        mac.update(&request.piece.to_le_bytes());
        mac.update(&[ask_code(request.ask), u8::from(request.urgent)]);
        mac.finalize()
    }

    /// Over the answer to request `number`: a status, and what it says beside it.
    pub(crate) fn sign_answer(&self, number: u64, status: u16, detail: &str) -> blake3::Hash {
        let mut mac = blake3::Hasher::new_keyed(&self.0);
        mac.update(b"towline piece answer 1\0");
        mac.update(&number.to_le_bytes());
        mac.update(&status.to_le_bytes());
        mac.update(detail.as_bytes());
        mac.finalize()
    }
}

impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestKey(..)")
    }
}

/// What one node asks of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PieceRequest {
    /// Who asks.
    pub(crate) from: PeerId,
    /// Of all requests under one key, each has another.
    pub(crate) number: u64,
    pub(crate) content: ContentId,
    pub(crate) piece: u32,
    pub(crate) ask: Ask,
    pub(crate) urgent: bool,
}

fn ask_code(ask: Ask) -> u8 {
    match ask {
        Ask::Holder => 0,
        Ask::Owner { forwarded: false } => 1,
        Ask::Owner { forwarded: true } => 2,
    }
}

/// What an answer without a piece says beside its status; the text that is signed with it.
pub(crate) fn refusal_detail(why: Refusal) -> String {
    match why {
        Refusal::Busy => "busy".to_owned(),
        Refusal::NotHere => "not-here".to_owned(),
        Refusal::Lent => "lent".to_owned(),
        Refusal::NotOwner { better: None } => "not-owner".to_owned(),
        Refusal::NotOwner { better: Some(better) } => format!("not-owner {better}"),
    }
}

/// Reads what [`refusal_detail`] writes.
pub(crate) fn parse_refusal(detail: &str) -> Option<Refusal> {
    match detail {
        "busy" => Some(Refusal::Busy),
        "not-here" => Some(Refusal::NotHere),
        "lent" => Some(Refusal::Lent),
        "not-owner" => Some(Refusal::NotOwner { better: None }),
        _ => {
            let id = detail.strip_prefix("not-owner ").filter(|id| id.len() == 16)?;
            Some(Refusal::NotOwner { better: Some(PeerId(u64::from_str_radix(id, 16).ok()?)) })
        }
    }
}

/// Numbers for requests under a key, from 1.
#[derive(Debug, Default)]
pub(crate) struct Numbers(AtomicU64);

impl Numbers {
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Numbers that may lie this far behind the highest one: as many requests of one peer can overtake each other.
const WINDOW: u64 = 1024;

/// Which numbers were taken under a key. Constant in size.
#[derive(Debug, Default)]
pub(crate) struct Taken(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    highest: u64,
    /// Bit `n % WINDOW` stands for number `n` of the last `WINDOW` ones.
    seen: [u64; (WINDOW / 64) as usize],
}

impl Taken {
    /// Takes a number; false if it was taken before or is too old to tell.
    pub(crate) fn take(&self, number: u64) -> bool {
        let mut window = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if number == 0 || number + WINDOW <= window.highest {
            return false;
        }
        if number > window.highest {
            let first = window.highest.max(number.saturating_sub(WINDOW)) + 1;
            (first..=number).for_each(|n| window.put(n, false));
            window.highest = number;
        }
        let bit = number % WINDOW;
        if window.seen[(bit / 64) as usize] >> (bit % 64) & 1 == 1 {
            return false;
        }
        window.put(number, true);
        true
    }
}

impl Window {
    fn put(&mut self, number: u64, seen: bool) {
        let bit = number % WINDOW;
        let word = &mut self.seen[(bit / 64) as usize];
        *word = *word & !(1 << (bit % 64)) | u64::from(seen) << (bit % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        /// Beside a slow model: a number is taken once, and only while it is among the last `WINDOW`.
        #[test]
        fn each_number_is_taken_once(jumps in prop::collection::vec((any::<bool>(), 0..1500u64), 1..400)) {
            let (taken, mut model, mut highest) = (Taken::default(), HashSet::new(), 0u64);
            for (ahead, by) in jumps {
                let number = if ahead { highest + by } else { highest.saturating_sub(by) };
                let fresh = number > 0 && number + WINDOW > highest && model.insert(number);
                prop_assert_eq!(taken.take(number), fresh, "number {} after {}", number, highest);
                highest = highest.max(number);
            }
        }

        #[test]
        fn refusals_are_read_as_written(kind in 0..5u8, id in any::<u64>()) {
            let why = match kind {
                0 => Refusal::Busy,
                1 => Refusal::NotHere,
                2 => Refusal::Lent,
                3 => Refusal::NotOwner { better: None },
                _ => Refusal::NotOwner { better: Some(PeerId(id)) },
            };
            prop_assert_eq!(parse_refusal(&refusal_detail(why)), Some(why));
        }
    }

    #[test]
    fn whatever_changes_changes_the_mac() {
        let key = RequestKey::random();
        let request = PieceRequest {
            from: PeerId(1),
            number: 2,
            content: ContentId([3; 32]),
            piece: 4,
            ask: Ask::Holder,
            urgent: false,
        };
        let macs: HashSet<_> = [
            request.clone(),
            PieceRequest { from: PeerId(2), ..request.clone() },
            PieceRequest { number: 3, ..request.clone() },
            PieceRequest { content: ContentId([4; 32]), ..request.clone() },
            PieceRequest { piece: 5, ..request.clone() },
            PieceRequest { ask: Ask::Owner { forwarded: false }, ..request.clone() },
            PieceRequest { ask: Ask::Owner { forwarded: true }, ..request.clone() },
            PieceRequest { urgent: true, ..request.clone() },
        ]
        .iter()
        .map(|request| key.sign_request(request))
        .collect();
        assert_eq!(macs.len(), 8);
        assert_ne!(key.sign_request(&request), RequestKey::random().sign_request(&request));
        assert_ne!(key.sign_answer(1, 206, "a"), key.sign_answer(1, 206, "b"));
        assert_ne!(key.sign_answer(1, 206, "a"), key.sign_answer(2, 206, "a"));
        assert!(!format!("{key:?}").contains(&hex::encode(key.bytes())));
    }
}
