//! What nodes say to each other, as values, and as frames of a control stream (peer.proto).
//!
//! A frame is the length of a message, four bytes, the highest first, and the message. Everything read here comes from another
//! machine: sizes are checked before anything is kept, and a frame that breaks a rule ends its stream.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use towline_artifact::{ChainingValue, ContentId, MAX_BLOCK_HASHES, MAX_BLOCK_LEN};
use towline_modelfs::ProvenBlock;
use towline_proto::peer::v1 as api;
use towline_swarm::{Bitmap, BlockId, Have, HavePieces};

use crate::auth::RequestKey;

/// The longest message in bytes: a bitmap of the largest file (2^22 pieces) is half of it.
pub(crate) const MAX_FRAME_LEN: usize = 1 << 20;
/// The longest name of a node or a zone in bytes, that of a DNS name.
pub const MAX_NAME_LEN: usize = 253;
/// The most contents in an [`Message::Interest`]; more are told in several.
pub(crate) const MAX_INTEREST: usize = 4096;
/// The most members in a [`Message::Members`].
pub(crate) const MAX_MEMBERS: usize = 4096;
/// The most piece numbers in a list. The swarm has limits of its own below it.
const MAX_LIST: usize = 4096;
/// The most bytes of a libp2p peer id (an Ed25519 key inline needs 38).
const MAX_PEER_ID_LEN: usize = 64;

/// How a node introduces itself to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) weight: u16,
    pub(crate) control_port: u16,
    pub(crate) bulk_port: u16,
    /// Where it is reached; by default where it connects from.
    pub(crate) address: Option<IpAddr>,
    /// With which the receiver signs its requests for pieces to the sender.
    pub(crate) request_key: RequestKey,
    /// Where the sender sees the receiver.
    pub(crate) seen_address: Option<IpAddr>,
}

/// A node that a peer is connected with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: libp2p::PeerId,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// A message of a control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Hello(Hello),
    Interest {
        added: Vec<ContentId>,
        removed: Vec<ContentId>,
    },
    Have {
        content: ContentId,
        have: Have,
    },
    Unlink {
        content: ContentId,
    },
    Members(Vec<Member>),
    BlockRequest(BlockRequest),
    /// The answer to the request of that number; none if it is not served.
    Block {
        block: BlockId,
        sent: Option<ProvenBlock>,
    },
}

/// A request for a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockRequest {
    pub(crate) block: BlockId,
    pub(crate) content: ContentId,
    pub(crate) piece: u32,
    /// Within the piece; whether it is a block of it is for its table to tell.
    pub(crate) bytes: Range<u32>,
}

/// A frame that is no message of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum WireError {
    #[error("message is no protobuf of its kind")]
    Protobuf,
    #[error("{0}")]
    Rule(&'static str),
}

/// Writes a message with its length before it.
pub(crate) fn encode(message: &Message) -> Bytes {
    let frame = api::Frame { kind: Some(to_wire(message)) };
    let len = frame.encoded_len();
    assert!(len <= MAX_FRAME_LEN, "callers keep messages below the limit");
    let mut bytes = BytesMut::with_capacity(4 + len);
    bytes.put_u32(u32::try_from(len).expect("below the limit"));
    frame.encode(&mut bytes).expect("a buffer grows");
    bytes.freeze()
}

/// Reads a message, without its length.
pub(crate) fn decode(frame: &[u8]) -> Result<Message, WireError> {
    if frame.len() > MAX_FRAME_LEN {
        return Err(WireError::Rule("message is too long"));
    }
    let frame = api::Frame::decode(frame).map_err(|_| WireError::Protobuf)?;
    match frame.kind.ok_or(WireError::Rule("message of an unknown kind"))? {
        api::frame::Kind::Hello(hello) => from_hello(hello).map(Message::Hello),
        api::frame::Kind::Interest(interest) => {
            Ok(Message::Interest { added: ids(interest.added)?, removed: ids(interest.removed)? })
        }
        api::frame::Kind::Have(have) => from_have(have),
        api::frame::Kind::Unlink(unlink) => Ok(Message::Unlink { content: id(&unlink.content)? }),
        api::frame::Kind::Members(members) => from_members(members).map(Message::Members),
        api::frame::Kind::BlockRequest(request) => from_block_request(&request).map(Message::BlockRequest),
        api::frame::Kind::Block(block) => from_block(block),
    }
}

fn to_wire(message: &Message) -> api::frame::Kind {
    let bytes = |id: &ContentId| id.0.to_vec();
    match message {
        Message::Hello(hello) => api::frame::Kind::Hello(to_hello(hello)),
        Message::Interest { added, removed } => api::frame::Kind::Interest(api::Interest {
            added: added.iter().map(bytes).collect(),
            removed: removed.iter().map(bytes).collect(),
        }),
        Message::Have { content, have } => api::frame::Kind::Have(to_have(content, have)),
        Message::Unlink { content } => api::frame::Kind::Unlink(api::Unlink { content: bytes(content) }),
        Message::Members(members) => api::frame::Kind::Members(api::Members {
            members: members
                .iter()
                .map(|member| api::Member {
                    id: member.id.to_bytes(),
                    address: octets(member.address),
                    port: member.port.into(),
                })
                .collect(),
        }),
        Message::BlockRequest(request) => api::frame::Kind::BlockRequest(api::BlockRequest {
            number: request.block.0,
            content: bytes(&request.content),
            piece: request.piece,
            offset: request.bytes.start,
            len: request.bytes.end - request.bytes.start,
        }),
        Message::Block { block, sent } => api::frame::Kind::Block(api::Block {
            number: block.0,
            data: sent.as_ref().map(|sent| sent.bytes.to_vec()).unwrap_or_default(),
            hashes: sent.as_ref().map(|sent| sent.hashes.concat()).unwrap_or_default(),
        }),
    }
}

fn to_hello(hello: &Hello) -> api::Hello {
    api::Hello {
        name: hello.name.clone(),
        zone: hello.zone.clone(),
        weight: hello.weight.into(),
        control_port: hello.control_port.into(),
        bulk_port: hello.bulk_port.into(),
        address: hello.address.map(octets).unwrap_or_default(),
        request_key: hello.request_key.bytes().to_vec(),
        seen_address: hello.seen_address.map(octets).unwrap_or_default(),
    }
}

fn from_hello(hello: api::Hello) -> Result<Hello, WireError> {
    if hello.name.len() > MAX_NAME_LEN || hello.zone.len() > MAX_NAME_LEN {
        return Err(WireError::Rule("name is too long"));
    }
    let key =
        hello.request_key.try_into().map_err(|_| WireError::Rule("request key is not 32 bytes long"))?;
    Ok(Hello {
        name: hello.name,
        zone: hello.zone,
        weight: u16::try_from(hello.weight).map_err(|_| WireError::Rule("weight is too large"))?,
        control_port: port(hello.control_port)?,
        bulk_port: port(hello.bulk_port)?,
        address: optional_address(&hello.address)?,
        request_key: RequestKey::from_bytes(key),
        seen_address: optional_address(&hello.seen_address)?,
    })
}

fn to_have(content: &ContentId, have: &Have) -> api::Have {
    let pieces = match &have.pieces {
        HavePieces::All(all) => {
            let mut bits: Vec<u8> = all.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            bits.truncate(all.len().div_ceil(8) as usize);
            api::have::Pieces::All(api::Bitmap { len: all.len(), bits })
        }
        HavePieces::More(more) => api::have::Pieces::More(api::PieceList { pieces: more.to_vec() }),
    };
    api::Have {
        content: content.0.to_vec(),
        pieces: Some(pieces),
        fetching: have.fetching.to_vec(),
        awaiting: have.awaiting.to_vec(),
        queue: have.queue.into(),
        given: have.given.into(),
        known: have.known,
        origin_pause_ms: u64::try_from(have.origin_pause.as_millis()).unwrap_or(u64::MAX),
        denied: have.denied,
    }
}

fn from_have(have: api::Have) -> Result<Message, WireError> {
    let pieces = match have.pieces.ok_or(WireError::Rule("no pieces are told"))? {
        api::have::Pieces::All(all) => HavePieces::All(Arc::new(bitmap(&all)?)),
        api::have::Pieces::More(more) => HavePieces::More(list(more.pieces)?),
    };
    let content = id(&have.content)?;
    let have = Have {
        pieces,
        fetching: list(have.fetching)?,
        awaiting: list(have.awaiting)?,
        queue: u16::try_from(have.queue).unwrap_or(u16::MAX),
        given: u16::try_from(have.given).unwrap_or(u16::MAX),
        known: have.known,
        origin_pause: Duration::from_millis(have.origin_pause_ms),
        denied: have.denied,
    };
    Ok(Message::Have { content, have })
}

fn bitmap(all: &api::Bitmap) -> Result<Bitmap, WireError> {
    const WRONG: WireError = WireError::Rule("bitmap of another length than it claims");
    if all.bits.len() != all.len.div_ceil(8) as usize {
        return Err(WRONG);
    }
    let word = |part: &[u8]| {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(bytes)
    };
    Bitmap::from_words(all.len, all.bits.chunks(8).map(word).collect()).ok_or(WRONG)
}

fn list(pieces: Vec<u32>) -> Result<Arc<[u32]>, WireError> {
    if pieces.len() > MAX_LIST {
        return Err(WireError::Rule("too many pieces in a list"));
    }
    Ok(pieces.into())
}

fn from_members(members: api::Members) -> Result<Vec<Member>, WireError> {
    if members.members.len() > MAX_MEMBERS {
        return Err(WireError::Rule("too many members"));
    }
    let member = |member: api::Member| {
        if member.id.len() > MAX_PEER_ID_LEN {
            return Err(WireError::Rule("peer id is too long"));
        }
        Ok(Member {
            id: libp2p::PeerId::from_bytes(&member.id).map_err(|_| WireError::Rule("no peer id"))?,
            address: address(&member.address)?,
            port: port(member.port)?,
        })
    };
    members.members.into_iter().map(member).collect()
}

fn from_block_request(request: &api::BlockRequest) -> Result<BlockRequest, WireError> {
    if request.len == 0 || request.len > MAX_BLOCK_LEN {
        return Err(WireError::Rule("block of an impossible length"));
    }
    let end = request.offset.checked_add(request.len).ok_or(WireError::Rule("block behind any piece"))?;
    Ok(BlockRequest {
        block: BlockId(request.number),
        content: id(&request.content)?,
        piece: request.piece,
        bytes: request.offset..end,
    })
}

fn from_block(block: api::Block) -> Result<Message, WireError> {
    let (hashes, rest) = block.hashes.as_chunks::<{ size_of::<ChainingValue>() }>();
    if block.data.len() > MAX_BLOCK_LEN as usize || hashes.len() > MAX_BLOCK_HASHES || !rest.is_empty() {
        return Err(WireError::Rule("block or its proof of an impossible length"));
    }
    let sent = ProvenBlock { hashes: hashes.to_vec(), bytes: block.data.into() };
    Ok(Message::Block { block: BlockId(block.number), sent: (!sent.bytes.is_empty()).then_some(sent) })
}

fn ids(ids: Vec<Vec<u8>>) -> Result<Vec<ContentId>, WireError> {
    if ids.len() > MAX_INTEREST {
        return Err(WireError::Rule("too many contents"));
    }
    ids.iter().map(|bytes| id(bytes)).collect()
}

fn id(bytes: &[u8]) -> Result<ContentId, WireError> {
    bytes.try_into().map(ContentId).map_err(|_| WireError::Rule("content id is not 32 bytes long"))
}

fn port(port: u32) -> Result<u16, WireError> {
    u16::try_from(port).ok().filter(|&port| port != 0).ok_or(WireError::Rule("no port"))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn optional_address(bytes: &[u8]) -> Result<Option<IpAddr>, WireError> {
    if bytes.is_empty() { Ok(None) } else { address(bytes).map(Some) }
}

fn address(bytes: &[u8]) -> Result<IpAddr, WireError> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| WireError::Rule("no IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn have() -> impl Strategy<Value = Have> {
        let pieces = prop_oneof![
            (0..300u32, any::<u64>()).prop_map(|(len, seed)| {
                let mut all = Bitmap::new(len);
                (0..len).filter(|n| seed.rotate_left(*n) & 1 == 1).for_each(|n| assert!(all.set(n)));
                HavePieces::All(Arc::new(all))
            }),
            prop::collection::vec(any::<u32>(), 0..50).prop_map(|more| HavePieces::More(more.into())),
        ];
        let hints = (
            prop::collection::vec(any::<u32>(), 0..9),
            prop::collection::vec(any::<u32>(), 0..9),
            any::<(u16, u16)>(),
            any::<u32>(),
            any::<u32>(),
            any::<bool>(),
        );
        (pieces, hints).prop_map(|(pieces, (fetching, awaiting, (queue, given), known, pause, denied))| {
            Have {
                pieces,
                fetching: fetching.into(),
                awaiting: awaiting.into(),
                queue,
                given,
                known,
                origin_pause: Duration::from_millis(pause.into()),
                denied,
            }
        })
    }

    fn message() -> impl Strategy<Value = Message> {
        let content = || any::<[u8; 32]>().prop_map(ContentId);
        let ids = || prop::collection::vec(content(), 0..20);
        let address = || {
            any::<[u8; 4]>()
                .prop_map(IpAddr::from)
                .boxed()
                .prop_union(any::<[u8; 16]>().prop_map(IpAddr::from).boxed())
        };
        let hello = (
            ".{0,40}",
            ".{0,40}",
            any::<u16>(),
            1..=u16::MAX,
            prop::option::of(address()),
            any::<[u8; 32]>(),
        );
        let hello = hello.prop_map(|(name, zone, weight, port, address, key)| {
            Message::Hello(Hello {
                name,
                zone,
                weight,
                control_port: port,
                bulk_port: port,
                address,
                request_key: RequestKey::from_bytes(key),
                seen_address: address,
            })
        });
        let member = (address(), 1..=u16::MAX).prop_map(|(address, port)| Member {
            id: libp2p::PeerId::random(),
            address,
            port,
        });
        let block_request = (any::<u64>(), content(), any::<u32>(), any::<u32>(), 1..=MAX_BLOCK_LEN)
            .prop_map(|(number, content, piece, start, len)| {
                let start = start.min(u32::MAX - len);
                let (block, bytes) = (BlockId(number), start..start + len);
                Message::BlockRequest(BlockRequest { block, content, piece, bytes })
            });
        let sent = (
            prop::collection::vec(any::<u8>(), 1..3000),
            prop::collection::vec(any::<[u8; 32]>(), 0..=MAX_BLOCK_HASHES),
        );
        let sent = sent.prop_map(|(bytes, hashes)| ProvenBlock { bytes: bytes.into(), hashes });
        let block = (any::<u64>(), prop::option::of(sent))
            .prop_map(|(number, sent)| Message::Block { block: BlockId(number), sent });
        prop_oneof![
            hello,
            (ids(), ids()).prop_map(|(added, removed)| Message::Interest { added, removed }),
            (content(), have()).prop_map(|(content, have)| Message::Have { content, have }),
            content().prop_map(|content| Message::Unlink { content }),
            prop::collection::vec(member, 0..5).prop_map(Message::Members),
            block_request,
            block,
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in message()) {
            let bytes = encode(&message);
            let len = u32::from_be_bytes(bytes[..4].try_into().unwrap());
            prop_assert_eq!(len as usize, bytes.len() - 4);
            prop_assert_eq!(decode(&bytes[4..]).unwrap(), message);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let wire = |kind| api::Frame { kind: Some(kind) }.encode_to_vec();
        let have = |pieces| {
            wire(api::frame::Kind::Have(api::Have {
                content: vec![1; 32],
                pieces: Some(pieces),
                ..Default::default()
            }))
        };
        let block_request = |offset, len| {
            let content = vec![1; 32];
            wire(api::frame::Kind::BlockRequest(api::BlockRequest {
                content,
                offset,
                len,
                ..Default::default()
            }))
        };
        let block = |data, hashes| {
            let (data, hashes) = (vec![0; data], vec![0; hashes]);
            wire(api::frame::Kind::Block(api::Block { number: 1, data, hashes }))
        };
        assert!(decode(&block_request(4096, MAX_BLOCK_LEN)).is_ok());
        assert!(decode(&block(MAX_BLOCK_LEN as usize, 32 * MAX_BLOCK_HASHES)).is_ok());
        let all = |len, bits| have(api::have::Pieces::All(api::Bitmap { len, bits }));
        assert!(decode(&all(9, vec![0xff, 1])).is_ok());
        for wrong in [
            all(9, vec![0xff, 2]),
            all(9, vec![0xff]),
            all(u32::MAX, vec![0; 100]),
            have(api::have::Pieces::More(api::PieceList { pieces: vec![1; MAX_LIST + 1] })),
            wire(api::frame::Kind::Unlink(api::Unlink { content: vec![1; 31] })),
            wire(api::frame::Kind::Interest(api::Interest {
                added: vec![vec![0; 32]; MAX_INTEREST + 1],
                removed: vec![],
            })),
            wire(api::frame::Kind::Hello(api::Hello { control_port: 1, bulk_port: 1, ..Default::default() })),
            block_request(0, 0),
            block_request(0, MAX_BLOCK_LEN + 1),
            block_request(u32::MAX - 1, 2),
            block(MAX_BLOCK_LEN as usize + 1, 0),
            block(1, 31),
            block(1, 32 * (MAX_BLOCK_HASHES + 1)),
            Vec::new(),
        ] {
            assert!(decode(&wrong).is_err());
        }
    }
}
