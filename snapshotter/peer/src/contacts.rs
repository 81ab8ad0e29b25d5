//! Whom to connect with, and when: pure decisions over addresses and times.
//!
//! Addresses come from the configuration, from name services, from peers and from connections. Up to the limit of
//! connections every node connects with every other: then all agree on who takes part in what.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The most addresses remembered; 100 bytes each.
const MAX_CONTACTS: usize = 16_384;
/// Dials under way at once.
const MAX_DIALS: usize = 32;
/// Wait after a failed dial; doubles with each in a row.
const REST: Duration = Duration::from_millis(500);
const REST_MAX: Duration = Duration::from_secs(15);
/// An address that could not be reached for this long is forgotten; name services tell it again if it is still true.
const FORGET: Duration = Duration::from_secs(900);

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Not connected; to be dialled from this moment on.
    Due(Instant),
    Dialling,
    Connected,
    /// It is this node itself.
    Own,
}

#[derive(Debug)]
struct Contact {
    state: State,
    failures: u32,
    /// When it was last connected or told by somebody.
    known: Instant,
}

/// All addresses at which nodes were said to be.
#[derive(Debug)]
pub(crate) struct Contacts {
    max_connections: usize,
    by_address: HashMap<SocketAddr, Contact>,
}

impl Contacts {
    pub(crate) fn new(max_connections: usize) -> Self {
        Self { max_connections, by_address: HashMap::new() }
    }

    /// Somebody says that a node is there.
    pub(crate) fn add(&mut self, address: SocketAddr, now: Instant) {
        if self.by_address.len() >= MAX_CONTACTS {
            self.by_address.retain(|_, contact| contact.failures == 0);
        }
        let room = self.by_address.len() < MAX_CONTACTS;
        if let Some(contact) = self.by_address.get_mut(&address) {
            contact.known = now;
        } else if room {
            self.by_address.insert(address, Contact { state: State::Due(now), failures: 0, known: now });
        }
    }

    pub(crate) fn connected(&mut self, address: SocketAddr, now: Instant) {
        self.add(address, now);
        self.set(address, State::Connected, 0);
    }

    /// A connection ended: the node may be back at once.
    pub(crate) fn lost(&mut self, address: SocketAddr, now: Instant) {
        if let Some(contact) = self.by_address.get_mut(&address) {
            contact.known = now;
        }
        self.set(address, State::Due(now + REST), 0);
    }

    /// A dial failed, or what was there is no peer.
    pub(crate) fn failed(&mut self, address: SocketAddr, now: Instant) {
        let Some(contact) = self.by_address.get(&address) else { return };
        if contact.state == State::Connected {
            return;
        }
        let failures = contact.failures + 1;
        let rest = REST.saturating_mul(1 << failures.min(10).saturating_sub(1)).min(REST_MAX);
        self.set(address, State::Due(now + rest), failures);
    }

    pub(crate) fn is_own(&mut self, address: SocketAddr) {
        self.set(address, State::Own, 0);
    }

    fn set(&mut self, address: SocketAddr, state: State, failures: u32) {
        if let Some(contact) = self.by_address.get_mut(&address) {
            (contact.state, contact.failures) = (state, failures);
        }
    }

    /// Addresses to dial now, with `connected` connections there. They count as dialled from here on.
    pub(crate) fn next_dials(&mut self, connected: usize, now: Instant) -> Vec<SocketAddr> {
        self.by_address.retain(|_, contact| {
            contact.failures == 0 || now.saturating_duration_since(contact.known) < FORGET
        });
        let under_way = self.by_address.values().filter(|contact| contact.state == State::Dialling).count();
        let room = self
            .max_connections
            .saturating_sub(connected + under_way)
            .min(MAX_DIALS.saturating_sub(under_way));
        let due = |contact: &Contact| matches!(contact.state, State::Due(at) if at <= now);
        let mut dials: Vec<(u32, SocketAddr)> = self
            .by_address
            .iter()
            .filter(|(_, contact)| due(contact))
            .map(|(&address, contact)| (contact.failures, address))
            .collect();
        // Those that failed least first; among them in the order of a hash map, which differs from node to node.
        dials.sort_by_key(|dial| dial.0);
        dials.truncate(room);
        for (_, address) in &dials {
            self.by_address.get_mut(address).expect("just seen").state = State::Dialling;
        }
        dials.into_iter().map(|(_, address)| address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], n))
    }

    #[test]
    fn everybody_is_dialled_once_and_again_after_a_rest() {
        let (mut contacts, now) = (Contacts::new(10), Instant::now());
        (1..=3).for_each(|n| contacts.add(address(n), now));
        contacts.add(address(1), now);
        assert_eq!(contacts.next_dials(0, now).len(), 3);
        assert_eq!(contacts.next_dials(0, now).len(), 0, "all are being dialled");
        contacts.connected(address(1), now);
        contacts.failed(address(2), now);
        contacts.is_own(address(3));
        assert_eq!(contacts.next_dials(1, now).len(), 0);
        assert_eq!(contacts.next_dials(1, now + REST), [address(2)]);
        contacts.lost(address(1), now + REST);
        assert_eq!(contacts.next_dials(0, now + 2 * REST), [address(1)]);
    }

    #[test]
    fn the_limits_hold() {
        let (mut contacts, now) = (Contacts::new(40), Instant::now());
        (1..=100).for_each(|n| contacts.add(address(n), now));
        assert_eq!(contacts.next_dials(0, now).len(), MAX_DIALS);
        assert_eq!(contacts.next_dials(0, now).len(), 0);
        let mut few = Contacts::new(5);
        (1..=100).for_each(|n| few.add(address(n), now));
        assert_eq!(few.next_dials(3, now).len(), 2);
    }

    #[test]
    fn who_stays_away_is_forgotten_and_who_is_connected_is_not() {
        let (mut contacts, now) = (Contacts::new(10), Instant::now());
        contacts.connected(address(1), now);
        contacts.add(address(2), now);
        let mut at = now;
        while at < now + 2 * FORGET {
            contacts.next_dials(1, at).into_iter().for_each(|address| contacts.failed(address, at));
            at += REST_MAX;
        }
        assert_eq!(contacts.by_address.len(), 1);
    }
}
