//! Pieces on disk: verified in, sealed when whole, recovered after a crash, evicted when space is short.
