//! Sockets of the peer network.
