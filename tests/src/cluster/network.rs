//! The network of a cluster: a switch, a shaped link for the origin and each node, and zones.
//!
//! The switch is a namespace of its own with a bridge per zone and one in the middle, to which the origin is attached.
//! A zone's bridge is joined to the middle by a veth pair, shaped where the scenario limits what crosses zones. Every
//! link is shaped at both ends: the node's end limits what it sends, the switch's port what it receives.

use std::collections::HashMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::netns::NetNs;
use super::rate::Rate;

/// Where the origin is.
pub const ORIGIN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The switch's port to the origin.
const ORIGIN_PORT: &str = "port-origin";
/// The bridge in the middle.
const CORE: &str = "core";

/// What a network is made of. Rates of `None` are not shaped.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The origin's link.
    pub origin: Option<Rate>,
    /// Zone and link of each node.
    pub nodes: Vec<(usize, Option<Rate>)>,
    /// How many zones there are, and the link of each to the middle.
    pub zones: usize,
    /// See above.
    pub zone_link: Option<Rate>,
}

/// A running network.
#[derive(Debug)]
pub struct Network {
    switch: NetNs,
    /// Where the origin's sockets are.
    pub origin: NetNs,
    /// Where each node is.
    pub nodes: Vec<NetNs>,
    /// A place on the network for somebody who is no node.
    pub stranger: NetNs,
    zones: usize,
    counters: File,
}

/// Bytes of frames that have passed a port of the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From what is attached to the port.
    pub from: u64,
    /// To what is attached to the port.
    pub to: u64,
}

/// What every port has passed since the network was made.
#[derive(Clone, Debug, Default)]
pub struct Traffics {
    ports: HashMap<String, Traffic>,
    zones: usize,
}

impl Network {
    /// Builds it.
    ///
    /// # Errors
    /// With what `ip` or `tc` said.
    pub fn build(plan: &Plan) -> Result<Self> {
        let switch = NetNs::new()?;
        add_bridge(&switch, CORE)?;
        // Frames that pass a bridge are no business of the rules for packets; asking them costs time.
        let unasked = || std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        // The file is there only with that part of the kernel.
        let _ = switch.enter(unasked)?;
        for zone in 0..plan.zones {
            add_bridge(&switch, &bridge(zone))?;
            let (up, down) = (format!("up-{zone}"), format!("down-{zone}"));
            switch.ip(&format!(
                "link add name {up} txqueuelen 1000 type veth peer name {down} txqueuelen 1000"
            ))?;
            for (end, on) in [(&up, bridge(zone)), (&down, CORE.to_owned())] {
                switch.ip(&format!("link set dev {end} master {on} up"))?;
                shape(&switch, end, plan.zone_link)?;
            }
        }
        let origin = attach(&switch, ORIGIN_PORT, CORE, ORIGIN, plan.origin)?;
        let stranger = attach(&switch, "port-stranger", CORE, Ipv4Addr::new(10, 77, 0, 3), None)?;
        let mut nodes = Vec::new();
        for (index, &(zone, rate)) in plan.nodes.iter().enumerate() {
            nodes.push(attach(&switch, &port(index), &bridge(zone), address(index), rate)?);
        }
        let counters =
            switch.enter(|| File::open("/proc/thread-self/net/dev"))?.context("open link counters")?;
        Ok(Self { switch, origin, nodes, stranger, zones: plan.zones, counters })
    }

    /// What has passed every port so far.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn traffic(&self) -> Result<Traffics> {
        let mut text = Vec::new();
        let mut block = [0_u8; 4096];
        loop {
            let got = self.counters.read_at(&mut block, text.len() as u64).context("read link counters")?;
            if got == 0 {
                break;
            }
            text.extend_from_slice(&block[..got]);
        }
        Ok(Traffics { ports: parse(&String::from_utf8_lossy(&text)), zones: self.zones })
    }

    /// No frame passes between the nodes of `half` and the other nodes. The origin stays with both.
    ///
    /// # Errors
    /// With what `nft` said.
    pub fn split(&self, half: &[usize]) -> Result<()> {
        let names = |wanted: bool| {
            let names = (0..self.nodes.len()).filter(|index| half.contains(index) == wanted);
            names.map(|index| address(index).to_string()).collect::<Vec<_>>().join(", ")
        };
        let (left, right) = (names(true), names(false));
        self.switch.nft(&format!(
            "table bridge split {{
                chain forward {{
                    type filter hook forward priority 0;
                    ip saddr {{ {left} }} ip daddr {{ {right} }} drop
                    ip saddr {{ {right} }} ip daddr {{ {left} }} drop
                }}
            }}"
        ))
    }

    /// Undoes [`Network::split`].
    ///
    /// # Errors
    /// With what `nft` said.
    pub fn heal(&self) -> Result<()> {
        self.switch.nft("delete table bridge split")
    }

    /// Loses `percent` of 100 of all packets between nodes and origin, each by itself: senders cut their data into single packets
    /// before, or whole bundles of them would be lost.
    ///
    /// # Errors
    /// With what `ip` or `nft` said.
    pub fn lose(&self, percent: u32) -> Result<()> {
        for ns in self.nodes.iter().chain([&self.origin]) {
            ns.ip("link set dev eth0 gso_max_segs 1")?;
        }
        self.switch.nft(&format!(
            "table bridge loss {{
                chain forward {{
                    type filter hook forward priority 0;
                    numgen random mod 100 < {percent} drop
                }}
            }}"
        ))
    }

    /// The origin's machine answers every packet for its port with a reset, or answers again.
    ///
    /// # Errors
    /// With what `nft` said.
    pub fn refuse_at_origin(&self, refuse: bool) -> Result<()> {
        self.origin.nft(if refuse {
            "table inet gone {
                chain input {
                    type filter hook input priority 0;
                    meta l4proto tcp reject with tcp reset
                }
            }"
        } else {
            "delete table inet gone"
        })
    }
}

impl Traffics {
    /// A node's link: `from` is what it uploaded, `to` what it downloaded.
    #[must_use]
    pub fn node(&self, index: usize) -> Traffic {
        self.port(&port(index))
    }

    /// The origin's link.
    #[must_use]
    pub fn origin(&self) -> Traffic {
        self.port(ORIGIN_PORT)
    }

    /// Bytes that nodes of one zone sent to nodes of others: what left all zones. What the origin sends only enters, and
    /// what it is sent is small.
    #[must_use]
    pub fn cross_zone(&self) -> u64 {
        (0..self.zones).map(|zone| self.port(&format!("down-{zone}")).from).sum()
    }

    /// What has passed since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let ports = self.ports.iter().map(|(name, now)| {
            let before = earlier.port(name);
            (name.clone(), Traffic { from: now.from - before.from, to: now.to - before.to })
        });
        Self { ports: ports.collect(), zones: self.zones }
    }

    fn port(&self, name: &str) -> Traffic {
        self.ports.get(name).copied().unwrap_or_default()
    }
}

/// The address of node `index`.
///
/// # Panics
/// Above 250 nodes.
#[must_use]
pub fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 1, u8::try_from(index + 1).expect("a testbed has few nodes"))
}

fn port(index: usize) -> String {
    format!("port-{index}")
}

fn bridge(zone: usize) -> String {
    format!("zone-{zone}")
}

fn add_bridge(switch: &NetNs, name: &str) -> Result<()> {
    switch.ip(&format!("link add name {name} type bridge stp_state 0 mcast_snooping 0"))?;
    switch.ip(&format!("link set dev {name} up"))
}

fn shape(ns: &NetNs, dev: &str, rate: Option<Rate>) -> Result<()> {
    let Some(rate) = rate else { return Ok(()) };
    ns.tc(&format!("qdisc replace dev {dev} root {}", rate.tbf()))
}

/// Attaches a new namespace to a bridge of the switch; its end of the link is `eth0`.
fn attach(switch: &NetNs, port: &str, bridge: &str, addr: Ipv4Addr, rate: Option<Rate>) -> Result<NetNs> {
    let ns = NetNs::new()?;
    let path = ns.path();
    switch.ip(&format!(
        "link add name {port} txqueuelen 1000 type veth peer name eth0 txqueuelen 1000 netns {}",
        path.display()
    ))?;
    switch.ip(&format!("link set dev {port} master {bridge} up"))?;
    ns.ip(&format!("address add {addr}/16 dev eth0"))?;
    ns.ip("link set dev eth0 up")?;
    shape(switch, port, rate)?;
    shape(&ns, "eth0", rate)?;
    Ok(ns)
}

/// `/proc/net/dev`: after the name, 8 fields of what came in, then 8 of what went out, bytes first in both.
fn parse(text: &str) -> HashMap<String, Traffic> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter_map(|(name, rest)| {
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let number = |at: usize| fields.get(at)?.parse().ok();
            Some((name.trim().to_owned(), Traffic { from: number(0)?, to: number(8)? }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Traffic, parse};

    #[test]
    fn counters_of_the_kernel_are_read() {
        let text = "Inter-| Receive\n face |bytes\nport-1: 11 2 0 0 0 0 0 0 33 4 0 0 0 0 0 0\n    lo: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let ports = parse(text);
        assert_eq!(ports["port-1"], Traffic { from: 11, to: 33 });
        assert_eq!(ports.len(), 2);
    }
}
