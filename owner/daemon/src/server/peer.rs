//! Who is at the other end of a connection.

use tokio::net::UnixStream;

/// The process that connected, by SO_PEERCRED (unix(7)): as of its connect, so a descriptor it
/// passes on later changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user id.
    pub uid: u32,
    /// Its process id, where it is in a namespace we can see.
    pub pid: Option<i32>,
}

impl Peer {
    /// Asks the kernel.
    pub fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self { uid: credentials.uid(), pid: credentials.pid() })
    }

    /// Returns whether the peer may use a daemon of user `own_uid`: that user, or root.
    pub const fn may_use(self, own_uid: u32) -> bool {
        self.uid == own_uid || self.uid == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_root_may() {
        let peer = |uid| Peer { uid, pid: None };
        assert!(peer(1000).may_use(1000));
        assert!(peer(0).may_use(1000));
        assert!(!peer(1001).may_use(1000));
        assert!(!peer(u32::MAX).may_use(1000));
    }
}
