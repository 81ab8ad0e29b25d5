//! Every bound of the swarm, with its unit and its reason.

use std::time::Duration;

/// How a node gets pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// From whoever has them.
    #[default]
    Swarm,
    /// From their owners alone, as a cache cluster does: what measurements compare the swarm with. No links.
    OwnerOnly,
}

/// Bounds and times of a node's swarm. The defaults are what `docs/swarm.md` was measured with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Not a bound: for comparisons.
    pub strategy: Strategy,
    /// Contents a node takes part in at once. 4096 is some twenty models of 200 files.
    pub contents: usize,
    /// Participants known per content. Beyond it newcomers are not counted among the owners: 24 bytes each.
    pub participants: usize,
    /// Links a node seeks per content; the offers of others come on top.
    pub links_sought: usize,
    /// The most links per content; offers beyond are turned down. 40 bitmaps of a 16 GiB file are 20 KiB.
    pub links: usize,
    /// Of the links sought, how many lead to other zones. They carry what zone owners fetch and heal split graphs.
    pub far_links: usize,
    /// Time after which the least useful of enough links gives way to another.
    pub link_time: Duration,
    /// Pieces asked of peers at once, at least and at most; between the two, so many that an answer takes
    /// `request_time`. Less leaves the link idle while news travels, more binds pieces to peers too early. 128 of 2 MiB
    /// in half a second are 4 Gb/s; faster links answer faster.
    pub requests: (usize, usize),
    /// See `requests`.
    pub request_time: Duration,
    /// Requests beyond these for what readers wait for.
    pub requests_for_demand: usize,
    /// Pieces asked of one peer at once: one that it sends and one that waits, so that its uplink never pauses.
    pub requests_per_peer: usize,
    /// Requests for blocks under way. A reader waits for two, so that is many readers of as many pieces.
    pub blocks: usize,
    /// Blocks that are asked for of one piece; who wants more of it is better served by all of it.
    pub blocks_per_piece: u32,
    /// A block of so many bytes is asked of two holders at once: the later answer costs less than waiting for the wrong one.
    pub short_block: u32,
    /// Copies of one piece under way at once, the first included.
    pub copies: usize,
    /// Requests to the origin under way at once, while few take part; where many do, one.
    pub origin_requests: usize,
    /// The most of them with those that wait for the first byte of an answer: an origin that begins after 100 ms would otherwise
    /// do nothing most of the time.
    pub origin_pipeline: usize,
    /// The most pieces of an owner group: 4 MiB. One owner has to pass on all of it, so with 8 MiB 250 nodes of an origin that is
    /// eight times as fast as a link end at 1.70 of the bound, not at 1.33 (simulated).
    pub origin_group: u32,
    /// The most pieces of one request to the origin: 8 MiB, so that a round trip or a redirect per request does not weigh much for who
    /// is alone. With 16 MiB the last pieces of a run wait for the first, and the swarm with them.
    pub origin_run: u32,
    /// Pieces that the cluster (of one zone) may have under way at the origin before it knows the origin's rate.
    /// Between these two, a sixteenth of the participants.
    pub window_first: (u32, u32),
    /// The same later: what arrived in this time, so that a piece waits about this long. Twice that where nodes do not all
    /// link with each other.
    pub window_time: Duration,
    /// The most of it, in pieces: 8 GiB/s at a window of one second.
    pub window_max: u32,
    /// Uploads at once; those whose receiver is slow do not count.
    pub uploads: usize,
    /// Uploads at once, the slow ones included.
    pub uploads_max: usize,
    /// Requests of peers that wait for an upload; beyond it they are refused as busy.
    pub upload_queue: usize,
    /// Of these, the most from one peer; a peer that floods harms only itself.
    pub upload_queue_per_peer: usize,
    /// Bytes a second that may be sent to peers, on average: the pods' share of the link is what is above it.
    pub upload_rate: Option<u64>,
    /// Asks to this node as an owner that wait for a piece to arrive.
    pub parked_asks: usize,
    /// The least time between two messages about what is here. With 100 ms, news of a piece takes as long as the piece on
    /// a link of 400 Mb/s.
    pub have_gap: Duration,
    /// The longest list of new pieces in one message; more is sent as a bitmap.
    pub have_list: usize,
    /// Pieces under way at a source that a message names.
    pub fetching_list: usize,
    /// Time a new participant listens before it may go to the origin for what no reader waits for, at least and at
    /// most (it ends early once its links are up).
    pub settle: (Duration, Duration),
    /// The least time without an answer after which a request to a peer is given up.
    pub request_timeout: Duration,
    /// The most of it.
    pub request_timeout_max: Duration,
    /// The least time after which a reader's piece is asked of a second peer.
    pub hedge: Duration,
    /// The least time that a silent owner has before the next in line asks and then goes itself. Grows with the load.
    pub takeover: Duration,
    /// Origin requests a node may make out of turn, a second, with a burst of as many.
    pub lease_rate: f64,
    /// First pause after a failure of the origin; doubles with each in a row.
    pub origin_pause: Duration,
    /// The longest pause.
    pub origin_pause_max: Duration,
    /// The longest pause that a peer's word can cause, at most once in `origin_pause_max` per peer: a liar among the
    /// links may delay the origin a little, not stop it.
    pub origin_hint_max: Duration,
    /// First ban of a peer that sent wrong bytes; doubles with each.
    pub ban: Duration,
    /// The longest ban.
    pub ban_max: Duration,
    /// The longest rest of a peer that failed or stalled.
    pub rest_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            strategy: Strategy::Swarm,
            contents: 4096,
            participants: 16_384,
            links_sought: 24,
            links: 40,
            far_links: 3,
            link_time: Duration::from_secs(2),
            requests: (8, 128),
            request_time: Duration::from_millis(500),
            requests_for_demand: 4,
            requests_per_peer: 2,
            blocks: 64,
            blocks_per_piece: 4,
            short_block: 16 << 10,
            copies: 2,
            origin_requests: 2,
            origin_pipeline: 8,
            origin_group: 2,
            origin_run: 4,
            window_first: (8, 64),
            window_time: Duration::from_millis(600),
            window_max: 4096,
            uploads: 3,
            uploads_max: 24,
            upload_queue: 256,
            upload_queue_per_peer: 32,
            upload_rate: None,
            parked_asks: 256,
            have_gap: Duration::from_millis(50),
            have_list: 1024,
            fetching_list: 32,
            settle: (Duration::from_millis(50), Duration::from_millis(500)),
            request_timeout: Duration::from_millis(2500),
            request_timeout_max: Duration::from_secs(60),
            hedge: Duration::from_millis(200),
            takeover: Duration::from_secs(2),
            lease_rate: 1.0,
            origin_pause: Duration::from_millis(500),
            origin_pause_max: Duration::from_secs(60),
            origin_hint_max: Duration::from_secs(5),
            ban: Duration::from_secs(60),
            ban_max: Duration::from_secs(86_400),
            rest_max: Duration::from_secs(30),
        }
    }
}
