//! Idmapped mounts of the tree, as the volumes of pods with a user namespace are.

mod common;

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Mounted, TestTree, bytes, wait_for};
use rustix::mount::{UnmountFlags, unmount};

/// First uid of the user namespace, as seen from outside.
const FIRST_ID: u32 = 100_000;

/// A process that does nothing in a user namespace of its own.
struct UserNamespace(Child);

impl UserNamespace {
    fn start() -> io::Result<Self> {
        let own = fs::read_link("/proc/self/ns/user")?;
        let child = Command::new("unshare").args(["--user", "sleep", "60"]).stdout(Stdio::null()).spawn()?;
        let namespace = Self(child);
        wait_for("the namespace", || {
            fs::read_link(namespace.proc("ns/user")).is_ok_and(|other| other != own)
        });
        for map in ["uid_map", "gid_map"] {
            fs::write(namespace.proc(map), format!("0 {FIRST_ID} 65536"))?;
        }
        Ok(namespace)
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Binds `from` to `to` with ids mapped by `namespace` (`mount_setattr(2)`, which rustix lacks).
#[allow(unsafe_code, reason = "no safe binding of these calls")]
fn bind_idmapped(from: &Path, to: &Path, namespace: &File) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let (from, to, empty) = (path(from), path(to), c"");
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: the path is a C string that outlives the call.
    let clone = check(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, from.as_ptr(), 1 /* CLONE */)
    })?;
    // SAFETY: the call just gave us this descriptor, and nobody else has it.
    let clone = unsafe { OwnedFd::from_raw_fd(clone as i32) };
    // struct mount_attr: attr_set (MOUNT_ATTR_IDMAP), attr_clr, propagation, userns_fd.
    let attr: [u64; 4] = [0x0010_0000, 0, 0, namespace.as_raw_fd() as u64];
    // SAFETY: the attributes are 32 readable bytes, as the size says, and the path is a C string.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            clone.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    })?;
    // SAFETY: both paths are C strings that outlive the call; 4 is MOVE_MOUNT_F_EMPTY_PATH.
    check(unsafe {
        libc::syscall(libc::SYS_move_mount, clone.as_raw_fd(), empty.as_ptr(), libc::AT_FDCWD, to.as_ptr(), 4)
    })?;
    Ok(())
}

fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

#[test]
fn an_idmapped_volume_shows_the_owner_of_the_pod_and_reads_right() {
    let tree = TestTree::new();
    let sealed = tree.add("model/sealed", bytes(1 << 20, 1));
    tree.add("model/weights", bytes(1 << 20, 2));
    let Some(mounted) = Mounted::start(tree) else { return };
    mounted.seal(sealed);
    let namespace = match UserNamespace::start() {
        Ok(namespace) => namespace,
        Err(error) => return eprintln!("skipped: no user namespace: {error}"),
    };
    let volume = mounted.beside("volume");
    fs::create_dir(&volume).unwrap();
    let namespace = File::open(namespace.proc("ns/user")).unwrap();
    match bind_idmapped(&mounted.path("model"), &volume, &namespace) {
        Ok(()) => {}
        Err(error) if !kernel_is_at_least(6, 12) => {
            return eprintln!("skipped: idmapped FUSE mounts need Linux 6.12: {error}");
        }
        Err(error) => panic!("the kernel has idmapped FUSE mounts, but: {error}"),
    }
    let owner = fs::metadata(volume.join("weights")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (FIRST_ID, FIRST_ID));
    assert!(fs::read(volume.join("weights")).unwrap() == bytes(1 << 20, 2));
    assert!(fs::read(volume.join("sealed")).unwrap() == bytes(1 << 20, 1));
    unmount(&volume, UnmountFlags::empty()).unwrap();
}
