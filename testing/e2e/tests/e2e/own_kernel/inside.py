"""What a kernel must do, asked of it from inside: `python3 inside.py CHECK...`.

It runs as root in a guest of the default image. `/opt/tools` has programs that
the image lacks. Each check raises where the kernel falls short.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
TOOLS = "/opt/tools"


def run(*words, **options):
    done = subprocess.run(words, text=True, capture_output=True, **options)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def tool(*words, **options):
    return run("chroot", TOOLS, *words, **options)


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def read(path):
    with open(path) as file:
        return file.read()


def in_child(work):
    """What `work` returns in a process of its own, as an exit code."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        except BaseException as problem:
            print(f"in a child: {problem!r}", file=sys.stderr, flush=True)
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def refused(work):
    """The error number with which the kernel refuses `work`, or 0."""
    try:
        work()
    except OSError as error:
        return error.errno
    return 0


# --- What the kernel is -----------------------------------------------------


def no_modules():
    assert not os.path.exists("/proc/modules"), "the kernel can load modules"


def serial_console():
    assert read("/proc/consoles").startswith("ttyS0 "), read("/proc/consoles")


# --- File systems -----------------------------------------------------------


@contextlib.contextmanager
def mounted(where, *words):
    os.makedirs(where, exist_ok=True)
    run("mount", *words, where)
    try:
        yield where
    finally:
        run("umount", where)


def image(name):
    """A file for a file system; its path for the tools and its path here."""
    with open(f"{TOOLS}/disks/{name}", "wb") as file:
        file.truncate(400 << 20)
    return f"/disks/{name}", f"{TOOLS}/disks/{name}"


def disk_file_systems():
    os.makedirs(f"{TOOLS}/disks", exist_ok=True)
    for kind, maker in (("ext4", ["mke2fs", "-q", "-t", "ext4"]), ("xfs", ["mkfs.xfs", "-q"]),
                        ("btrfs", ["mkfs.btrfs", "-q"])):
        inner, outer = image(kind)
        tool(*maker, inner)
        # The kind is named, so nothing else can have mounted it.
        with mounted("/mnt/disk", "-t", kind, "-o", "loop", outer):
            write("/mnt/disk/file", kind * 100_000)
            os.setxattr("/mnt/disk/file", "user.kind", kind.encode())
        with mounted("/mnt/disk", "-t", kind, "-o", "loop", outer):
            assert read("/mnt/disk/file") == kind * 100_000, kind
            assert os.getxattr("/mnt/disk/file", "user.kind") == kind.encode(), kind
        os.unlink(outer)


def squashfs():
    os.makedirs(f"{TOOLS}/disks/tree", exist_ok=True)
    write(f"{TOOLS}/disks/tree/file", "squashed " * 100_000)
    for method in ("gzip", "xz", "zstd", "lz4", "lzo"):
        tool("mksquashfs", "/disks/tree", f"/disks/{method}", "-quiet", "-no-progress",
             "-noappend", "-comp", method)
        with mounted("/mnt/disk", "-t", "squashfs", "-o", "loop", f"{TOOLS}/disks/{method}"):
            assert read("/mnt/disk/file") == "squashed " * 100_000, method


def overlay():
    squashfs()
    inner, outer = image("upper")
    tool("mkfs.xfs", "-q", inner)
    with mounted("/mnt/lower", "-t", "squashfs", "-o", "loop", f"{TOOLS}/disks/zstd"), \
            mounted("/mnt/upper", "-t", "xfs", "-o", "loop", outer):
        for name in ("upper", "work"):
            os.mkdir(f"/mnt/upper/{name}")
        layers = "lowerdir=/mnt/lower,upperdir=/mnt/upper/upper,workdir=/mnt/upper/work"
        with mounted("/mnt/both", "-t", "overlay", "-o", layers, "overlay"):
            write("/mnt/both/new", "new")
            os.unlink("/mnt/both/file")
            assert os.listdir("/mnt/both") == ["new"]
        # A deletion is a device node 0:0 in the upper layer.
        assert os.stat("/mnt/upper/upper/file").st_rdev == 0
        assert os.path.getsize("/mnt/lower/file") == 900_000


# --- Packet filters ---------------------------------------------------------


def connects(port):
    with socket.socket() as client:
        client.settimeout(20)
        return client.connect_ex(("127.0.0.1", port)) == 0


def listener(port):
    server = socket.socket()
    server.bind(("127.0.0.1", port))
    server.listen()
    return server


EVERY_FAMILY = """
table inet banger {
    set ports { type inet_service; flags interval; elements = { 7000-7010, 8000 }; }
    map verdicts { type ipv4_addr : verdict; elements = { 192.0.2.1 : drop }; }
    flowtable fast { hook ingress priority 0; devices = { lo }; }
    chain input {
        type filter hook input priority 0; policy accept;
        ct state established,related counter accept
        ct state invalid drop
        ip saddr vmap @verdicts
        tcp dport 9999 limit rate 5/second log prefix "banger " counter
        tcp dport 9998 quota over 1 mbytes drop
        fib saddr type local counter
        socket transparent 1 counter
        meta mark set numgen inc mod 2
        tcp dport @ports reject with tcp reset
    }
    chain forward {
        type filter hook forward priority 0;
        ct state established flow add @fast
        queue num 1 bypass
    }
}
table ip banger_nat {
    chain out { type nat hook postrouting priority 100; ip saddr 10.0.0.0/8 masquerade; }
    chain in { type nat hook prerouting priority -100; tcp dport 80 dnat to 10.1.2.3:8080; }
    chain own { type nat hook output priority -100; tcp dport 7500 redirect to :7600; }
    chain proxy { type filter hook prerouting priority -150; tcp dport 81 tproxy to :8081; }
}
table ip6 banger_nat {
    chain out { type nat hook postrouting priority 100; masquerade; }
}
table arp banger {
    chain input { type filter hook input priority 0; arp operation request counter; }
}
table bridge banger {
    chain input { type filter hook input priority 0; ether type ip reject; }
}
table netdev banger {
    chain first { type filter hook ingress device lo priority 0; ip saddr 192.0.2.2 drop; }
}
"""


def nf_tables():
    with listener(7001), listener(7600):
        assert connects(7001) and not connects(7500)
        tool("nft", "-f", "-", input=EVERY_FAMILY)
        assert not connects(7001), "a rule with a set rejects"
        assert connects(7500), "a redirection"
        for family in ("inet", "ip", "ip6", "arp", "bridge", "netdev"):
            assert f"table {family} banger" in tool("nft", "list", "tables"), family
        tool("nft", "flush", "ruleset")
        assert connects(7001)


# Docker's rules, and matches and targets of other programs.
IPTABLES = """
-t nat -N DOCKER
-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-t nat -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m physdev --physdev-is-bridged -j ACCEPT
-A INPUT -m ipvs --ipvs -j ACCEPT
-A INPUT -p tcp -m multiport --dports 81,82 -m comment --comment words -j DROP
-A INPUT -p tcp --dport 83 -m mark ! --mark 1 -m limit --limit 5/sec -j REJECT --reject-with tcp-reset
-A INPUT -m recent --name seen --rcheck -m owner --uid-owner 9 -m statistic --mode random --probability 0.1 -j LOG
-A INPUT -m string --algo bm --string x -m u32 --u32 0=1 -m length --length 9 -j NFLOG
-t raw -A PREROUTING -p udp --dport 99 -j CT --notrack
-t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-t mangle -A PREROUTING -p tcp --dport 84 -j TPROXY --on-port 85
-t mangle -A OUTPUT -m cgroup --path system.slice -j MARK --set-mark 7
"""


def iptables(program, six, port):
    with listener(7001):
        assert not connects(port)
        rules = IPTABLES + f"-t nat -A OUTPUT -p tcp --dport {port} -j REDIRECT --to-ports 7001\n"
        for rule in filter(None, rules.splitlines()):
            # An owner is known on the way out only.
            rule = rule.replace("INPUT", "OUTPUT") if "owner" in rule else rule
            tool(program, *rule.split())
        assert connects(port), f"{program}: a redirection"
        saved = tool(f"{program}-save")
        assert "-j MASQUERADE" in saved and "-m ipvs" in saved, saved
        tool(six, "-t", "nat", "-A", "POSTROUTING", "-s", "fd00::/64", "-j", "MASQUERADE")
        tool(six, "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", "99", "-j", "CT",
             "--notrack")
        tool(six, "-t", "mangle", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW")
        tool(six, "-A", "FORWARD", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "REJECT")


def iptables_nft():
    iptables("iptables-nft", "ip6tables-nft", 7002)
    assert "xt" in tool("nft", "list", "ruleset"), "some rules are of NFT_COMPAT"
    tool("nft", "flush", "ruleset")


def iptables_legacy():
    iptables("iptables-legacy", "ip6tables-legacy", 7003)


# --- Networks ---------------------------------------------------------------


def tun():
    with open("/dev/net/tun", "r+b", buffering=0) as device:
        # TUNSETIFF; IFF_TUN | IFF_NO_PI.
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"tun9", 0x1001))
        run("ip", "address", "add", "10.99.0.1/24", "dev", "tun9")
        run("ip", "link", "set", "tun9", "up")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"through the tunnel", ("10.99.0.2", 9))
        while not device.read(2048).endswith(b"through the tunnel"):
            pass


ECHO = """
import socket
server = socket.socket()
server.bind(("10.98.0.2", 7))
server.listen()
print("listening", flush=True)
with server.accept()[0] as peer:
    peer.sendall(peer.recv(100))
"""
ASK = """
import socket
with socket.create_connection(("10.98.0.2", 7), 60) as client:
    client.sendall(b"over veth and bridge")
    print(client.recv(100).decode())
"""


def veth_and_bridge():
    run("ip", "link", "add", "br9", "type", "bridge")
    run("ip", "link", "set", "br9", "up")
    for number in ("1", "2"):
        space, near, far = f"n{number}", f"near{number}", f"far{number}"
        run("ip", "netns", "add", space)
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        run("ip", "link", "set", near, "master", "br9", "up")
        run("ip", "-n", space, "address", "add", f"10.98.0.{number}/24", "dev", far)
        run("ip", "-n", space, "link", "set", far, "up")
    server = subprocess.Popen(["ip", "netns", "exec", "n2", "python3", "-c", ECHO],
                              stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "listening\n"
    answer = run("ip", "netns", "exec", "n1", "python3", "-c", ASK)
    assert answer == "over veth and bridge\n", answer
    assert server.wait() == 0


def vsock():
    assert os.path.exists("/dev/vsock")
    any_one, this_one = 0xFFFFFFFF, 1
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as server:
        server.bind((any_one, 1234))
        server.listen()
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
            client.connect((this_one, 1234))
            client.sendall(b"to myself")
            peer, _ = server.accept()
            with peer:
                assert peer.recv(100) == b"to myself"


# --- Walls ------------------------------------------------------------------


def namespaces():
    kinds = ("mnt", "uts", "ipc", "net", "pid_for_children", "user", "cgroup", "time_for_children")
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    script = "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)
    script += "; id -u; hostname inside; hostname; echo $$; ls /sys/class/net 2>/dev/null | wc -l"
    words = "--mount --uts --ipc --net --pid --fork --mount-proc --user --map-root-user --cgroup --time"
    lines = run("unshare", *words.split(), "sh", "-c", script).splitlines()
    assert len(lines) == len(kinds) + 4, lines
    for kind, seen in zip(kinds, lines):
        assert seen != own[kind] and "[" in seen, (kind, seen)
    assert lines[len(kinds):len(kinds) + 3] == ["0", "inside", "1"], lines
    assert socket.gethostname() != "inside"


def control_groups():
    root = "/sys/fs/cgroup"
    assert os.path.exists(f"{root}/cgroup.controllers"), "one tree of version 2"
    wanted = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "misc")
    have = read(f"{root}/cgroup.controllers").split()
    assert set(wanted) <= set(have), have
    write(f"{root}/cgroup.subtree_control", " ".join(f"+{name}" for name in wanted))
    group = f"{root}/banger-check"
    os.mkdir(group)

    def joined(work):
        def inside():
            write(f"{group}/cgroup.procs", str(os.getpid()))
            return work()
        return in_child(inside)

    try:
        write(f"{group}/pids.max", "1")
        assert joined(lambda: refused(os.fork)) == errno.EAGAIN
        write(f"{group}/pids.max", "max")
        write(f"{group}/memory.max", str(16 << 20))
        write(f"{group}/memory.swap.max", "0")
        assert joined(lambda: len(bytearray(b"x") * (64 << 20))) == -9, "killed for its memory"
        assert "oom_kill 1" in read(f"{group}/memory.events")
        write(f"{group}/memory.max", "max")
        write(f"{group}/cpu.max", "10000 100000")

        def busy():
            while "nr_throttled 0\n" in read(f"{group}/cpu.stat"):
                pass
            return 0

        assert joined(busy) == 0
        write(f"{group}/cpu.max", "max")
        write(f"{group}/cpuset.cpus", "0")
        assert joined(lambda: 0 if os.sched_getaffinity(0) == {0} else 1) == 0
        write(f"{group}/io.weight", "50")
        assert joined(lambda: denied_devices(group)) == errno.EPERM
        with open("/dev/null"):
            pass
    finally:
        os.rmdir(group)


# --- Filters of system calls, BPF -------------------------------------------


def seccomp():
    def inside():
        code = [
            (0x20, 0, 0, 0),  # load the number of the system call
            (0x15, 0, 1, 63),  # uname, or skip one
            (0x06, 0, 0, 0x00050000 | errno.EXDEV),
            (0x06, 0, 0, 0x7FFF0000),
        ]
        words = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
        program = ctypes.create_string_buffer(
            struct.pack("HxxxxxxQ", len(code), ctypes.addressof(words)))
        assert LIBC.prctl(38, 1, 0, 0, 0) == 0, "no new privileges"
        assert LIBC.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
        return refused(os.uname)

    assert in_child(inside) == errno.EXDEV
    assert os.uname().sysname == "Linux"


def bpf_call(command, *fields):
    """bpf(2) with the fields of its structure, each of 4 bytes or (value,) of 8."""
    layout = "=" + "".join("Q" if isinstance(field, tuple) else "I" for field in fields)
    values = [field[0] if isinstance(field, tuple) else field for field in fields]
    packed = struct.pack(layout, *values).ljust(128, b"\0")
    attributes = ctypes.create_string_buffer(packed, len(packed))
    result = LIBC.syscall(321, command, attributes, len(packed))
    assert result >= 0, f"bpf({command}): {os.strerror(ctypes.get_errno())}"
    return result


def bpf_program(kind, result):
    code = struct.pack("<BBhi", 0xB7, 0, 0, result) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    words = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    return bpf_call(5, kind, 2, (ctypes.addressof(words),), (ctypes.addressof(licence),))


def bpf():
    key = ctypes.create_string_buffer(struct.pack("I", 0), 4)
    value = ctypes.create_string_buffer(struct.pack("Q", 7), 8)
    found = ctypes.create_string_buffer(8)
    array = bpf_call(0, 2, 4, 8, 1)
    bpf_call(2, array, 0, (ctypes.addressof(key),), (ctypes.addressof(value),))
    bpf_call(1, array, 0, (ctypes.addressof(key),), (ctypes.addressof(found),))
    assert found.raw == value.raw
    # A filter on a socket that lets nothing through.
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        program = bpf_program(1, 0)
        far.setsockopt(socket.SOL_SOCKET, 50, struct.pack("i", program))
        far.setblocking(False)
        refused(lambda: near.send(b"x"))
        assert refused(lambda: far.recv(1)) == errno.EAGAIN, "the filter let it through"
    assert read("/proc/sys/net/core/bpf_jit_enable") == "1\n"


def denied_devices(group):
    """The error of a device in a control group whose program allows none."""
    folder = os.open(group, os.O_RDONLY)
    bpf_call(8, folder, bpf_program(15, 0), 6, 0)
    return refused(lambda: os.open("/dev/null", os.O_RDWR))


# --- FUSE -------------------------------------------------------------------


def fuse():
    os.makedirs("/mnt/fuse", exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    mount = LIBC.mount(b"banger", b"/mnt/fuse", b"fuse", 0, options)
    assert mount == 0, os.strerror(ctypes.get_errno())
    length, operation = struct.unpack("II", os.read(device, 1 << 17)[:8])
    assert operation == 26 and length > 40, "the kernel's first request is FUSE_INIT"
    # A file system that nobody serves any more can be unmounted.
    os.close(device)
    run("umount", "/mnt/fuse")


def main():
    for name in sys.argv[1:]:
        began = time.monotonic()
        globals()[name]()
        print(f"{name}: done after {time.monotonic() - began:.1f} s", flush=True)


main()
