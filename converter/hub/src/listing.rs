//! What a repository holds at one commit, and the proof that received bytes are what it lists.

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::error::HubError;
use crate::paths::check_paths;
use crate::source_ref::{HubKind, RepoKind};

/// Every file of a repository at one commit. Two listings are equal exactly when the hub said the same about both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Where the repository lies.
    pub hub: HubKind,
    /// Model or data set.
    pub kind: RepoKind,
    /// `org/name`; for a directory its path as written.
    pub repo: String,
    /// The revision as asked, or the hub's default branch; empty for a directory.
    pub revision: String,
    /// The commit: 40 lower-case hex digits; for a directory `sha256:` and 64 hex digits over its content.
    pub commit: String,
    /// Date in the commit's own record, RFC 3339 in UTC with whole seconds; `None` where the hub has no such record.
    pub created: Option<String>,
    /// Licence in the model card of that commit, at most 128 printable characters.
    pub licence: Option<String>,
    /// Web page of the repository at that commit; empty for a directory.
    pub url: String,
    /// The files, sorted bytewise by path, never empty, all paths sound (docs/format.md, "Paths").
    pub files: Vec<RemoteFile>,
}

impl Listing {
    /// Sorts and checks the files; the only way a listing comes to be.
    pub(crate) fn check(mut self) -> Result<Self, HubError> {
        check_paths(self.files.iter().map(|file| file.path.as_str()))?;
        self.files.sort_unstable_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        if self.files.is_empty() {
            return Err(HubError::Empty { repo: self.repo, commit: self.commit });
        }
        Ok(self)
    }
}

/// One file of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path relative to the repository, `/` between components.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// Whether the hub says that the file may be run; Hugging Face never says so.
    pub executable: bool,
    /// What the hub says the bytes hash to.
    pub hash: FileHash,
}

/// What a hub says a file's bytes hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileHash {
    /// SHA-256 of the bytes (LFS objects, ModelScope, directories).
    Sha256([u8; 32]),
    /// Git's name of the blob: SHA-1 of `blob LEN\0` and the bytes (small files on Hugging Face).
    GitBlobSha1([u8; 20]),
}

/// Checks one file's bytes, as they stream by, against its listed length and hash.
#[derive(Clone, Debug)]
pub struct HashCheck {
    path: String,
    size: u64,
    hash: FileHash,
    seen: u64,
    sha256: Sha256,
    git: Option<Sha1>,
}

impl HashCheck {
    /// A check that has seen no bytes of `file`.
    #[must_use]
    pub fn new(file: &RemoteFile) -> Self {
        let git = matches!(file.hash, FileHash::GitBlobSha1(_)).then(|| {
            let mut hasher = Sha1::new();
            hasher.update(format!("blob {}\0", file.size));
            hasher
        });
        Self {
            path: file.path.clone(),
            size: file.size,
            hash: file.hash,
            seen: 0,
            sha256: Sha256::new(),
            git,
        }
    }

    /// Takes the next bytes of the file, in any portions.
    pub fn update(&mut self, bytes: &[u8]) {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        self.sha256.update(bytes);
        if let Some(git) = &mut self.git {
            git.update(bytes);
        }
    }

    /// SHA-256 of the bytes, if they are the listed ones.
    ///
    /// # Errors
    /// [`HubError::WrongLength`] or [`HubError::WrongHash`].
    pub fn finish(self) -> Result<[u8; 32], HubError> {
        if self.seen != self.size {
            return Err(HubError::WrongLength { path: self.path, expected: self.size, found: self.seen });
        }
        let sha256: [u8; 32] = self.sha256.finalize().into();
        let (expected, found) = match (self.hash, self.git) {
            (FileHash::GitBlobSha1(expected), Some(git)) => {
                (hex::encode(expected), hex::encode(git.finalize()))
            }
            (FileHash::Sha256(expected), _) => (hex::encode(expected), hex::encode(sha256)),
            (FileHash::GitBlobSha1(_), None) => unreachable!("`new` makes the hasher for this kind of hash"),
        };
        if expected != found {
            return Err(HubError::WrongHash { path: self.path, expected, found });
        }
        Ok(sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO_SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    fn hello(hash: FileHash) -> RemoteFile {
        RemoteFile { path: "hello".into(), size: 6, executable: false, hash }
    }

    fn sha256() -> FileHash {
        FileHash::Sha256(hex::decode(HELLO_SHA256).expect("hex").try_into().expect("32 bytes"))
    }

    /// As `git hash-object` prints it for "hello\n".
    fn git() -> FileHash {
        let id = hex::decode("ce013625030ba8dba906f756967f9e9ca394464a").expect("hex");
        FileHash::GitBlobSha1(id.try_into().expect("20 bytes"))
    }

    #[track_caller]
    fn run(file: &RemoteFile, portions: &[&[u8]]) -> Result<String, HubError> {
        let mut check = HashCheck::new(file);
        portions.iter().for_each(|portion| check.update(portion));
        check.finish().map(hex::encode)
    }

    #[test]
    fn right_bytes_pass_and_give_their_sha256() {
        for hash in [sha256(), git()] {
            assert_eq!(run(&hello(hash), &[b"hel", b"", b"lo\n"]).expect("right bytes"), HELLO_SHA256);
        }
    }

    #[test]
    fn wrong_bytes_fail() {
        for hash in [sha256(), git()] {
            assert!(matches!(run(&hello(hash), &[b"hellO\n"]), Err(HubError::WrongHash { .. })));
            for short in [&b"hello"[..], b"hello\n\n", b""] {
                assert!(matches!(
                    run(&hello(hash), &[short]),
                    Err(HubError::WrongLength { expected: 6, .. })
                ));
            }
        }
    }
}
