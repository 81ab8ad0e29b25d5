//! The secret that all nodes of a cluster share.

use std::fmt;
use std::io::Read;
use std::path::Path;

use libp2p::pnet::PreSharedKey;

/// The least length of a key in bytes, of text or not: 32 hex digits hold 128 bits.
const MIN_LEN: usize = 32;
/// The most bytes that are read of a key file.
const MAX_LEN: u64 = 4096;
/// Names what the key is stretched for. Another use of the same secret gives another key.
const CONTEXT: &str = "towline 2026-11 peer network, control connections";

/// Admits its holder to the peer network: who does not know it gets no answer on any control connection.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

/// Why there is no cluster key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("read the cluster key {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// What it holds is too short to be a secret.
    #[error(
        "cluster key has {len} bytes, at least {MIN_LEN} are needed (32 random bytes in hex are a good key)"
    )]
    Short {
        /// Bytes without white space around them.
        len: usize,
    },
}

impl ClusterKey {
    /// Reads a key file. White space at both ends does not count; a Kubernetes Secret often has a newline more.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read { path: path.display().to_string(), source };
        let mut bytes = Vec::new();
        std::fs::File::open(path).map_err(failed)?.take(MAX_LEN).read_to_end(&mut bytes).map_err(failed)?;
        Self::from_secret(&bytes)
    }

    /// The key of a secret, whatever its form.
    ///
    /// # Errors
    /// [`KeyError::Short`].
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        let secret = secret.trim_ascii();
        if secret.len() < MIN_LEN {
            return Err(KeyError::Short { len: secret.len() });
        }
        Ok(Self(blake3::derive_key(CONTEXT, secret)))
    }

    pub(crate) fn to_psk(&self) -> PreSharedKey {
        PreSharedKey::new(self.0)
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_does_not_count_and_short_keys_are_refused() {
        let text = "0123456789abcdef0123456789abcdef";
        let key = ClusterKey::from_secret(text.as_bytes()).unwrap();
        assert_eq!(key.0, ClusterKey::from_secret(format!(" {text}\n").as_bytes()).unwrap().0);
        assert_ne!(key.0, ClusterKey::from_secret(format!("{text}0").as_bytes()).unwrap().0);
        assert!(matches!(ClusterKey::from_secret(b" short \n"), Err(KeyError::Short { len: 5 })));
        assert!(!format!("{key:?}").contains("0123"), "nothing of the key is shown");
    }
}
