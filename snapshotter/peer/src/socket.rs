//! Options of sockets that neither the standard library nor rustix wraps.

use std::os::fd::{AsFd, AsRawFd};

use tokio::net::TcpStream;

/// Wakes the reader of a connection once so many bytes have arrived, or its end (`SO_RCVLOWAT`, socket(7)). 1 is what a
/// connection begins with. More than the peer will send is waited for without end.
pub(crate) fn wake_at(stream: &TcpStream, bytes: usize) {
    set(stream, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes);
}

/// Keeps at most about so many bytes in the kernel that have not left yet (`TCP_NOTSENT_LOWAT`, tcp(7)): without it the
/// kernel takes megabytes, and what was written says little of what was sent.
pub(crate) fn hold_at_most(stream: &TcpStream, bytes: usize) {
    set(stream, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes);
}

/// Lets the peer have at most so many bytes under way from now on, apart from those it may send already
/// (`TCP_WINDOW_CLAMP`, tcp(7)).
pub(crate) fn window_at_most(stream: &TcpStream, bytes: usize) {
    set(stream, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes);
}

/// Sets an option that is an int. These options only save work, so a kernel that refuses is not complained about.
#[expect(unsafe_code, reason = "neither the standard library nor rustix wraps these")]
fn set(stream: &TcpStream, level: libc::c_int, option: libc::c_int, value: usize) {
    let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and the value is an int that outlives the call.
    let _ = unsafe {
        libc::setsockopt(stream.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), len)
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_reader_sleeps_until_there_is_enough_or_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut reader = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut writer, _) = listener.accept().await.unwrap();
        wake_at(&reader, 10);
        let mut got = [0; 100];
        writer.write_all(b"some").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), reader.readable()).await.is_err());
        writer.write_all(b" bytes").await.unwrap();
        assert_eq!(reader.read(&mut got).await.unwrap(), 10);
        writer.write_all(b"end").await.unwrap();
        drop(writer);
        assert_eq!(reader.read(&mut got).await.unwrap(), 3);
        assert_eq!(reader.read(&mut got).await.unwrap(), 0);
    }
}
