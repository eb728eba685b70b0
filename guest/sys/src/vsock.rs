//! vsock(7): the agent's listening socket where the machine has a vsock device.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The address of the host, vsock(7).
pub const VMADDR_CID_HOST: u32 = 2;

fn socket_length() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or(0)
}

/// Makes a non-blocking listening socket on `port` for every address of this guest.
pub fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_VSOCK, flags, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` is a descriptor that socket has just returned and nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: sockaddr_vm is plain integers and bytes, for which all zeros is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or(0);
    address.svm_port = port;
    address.svm_cid = libc::VMADDR_CID_ANY;
    // SAFETY: `address` is a live sockaddr_vm and the length is its size.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast::<libc::sockaddr>(),
            socket_length(),
        )
    };
    // SAFETY: listen takes no pointers.
    if bound < 0 || unsafe { libc::listen(socket.as_raw_fd(), 64) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Accepts a connection and returns it, non-blocking, with the peer's address.
pub fn accept_vsock(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, u32)> {
    // SAFETY: sockaddr_vm is plain integers and bytes, for which all zeros is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut length = socket_length();
    // SAFETY: `address` and `length` are live, and `length` is the size of `address`, so the
    // kernel writes no further.
    let raw = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            (&raw mut address).cast::<libc::sockaddr>(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` is a descriptor that accept4 has just returned and nobody else owns.
    Ok((unsafe { OwnedFd::from_raw_fd(raw) }, address.svm_cid))
}
