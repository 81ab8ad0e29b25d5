//! A run of a scenario, from an empty network to its outcome.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::busy::Ticks;
use super::capture::Capture;
use super::cold::{Reader, percentile, time_of_piece};
use super::model::Model;
use super::network::{Network, Traffics, address};
use super::node::{Common, Driver, Fetched, Node, banned};
use super::origin::{Origin, USER};
use super::outcome::{NodeEnd, Outcome, Reads};
use super::scenario::{Action, Event, Peers, Scenario, When, Who};
use super::{stranger, warm};
use crate::exclusive::Exclusive;
use crate::process::until;
use crate::scratch::Scratch;

/// How long nodes may take to find each other.
const MEET_LIMIT: Duration = Duration::from_secs(30);

/// How often the run looks whether something has happened: 5 ms of a link of 200 Mb/s are 0.05 % of the smallest model.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What the reader's node has received when the reader begins: the fill is at full speed then.
const READ_FROM: f64 = 0.05;

/// From the preparation of all starts to the first: all start within a few milliseconds of their time.
const LEAD: Duration = Duration::from_millis(200);
/// Memory of a daemon and its sockets beside what it stores.
const NODE_MEMORY: u64 = 128 << 20;

/// A cluster. Fields end in this order: daemons, origin, links, the directory with all that is left, the turn.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    origin: Origin,
    network: Network,
    model: Model,
    scenario: Scenario,
    secrets: Vec<String>,
    in_memory: bool,
    scratch: Scratch,
    _turn: Exclusive,
}

/// The end of a prefetch.
struct Ended {
    index: usize,
    attempt: u32,
    result: Result<Fetched>,
}

/// A run under way.
struct Run<'a> {
    cluster: &'a mut Cluster,
    begin: Instant,
    before: Traffics,
    tasks: JoinSet<Ended>,
    /// How often each node was killed: ends of earlier lives do not count.
    attempts: Vec<u32>,
    /// Time or error of each node that has ended.
    ended: HashMap<usize, Result<Fetched>>,
    killed: HashSet<usize>,
    stopped: HashSet<usize>,
    disturbed: HashSet<usize>,
    last_event: Instant,
}

impl Cluster {
    /// Waits for its turn, makes a model, the network and the origin, and starts all daemons; waits until every node with peers is
    /// connected with every other.
    ///
    /// # Errors
    /// Where a part is missing or fails.
    pub async fn build(scenario: &Scenario) -> Result<Self> {
        let turn = Exclusive::wait().await?;
        warm_up(scenario)?;
        let scratch = Scratch::new()?;
        let model = Model::random(&scratch, scenario.model).await?;
        let network = Network::build(&scenario.plan())?;
        let origin = Origin::start(&network.origin, &model.layout)?;
        origin.set(scenario.faults.clone());
        let common = common(&scratch, &origin, scenario)?;
        let mut nodes = Vec::new();
        for (index, ns) in network.nodes.iter().enumerate() {
            nodes.push(Node::start(&scratch, ns, index, &common, scenario).await?);
        }
        if scenario.peers != Peers::None {
            for node in &nodes {
                let driver = node.driver();
                let met =
                    async || Ok((driver.peers().await?.peers.len() + 1 >= scenario.nodes).then_some(()));
                until(&format!("node {} meets all others", node.index), MEET_LIMIT, met).await?;
            }
        }
        if scenario.loss_percent > 0 {
            network.lose(scenario.loss_percent)?;
        }
        let secrets = scenario.faults.password.as_ref().map_or_else(Vec::new, |password| {
            vec![password.clone(), basic(password), origin.token().to_owned()]
        });
        let (in_memory, scenario) = (common.in_memory, scenario.clone());
        Ok(Self { nodes, origin, network, model, scenario, secrets, in_memory, scratch, _turn: turn })
    }

    /// Makes the scenario happen.
    ///
    /// # Errors
    /// Where the testbed fails; what the daemons do wrong is in the outcome.
    pub async fn run(&mut self) -> Result<Outcome> {
        let piece = if self.scenario.reader { Some(self.time_piece().await?) } else { None };
        let capture = match self.scenario.capture {
            true => {
                let node = &self.nodes[0];
                Some(Capture::start(&self.scratch, &self.network.nodes[0], node.dir()).await?)
            }
            false => None,
        };
        self.origin.reset();
        let cpu_before = self.cpu();
        let (before, ticks) = (self.network.traffic()?, Ticks::now()?);
        let mut run = Run::start(self, before)?;
        let begin = run.begin;
        let reader = run.reader().await?;
        run.until_all_ended().await?;
        let Run { ended, disturbed, before, killed, .. } = run;
        let elapsed = begin.elapsed();
        let (busy, passed) = (Ticks::now()?.busy_since(ticks), self.network.traffic()?.since(&before));
        let served = self.origin.served();
        let cpu_seconds = (self.cpu() - cpu_before).as_secs_f64();
        let reads = match (reader, piece) {
            (Some((reader, mount)), Some(piece)) => Some(self.end_reader(reader, mount, piece).await?),
            _ => None,
        };
        let found = match capture {
            Some(capture) => Some(capture.finish(&self.secrets).await?),
            None => None,
        };
        // After the transfer: what a stranger does costs the nodes time.
        let stranger = if self.scenario.stranger { Some(self.visit().await?) } else { None };
        let nodes = self.look_at_nodes(ended, &disturbed, &killed, &passed).await?;
        Ok(Outcome {
            name: self.scenario.name.clone(),
            peers: self.scenario.peers,
            limits: self.scenario.limits,
            model: self.model.len(),
            nodes,
            origin_bytes: served.bytes,
            origin_link_bytes: passed.origin().from,
            requests: served.requests,
            faulty: served.faulty,
            cross_zone_bytes: (self.scenario.zones > 1).then(|| passed.cross_zone()),
            cpu_seconds,
            peak_rss_bytes: self.nodes.iter().map(|node| node.usage().peak_rss_bytes).max().unwrap_or(0),
            busy,
            in_memory: self.in_memory,
            elapsed,
            reads,
            stranger,
            found,
        })
    }

    /// The end of every log, for the report of a failure.
    #[must_use]
    pub fn log_tails(&self) -> String {
        self.scratch.log_tails()
    }

    fn cpu(&self) -> Duration {
        self.nodes.iter().map(|node| node.usage().cpu).sum()
    }

    async fn time_piece(&self) -> Result<f64> {
        let path = self.origin.weights_path();
        let ns = self.network.nodes.last().context("a cluster without nodes")?;
        // The origin runs on this runtime's other threads.
        let mut times = Vec::new();
        for _ in 0..3 {
            times.push(tokio::task::block_in_place(|| time_of_piece(ns, &path))?);
        }
        times.sort();
        Ok(times[1].as_secs_f64())
    }

    async fn end_reader(&self, reader: Reader, mount: PathBuf, piece: f64) -> Result<Reads> {
        let times = tokio::task::spawn_blocking(move || reader.finish()).await??;
        let at = |share| percentile(&times, share).map_or(f64::INFINITY, |time| time.as_secs_f64());
        let reads = Reads { count: times.len(), p50: at(0.5), p95: at(0.95), piece };
        let node = self.nodes.last().context("a cluster without nodes")?;
        node.driver().unmount(&mount).await?;
        Ok(reads)
    }

    async fn visit(&self) -> Result<stranger::Reception> {
        let content = &self.model.files[0].content;
        // Two nodes are as good as all.
        let nodes: Vec<_> = (0..self.nodes.len().min(2)).map(address).collect();
        tokio::task::block_in_place(|| stranger::visit(&self.network.stranger, &nodes, content))
    }

    /// Hashes what every store holds, and asks every node whom it has banned: a ban lasts a minute at least.
    async fn look_at_nodes(
        &self,
        mut ended: HashMap<usize, Result<Fetched>>,
        disturbed: &HashSet<usize>,
        killed: &HashSet<usize>,
        passed: &Traffics,
    ) -> Result<Vec<NodeEnd>> {
        let mut ends = Vec::new();
        for node in &self.nodes {
            let index = node.index;
            let banned = match self.scenario.peers {
                Peers::Swarm | Peers::OwnerOnly if node.is_up() => {
                    banned(&node.driver().peers().await?).len()
                }
                _ => 0,
            };
            let (fetched, error) = match ended.remove(&index) {
                Some(Ok(fetched)) => (Some(fetched), None),
                Some(Err(error)) => (None, Some(format!("{error:#}"))),
                None => (None, None),
            };
            let verdict = tokio::task::block_in_place(|| self.model.check(&node.root()))?;
            ends.push(NodeEnd {
                index,
                seconds: fetched.map(|fetched| fetched.verified.as_secs_f64()),
                durable: fetched.map(|fetched| fetched.durable.as_secs_f64()),
                bound: self.scenario.bound_of(index),
                disturbed: disturbed.contains(&index),
                excused: killed.contains(&index) || self.scenario.disk_of(index).is_some(),
                verdict,
                error,
                banned,
                sent: passed.node(index).from,
            });
        }
        Ok(ends)
    }
}

impl<'a> Run<'a> {
    fn start(cluster: &'a mut Cluster, before: Traffics) -> Result<Self> {
        let begin = Instant::now() + LEAD;
        let attempts = vec![0; cluster.nodes.len()];
        let mut run = Self {
            cluster,
            attempts,
            begin,
            before,
            tasks: JoinSet::new(),
            ended: HashMap::new(),
            killed: HashSet::new(),
            stopped: HashSet::new(),
            disturbed: HashSet::new(),
            last_event: begin,
        };
        for index in 0..run.cluster.nodes.len() {
            let after =
                run.cluster.scenario.every * u32::try_from(index).context("a testbed has few nodes")?;
            run.prefetch(index, begin + after);
        }
        Ok(run)
    }

    fn prefetch(&mut self, index: usize, at: Instant) {
        let driver: Driver = self.cluster.nodes[index].driver();
        let (attempt, reference) = (self.attempts[index], self.cluster.origin.reference());
        self.tasks.spawn(async move {
            tokio::time::sleep_until(at).await;
            Ended { index, attempt, result: driver.prefetch(&reference).await }
        });
    }

    /// A reader on the last node, with its mount.
    async fn reader(&self) -> Result<Option<(Reader, PathBuf)>> {
        if !self.cluster.scenario.reader {
            return Ok(None);
        }
        let node = self.cluster.nodes.last().context("a cluster without nodes")?;
        let mount = node.dir().join("mount");
        fs::create_dir_all(&mount)?;
        tokio::time::sleep_until(self.begin).await;
        node.driver().mount(&self.cluster.origin.reference(), &mount).await?;
        let share = When::Received(Who::Node(node.index), READ_FROM);
        let what = "the fill on the reader's node";
        until(what, self.cluster.scenario.patience(), async || Ok(self.is_due(share)?.then_some(()))).await?;
        Ok(Some((Reader::start(&self.cluster.model, mount.clone(), node.root()), mount)))
    }

    async fn until_all_ended(&mut self) -> Result<()> {
        let deadline = self.begin + self.cluster.scenario.patience();
        let mut events: Vec<Event> = self.cluster.scenario.events.iter().rev().cloned().collect();
        loop {
            while let Some(ended) = self.tasks.try_join_next() {
                let Ended { index, attempt, result } = ended?;
                if attempt == self.attempts[index] {
                    self.ended.insert(index, result);
                }
            }
            while let Some(event) = events.pop_if(|event| self.is_due(event.when).unwrap_or(false)) {
                self.act(&event.action).await?;
                self.last_event = Instant::now();
            }
            if (events.is_empty() && self.have_ended()) || Instant::now() > deadline {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether every node has ended that can.
    fn have_ended(&self) -> bool {
        let can = |index: &usize| {
            !self.killed.contains(index)
                && !self.stopped.contains(index)
                && self.cluster.scenario.disk_of(*index).is_none()
        };
        (0..self.cluster.nodes.len()).filter(can).all(|index| self.ended.contains_key(&index))
    }

    #[expect(clippy::cast_precision_loss, reason = "shares")]
    fn is_due(&self, when: When) -> Result<bool> {
        let len = self.cluster.scenario.model as f64;
        Ok(match when {
            When::Received(who, share) => {
                let passed = self.cluster.network.traffic()?.since(&self.before);
                self.find(who)?.iter().any(|&index| passed.node(index).to as f64 >= share * len)
            }
            When::Sent(times) => self.cluster.origin.served().bytes as f64 >= times * len,
            When::After(wait) => self.last_event.elapsed() >= wait,
            When::OthersEnded => self.have_ended(),
        })
    }

    /// The nodes that are meant, of those that run.
    fn find(&self, who: Who) -> Result<Vec<usize>> {
        let passed = self.cluster.network.traffic()?.since(&self.before);
        let served = self.cluster.origin.served();
        let by = |measure: &dyn Fn(usize) -> u64| {
            let up = self.cluster.nodes.iter().filter(|node| node.is_up()).map(|node| node.index);
            up.filter(|index| !self.stopped.contains(index)).max_by_key(|&index| measure(index))
        };
        Ok(match who {
            Who::Node(index) => vec![index],
            Who::Bootstrap => (0..super::node::BOOTSTRAP_NODES.min(self.cluster.nodes.len())).collect(),
            Who::First => by(&|index| passed.node(index).to).into_iter().collect(),
            Who::Busiest => by(&|index| passed.node(index).from).into_iter().collect(),
            Who::Owner => {
                let from_origin = |index| served.bytes_to.get(&address(index).into()).copied().unwrap_or(0);
                by(&from_origin).into_iter().collect()
            }
        })
    }

    async fn act(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::Kill(who) => {
                for index in self.find(*who)? {
                    self.killed.insert(index);
                    self.attempts[index] += 1;
                    self.ended.remove(&index);
                    self.disturbed.insert(index);
                    self.cluster.nodes[index].kill()?;
                }
            }
            Action::Stop(who) => {
                for index in self.find(*who)? {
                    self.stopped.insert(index);
                    self.disturbed.insert(index);
                    self.cluster.nodes[index].signal(Signal::STOP)?;
                }
            }
            Action::Continue => {
                for index in self.stopped.drain() {
                    self.cluster.nodes[index].signal(Signal::CONT)?;
                }
            }
            Action::Restart => {
                for index in std::mem::take(&mut self.killed) {
                    let Cluster { nodes, network, scratch, .. } = &mut *self.cluster;
                    nodes[index].spawn(scratch, &network.nodes[index]).await?;
                    self.prefetch(index, Instant::now());
                }
            }
            Action::Split => {
                let half: Vec<usize> = (0..self.cluster.nodes.len() / 2).collect();
                self.cluster.network.split(&half)?;
            }
            Action::Heal => self.cluster.network.heal()?,
            Action::OriginGone => self.cluster.network.refuse_at_origin(true)?,
            Action::OriginBack => self.cluster.network.refuse_at_origin(false)?,
            Action::Origin(faults) => self.cluster.origin.set(faults.clone()),
        }
        Ok(())
    }
}

/// Writes what all nodes share.
fn common(scratch: &Scratch, origin: &Origin, scenario: &Scenario) -> Result<Common> {
    let key = scratch.path().join("cluster.key");
    fs::write(&key, format!("{:032x}{:032x}\n", rand::random::<u128>(), rand::random::<u128>()))?;
    let credentials = match &scenario.faults.password {
        None => None,
        Some(password) => {
            let path = scratch.path().join("config.json");
            let auths = json!({ "auths": { origin.host(): { "auth": basic(password) } } });
            fs::write(&path, auths.to_string())?;
            Some(path)
        }
    };
    Ok(Common { origin: origin.host(), key, in_memory: fits_in_memory(scenario), credentials })
}

/// Takes from the host what the nodes will need.
fn warm_up(scenario: &Scenario) -> Result<()> {
    if !fits_in_memory(scenario) {
        return Ok(());
    }
    let nodes = scenario.nodes as u64;
    if let Some(took) = tokio::task::block_in_place(|| warm::keep(nodes * (scenario.model + NODE_MEMORY)))? {
        eprintln!("  memory warmed up, {took:.1?} per GiB");
    }
    Ok(())
}

/// Whether all stores take less than half of the memory that is free.
fn fits_in_memory(scenario: &Scenario) -> bool {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    scenario.nodes as u64 * scenario.model < kib * 1024 / 2
}

fn basic(password: &str) -> String {
    BASE64_STANDARD.encode(format!("{USER}:{password}"))
}
