//! Who a thread is towards files (setfsuid(2)).

/// Runs `look` with a thread that files, and the links of `/proc/PID`, take for a user; signals and
/// everything else still see root. The helper has no CAP_SYS_PTRACE, and so sees what its owner's
/// processes execute only as the owner does (ptrace(2), "Ptrace access mode checking").
///
/// Without CAP_SETUID and CAP_SETGID nothing changes, and `look` finds closed doors.
pub fn as_file_user<T>(uid: u32, gid: u32, look: impl FnOnce() -> T) -> T {
    // Fields are dropped in this order: a user first, then the group.
    let _back = (BackTo(set_user, 0), BackTo(set_group, 0));
    set_group(gid);
    set_user(uid);
    look()
}

struct BackTo(fn(u32), u32);

impl Drop for BackTo {
    fn drop(&mut self) {
        self.0(self.1);
    }
}

fn set_user(uid: u32) {
    // SAFETY: it takes a number, changes this thread's credentials and touches no memory.
    unsafe { libc::setfsuid(uid) };
}

fn set_group(gid: u32) {
    // SAFETY: as above.
    unsafe { libc::setfsgid(gid) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Vec<String> {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let is_user = |line: &&str| line.starts_with("Uid:") || line.starts_with("Gid:");
        status.lines().filter(is_user).map(str::to_owned).collect()
    }

    #[test]
    fn it_ends_with_the_look_even_by_a_panic() {
        let before = users();
        if !before[0].ends_with("\t0") {
            return;
        }
        let during = as_file_user(4711, 4712, users);
        assert_eq!(during, ["Uid:\t0\t0\t0\t4711", "Gid:\t0\t0\t0\t4712"]);
        assert_eq!(users(), before);
        let panicked = std::panic::catch_unwind(|| as_file_user(4711, 4712, || panic!("expected")));
        assert!(panicked.is_err());
        assert_eq!(users(), before);
    }
}
