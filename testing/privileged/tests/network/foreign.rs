//! Hosts with a firewall of their own that drops what it does not know.

use std::io::Write;

use banger_helper_api::{CreateTapParams, EnsureNatParams};
use banger_privileged_tests::Fixture;

use crate::guest::{GATEWAY, Guest};
use crate::is_root;
use crate::world::{
    World, bridge_params, create_tap, delete_tap, ensure_bridge, ensure_nat, feed, guest,
    guest_params, nat_params, picture, run,
};

/// As `iptables-save` shows Docker's on Debian 12, abridged.
const DOCKER: &str = "*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8000 -j DNAT --to-destination 172.31.0.2:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -m comment --comment \"banger\" -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -d 9.9.9.7/32 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
";

/// ufw with `default deny incoming` and `default reject routed`, abridged.
const UFW: &str = "*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:ufw-before-logging-forward - [0:0]
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-after-forward - [0:0]
:ufw-reject-forward - [0:0]
:ufw-before-input - [0:0]
-A INPUT -j ufw-before-input
-A FORWARD -j ufw-before-logging-forward
-A FORWARD -m comment --comment \"ufw's own\" -j ufw-before-forward
-A FORWARD -j ufw-after-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-user-forward -d 9.9.9.7/32 -j DROP
-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable
COMMIT
";

/// An administrator's own, with a chain that ends in a word.
const OWN: &str = "table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname lo accept comment \"ourselves\"
        ct state established,related accept comment \"banger\"
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established,related accept comment \"replies\"
        ip daddr 9.9.9.7 drop comment \"banger may not\"
        counter jump last comment \"the rest\"
    }
    chain last {
        log
        counter reject with icmpx type admin-prohibited
    }
}
";

#[test]
fn guests_pass_where_forward_drops_and_nobodys_rule_is_touched() {
    if !is_root() {
        return;
    }
    for (tool, rules) in [
        (
            "iptables-restore",
            "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -d 9.9.9.7 -j DROP\nCOMMIT\n",
        ),
        (
            "iptables-restore",
            "*filter\n-A FORWARD -d 9.9.9.7 -j DROP\n-A FORWARD -j REJECT\nCOMMIT\n",
        ),
        (
            "iptables-restore",
            "*filter\n-A FORWARD -d 9.9.9.7 -j DROP\n-A FORWARD -m comment --comment rest -j REJECT\nCOMMIT\n",
        ),
        ("iptables-restore", DOCKER),
        ("iptables-restore", UFW),
        ("nft -f -", OWN),
    ] {
        // Each in a thread: its network goes with it.
        let test = move || passes(tool, rules);
        std::thread::spawn(test).join().unwrap_or_else(|_| panic!("{rules}"));
    }
}

/// All tables but ours, without our rules in them.
fn theirs() -> String {
    let tables = run("nft list tables");
    let tables = tables.lines().filter(|table| !table.ends_with(" banger"));
    let lists: String = tables.map(|table| run(&format!("nft -s list {table}"))).collect();
    let lines = lists.lines().filter(|line| !line.contains("comment \"banger br-fc "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Our rules in the tables of others.
fn ours() -> usize {
    run("nft -s list ruleset").matches("comment \"banger br-fc ").count()
}

fn passes(tool: &str, rules: &str) {
    let world = World::new();
    world.run("ip address add 9.9.9.7/32 dev lo");
    let host = Fixture::new();
    feed(tool, rules);
    let before = theirs();
    ensure_bridge(&host, bridge_params()).unwrap();
    let idle = ours();
    let mut two = guest(&host, 2, guest_params(2));
    assert!(two.reaches("172.16.0.1"), "INPUT");
    let names = std::net::TcpListener::bind((GATEWAY, 42_070)).unwrap();
    assert!(two.connects(GATEWAY, 53, true), "INPUT");
    drop(names);
    assert!(two.is_kept_from("9.9.9.9"));
    assert!(ensure_nat(&host, &nat_params(2)).unwrap());
    assert!(!ensure_nat(&host, &nat_params(2)).unwrap());
    assert!(two.reaches("9.9.9.9"));
    assert!(two.is_kept_from("9.9.9.7"), "what the host's owner forbids stays forbidden");
    assert!(two.is_kept_from("10.50.0.1"));
    assert_eq!(before, theirs());

    // The rules stay while one guest needs them.
    drop(guest(&host, 3, guest_params(3)));
    ensure_nat(&host, &nat_params(3)).unwrap();
    ensure_nat(&host, &EnsureNatParams { enable: false, ..nat_params(3) }).unwrap();
    assert!(two.reaches("9.9.9.9"));
    assert_eq!(ours(), idle + 2);
    ensure_nat(&host, &EnsureNatParams { enable: false, ..nat_params(2) }).unwrap();
    assert_eq!((ours(), theirs()), (idle, before.clone()));
    ensure_nat(&host, &nat_params(2)).unwrap();
    assert_eq!(ours(), idle + 2);
    if tool.starts_with("iptables") {
        reloads(&host, &mut two, tool, rules);
    }
    delete_tap(&host, "tap-fc-2").unwrap();
    delete_tap(&host, "tap-fc-3").unwrap();
    assert_eq!((ours(), theirs()), (idle, before));
}

/// A reload of the host's rules takes ours away; a refresh brings them back.
fn reloads(host: &Fixture, two: &mut Guest, tool: &str, rules: &str) {
    let shown = run("iptables -S FORWARD");
    assert!(shown.contains("banger br-fc out"), "iptables understands them: {shown}");
    run("iptables -F FORWARD");
    run("iptables -A FORWARD -j REJECT");
    assert!(two.is_kept_from("9.9.9.9"));
    assert!(host.host.refresh_network().unwrap());
    assert!(two.reaches("9.9.9.9"));
    run("iptables -I FORWARD -j DROP");
    assert!(two.is_kept_from("9.9.9.9"));
    assert!(host.host.refresh_network().unwrap(), "ours have to stand before the new end");
    assert!(two.reaches("9.9.9.9"));
    run("iptables -D FORWARD -j DROP");
    feed(tool, rules);
    host.host.refresh_network().unwrap();
    assert!(two.reaches("9.9.9.9"));
}

/// Rules that an administrator loads whole: so many that each forbid one address, and an end.
fn reload(count: u8) -> String {
    let rules: String = forbidden(count).map(|rule| rule + "\n").collect();
    format!(
        "table ip filter\ndelete table ip filter\ntable ip filter {{ chain FORWARD {{\n\
         type filter hook forward priority filter; policy drop;\n{rules}\
         drop comment \"the end\"\n}}\n}}\n"
    )
}

fn forbidden(count: u8) -> impl Iterator<Item = String> {
    (1..=count).map(|last| format!("ip daddr 9.9.8.{last} drop"))
}

/// Has an administrator load rules right after the helper has read those that were there: nft is the
/// host's own, called by a script that does so when `left` listings are done.
struct Administrator(std::path::PathBuf);

impl Administrator {
    fn new(directory: &std::path::Path) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let at = directory.display();
        let script = format!(
            "#!/bin/sh\n{at}/nft \"$@\"\nstatus=$?\nif [ \"$*\" = '-j list ruleset' ]; then\n\
             read left <{at}/left\necho $((left - 1)) >{at}/left\n\
             [ $left != 1 ] || {at}/nft -f {at}/rules || exit 99\nfi\nexit $status\n"
        );
        std::fs::copy("/usr/sbin/nft", directory.join("nft")).unwrap();
        let wrapper = directory.join("wrapper");
        std::fs::write(&wrapper, script).unwrap();
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let administrator = Self(directory.to_owned());
        administrator.loads(0, "");
        rustix::mount::mount_bind(&wrapper, "/usr/sbin/nft").unwrap();
        administrator
    }

    fn loads(&self, left: i32, rules: &str) {
        std::fs::write(self.0.join("rules"), rules).unwrap();
        std::fs::write(self.0.join("left"), format!("{left}\n")).unwrap();
    }

    fn has_loaded(&self) -> bool {
        let left = std::fs::read_to_string(self.0.join("left")).unwrap();
        left.trim().parse::<i32>().unwrap() <= 0
    }
}

#[test]
fn a_table_that_is_made_anew_after_it_was_read_loses_no_rule() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let host = Fixture::new();
    let administrator = Administrator::new(&host.outside);
    ensure_bridge(&host, bridge_params()).unwrap();
    drop(guest(&host, 2, guest_params(2)));
    let mut races = 0;
    // The handles of the longer one's rules are those that ours had in the shorter.
    for (before, after) in [(2, 40), (40, 2)] {
        for enable in [false, true] {
            for left in 1..=4 {
                let nat = |enable| EnsureNatParams { enable, ..nat_params(2) };
                feed("nft -f -", &reload(before));
                ensure_nat(&host, &nat(!enable)).unwrap();
                host.host.refresh_network().unwrap();
                administrator.loads(left, &reload(after));
                ensure_nat(&host, &nat(enable)).unwrap();
                if !administrator.has_loaded() {
                    continue;
                }
                races += 1;
                let rules = run("nft -s list table ip filter");
                assert!(is_whole(after, &rules), "{before} {enable} {left}: {rules}");
                host.host.refresh_network().unwrap();
                let rules = run("nft -s list table ip filter");
                assert!(is_whole(after, &rules), "{before} {enable} {left}: {rules}");
                assert_eq!(rules.matches("banger br-fc ").count(), 2 * usize::from(enable));
            }
        }
    }
    assert!(races >= 8, "{races}");
}

/// Whether all that an administrator loaded is there, and ours stands right before the end, or not
/// at all.
fn is_whole(count: u8, rules: &str) -> bool {
    let drops = rules.lines().map(str::trim).filter(|line| line.ends_with(" drop"));
    let ours = rules.lines().skip_while(|line| !line.contains("banger br-fc "));
    let after = ours.skip_while(|line| line.contains("banger br-fc "));
    let mut after = after.map(str::trim).filter(|line| !line.contains('}'));
    let is_ours_last = after.next().is_none_or(|line| line.contains("the end"));
    drops.eq(forbidden(count))
        && rules.contains("the end")
        && is_ours_last
        && after.next().is_none()
}

/// Rules with comments like ours: of another bridge, or where banger never has one.
const ALIKE: &str = "table inet mine {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept comment \"replies\"
        udp dport 9 drop comment \"banger br-fc-1000 to 172.17.0.1\"
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid drop comment \"mine\"
        ip daddr 9.9.9.7 drop comment \"banger\"
        ip daddr 9.9.9.7 drop comment \"bangerbr-fc out\"
        ip daddr 9.9.9.7 drop comment \"banger br-fcx out\"
        ip daddr 9.9.9.7 drop comment \"banger br-fc-1000 out\"
        ip daddr 9.9.9.7 drop comment \"Banger br-fc out\"
        ip daddr 9.9.9.7 drop comment \"not banger br-fc out\"
        jump side comment \"out br-fc\"
    }
    chain side {
        ip daddr 9.9.9.7 drop comment \"banger br-fc out\"
    }
    chain output {
        type filter hook output priority filter; policy accept;
        ip daddr 9.9.9.7 drop comment \"banger br-fc out\"
    }
    chain before {
        type nat hook prerouting priority dstnat; policy accept;
        tcp dport 9 redirect to :10 comment \"banger br-fc out\"
    }
    chain early {
        type filter hook prerouting priority filter; policy accept;
        ip daddr 9.9.9.7 drop comment \"banger br-fc back\"
    }
}
table ip6 mine {
    chain forward {
        type filter hook forward priority filter; policy drop;
        counter accept comment \"banger br-fc out\"
    }
}
table bridge mine {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ether type ip6 drop comment \"banger br-fc group\"
    }
}
";

#[test]
fn a_rule_is_ours_by_its_chain_and_the_whole_name_of_its_bridge() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.run("ip address add 9.9.9.7/32 dev lo");
    let host = Fixture::new();
    feed("nft -f -", ALIKE);
    // In these two chains, and nowhere else, banger has rules.
    let theirs = || {
        let list = |what: &str| run(&format!("nft -s list {what}"));
        let shared = ["chain inet mine input", "chain inet mine forward"].map(list).concat();
        let shared = shared.lines().filter(|line| !line.contains("comment \"banger br-fc "));
        let others = ["side", "output", "before", "early"];
        let others = others.map(|chain| list(&format!("chain inet mine {chain}"))).concat();
        let tables = ["table ip6 mine", "table bridge mine"].map(list).concat();
        shared.map(|line| format!("{line}\n")).chain([others, tables]).collect::<String>()
    };
    let (before, alike) = (theirs(), ours());
    ensure_bridge(&host, bridge_params()).unwrap();
    assert_eq!(before, theirs());
    let idle = ours();
    assert!(idle > alike, "ours are not needed here");
    let grouped = CreateTapParams { group: Some("g".to_owned()), ..guest_params(2) };
    let mut two = guest(&host, 2, grouped);
    assert_eq!(before, theirs());
    for _ in 0..2 {
        assert!(ensure_nat(&host, &nat_params(2)).unwrap());
        assert_eq!(before, theirs());
        assert!(two.reaches("9.9.9.9"));
        assert!(two.is_kept_from("9.9.9.7"));
        run("nft flush table inet banger");
        assert!(host.host.refresh_network().unwrap());
        assert_eq!(before, theirs());
        ensure_nat(&host, &EnsureNatParams { enable: false, ..nat_params(2) }).unwrap();
        assert_eq!(before, theirs());
    }
    drop(two);
    delete_tap(&host, "tap-fc-2").unwrap();
    assert_eq!((ours(), theirs()), (idle, before));
}

#[test]
fn nothing_is_added_where_nothing_drops() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let host = Fixture::new();
    feed(
        "iptables-restore",
        "*filter\n-A FORWARD -d 1.2.3.4 -j DROP\n-A INPUT -p tcp -j DROP\nCOMMIT\n",
    );
    run("nft add table inet mine");
    run(
        "nft add chain inet mine forward { type filter hook forward priority 5 ; policy accept ; }",
    );
    let listed = |table: &str| run(&format!("nft -s list table {table}"));
    let before = (listed("ip filter"), listed("inet mine"));
    ensure_bridge(&host, bridge_params()).unwrap();
    let grouped = CreateTapParams { group: Some("g".to_owned()), ..guest_params(2) };
    let mut two = guest(&host, 2, grouped);
    ensure_nat(&host, &nat_params(2)).unwrap();
    assert!(two.reaches("9.9.9.9"));
    assert_eq!(before, (listed("ip filter"), listed("inet mine")));
    // The day it drops, and the day it does so no longer.
    run("iptables -P FORWARD DROP");
    assert!(host.host.refresh_network().unwrap());
    assert!(two.reaches("9.9.9.9"));
    run("iptables -P FORWARD ACCEPT");
    assert!(host.host.refresh_network().unwrap());
    assert_eq!(before, (listed("ip filter"), listed("inet mine")));
}

#[test]
fn a_table_that_a_process_holds_is_let_be() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let host = Fixture::new();
    let mut holder = std::process::Command::new("nft")
        .arg("-i")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut words = holder.stdin.take().unwrap();
    words
        .write_all(
            b"add table inet held { flags owner; }\n\
              add chain inet held f { type filter hook forward priority 0; policy drop; }\n",
        )
        .unwrap();
    while !run("nft list ruleset").contains("chain f") {
        std::thread::yield_now();
    }
    let before = theirs();
    ensure_bridge(&host, bridge_params()).unwrap();
    let mut two = guest(&host, 2, guest_params(2));
    assert!(ensure_nat(&host, &nat_params(2)).unwrap());
    assert!(two.is_kept_from("9.9.9.9"), "its process alone can change that");
    assert_eq!(before, theirs());
    drop(words);
    holder.wait().unwrap();
    assert!(two.reaches("9.9.9.9"), "it goes with its process");
}

#[test]
fn a_transaction_that_fails_leaves_no_trace() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let host = Fixture::new();
    ensure_bridge(&host, bridge_params()).unwrap();
    drop(guest(&host, 2, guest_params(2)));
    // Somebody's set in our table, of the name but not of the kind that the rules need.
    let rules = run("nft -s list chain inet banger from_guest").matches("comment").count();
    run("nft flush chain inet banger from_guest");
    run("nft flush chain inet banger postrouting");
    run("nft delete set inet banger nat");
    run("nft add set inet banger nat { type ipv4_addr ; }");
    let version = run("nft -s list chain inet banger input");
    let version = version.split('"').nth(1).unwrap();
    // As many rules as there were, each with the right comment: nothing looks wrong but the set.
    for _ in 0..rules {
        run(&format!("nft add rule inet banger from_guest counter comment \"{version}\""));
    }
    run(&format!("nft add rule inet banger postrouting counter comment \"{version}\""));
    let before = picture();
    assert!(ensure_nat(&host, &nat_params(2)).is_err());
    let three = guest_params(3);
    assert_eq!(before, picture());
    run("nft delete table inet banger");
    assert!(ensure_nat(&host, &nat_params(2)).unwrap());
    assert!(create_tap(&host, three).unwrap().0);
}
