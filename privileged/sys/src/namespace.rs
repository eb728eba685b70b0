//! Namespaces of one's own (unshare(2)).

/// Gives this thread, and those that it starts, a copy of the mounts that it sees.
///
/// # Errors
/// No right to.
pub fn unshare_mounts() -> std::io::Result<()> {
    // SAFETY: it takes flags and touches no memory.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
