//! Programs and zones are replaced under a flood from several pods, and whatever replaces them is killed: not one
//! frame crosses the zone, not one inside it is lost, no counter goes back.

mod common;

use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::enforce::{all_live, by_clsact, hooks, ifindex, is_well, private, ways};
use common::flood::under_flood;
use common::node::{MASTER, NODE_MAC, Node, Pod, conf};
use common::{NetNs, times};
use netpath::kernel::bpf::TcHook;
use netpath::kernel::bpf::attach::{Programs, Target};
use netpath::kernel::bpf::object;
use netpath::police;
use netpath::state::{Known, Lock, Outline, Records};
use netpath::zone::{Zone, ZoneConf, resolve};
use serde_json::{Value, json};

/// Three pods in the zone, and their addresses.
fn pods(node: &Node) -> [(Pod, Ipv4Addr); 3] {
    [200, 201, 202].map(|number| {
        let address = Ipv4Addr::new(10, 12, 34, number);
        (node.pod(&[&format!("{address}/24")], Some(&private())), address)
    })
}

fn refs(pods: &[(Pod, Ipv4Addr)]) -> Vec<(&Pod, Ipv4Addr)> {
    pods.iter().map(|(pod, address)| (pod, *address)).collect()
}

#[test]
fn an_undisturbed_flood_loses_nothing_either() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pods = pods(&node);
    under_flood(&node, &refs(&pods), || {
        common::eventually(common::PATIENCE, "a while", while_of(times(300)));
    });
}

/// Ready once it was asked that often.
fn while_of(mut rounds: u32) -> impl FnMut() -> Option<()> {
    move || {
        rounds = rounds.saturating_sub(1);
        (rounds == 0).then_some(())
    }
}

/// Puts two sets of programs in each other's place, in the kernel since before.
fn swap(node: &Node, rounds: u32) {
    let pins = node.root.pins();
    let host = [NODE_MAC];
    let xdp = hooks(node).len() == 3;
    let tc = if by_clsact(node) { TcHook::Clsact } else { TcHook::Auto };
    let (cpus, ifindex) = (object::cpus(), ifindex(node));
    let target = Target { pins: &pins, cpus, id: 1, ifindex, name: MASTER, xdp, tc, host_macs: &host };
    let states = hooks(node);
    let which: Vec<_> = states.iter().map(|state| state.hook).collect();
    node.netns.within(|| {
        let sets = [(); 2].map(|()| Programs::load(&target, &which).expect("they load"));
        for round in 0..rounds {
            let set = &sets[(round % 2) as usize];
            for state in &states {
                set.replace(&target, state)
                    .unwrap_or_else(|error| panic!("{round}: {}", common::chain(&error)));
            }
        }
    });
}

#[test]
fn programs_are_replaced_a_thousand_times_under_a_flood() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pods = pods(&node);
        let before = hooks(&node);
        under_flood(&node, &refs(&pods), || swap(&node, times(1000)));
        for (old, new) in before.iter().zip(hooks(&node)) {
            assert!(new.live && new.program != old.program, "{old:?} {new:?}");
        }
        is_well(&node);
    }
}

#[test]
fn the_tool_replaces_programs_under_a_flood() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pods = pods(&node);
        under_flood(&node, &refs(&pods), || {
            for _ in 0..times(6) {
                let said = node.netpath(&["attach"]);
                assert!(said.contains("replaced") && !said.contains("attached"), "{said}");
            }
        });
        all_live(&node, &entry);
    }
}

/// Zones that allow what the flood sends inside and deny the rest: inline, and in the trie.
fn zones() -> [(Value, Zone); 2] {
    let many: Vec<String> = (0..20).map(|i| format!("172.16.{i}.0/24")).collect();
    [
        json!({ "policy": "private", "allow": ["192.168.7.0/24"] }),
        json!({ "policy": "private", "allow": many }),
    ]
    .map(|conf| {
        let parsed =
            ZoneConf::from_conf(json!({ "zone": conf }).as_object().expect("an object")).expect("valid");
        let local = ["10.12.34.0/24".parse().expect("a prefix")];
        let zone = resolve(parsed.as_ref(), Some(&local), None).expect("valid").expect("a zone");
        (conf, zone)
    })
}

fn records(node: &Node) -> Vec<Arc<Outline>> {
    Records::new(&node.root).outlines(&mut Known::default()).expect("readable")
}

#[test]
fn zones_are_replaced_a_thousand_times_under_a_flood() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pods = pods(&node);
    let zones = zones();
    let mut maps = node.maps();
    let row = maps.zones().expect("readable")[0].id;
    under_flood(&node, &refs(&pods), || {
        let running =
            police::running(&maps, &records(&node), |record| record.network.as_str() == "privatezone")
                .expect("readable");
        assert_eq!(running.len(), 3);
        for round in 0..times(1000) {
            maps.settle(&[row]).expect("settled");
            let _lock = Lock::acquire(&node.root).expect("nobody else has it");
            let zone = &zones[(round % 2) as usize].1;
            let applied = police::apply(&mut maps, &running, "privatezone", Some(zone)).expect("applied");
            assert_eq!(
                (applied.rewritten.len(), applied.generation),
                (1, Some(u64::from(round) + 2)),
                "{round}"
            );
        }
    });
}

/// Makes the kernel refuse `membarrier(2)` to this thread, as it does with `nohz_full` CPUs.
fn refuse_membarrier() {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let number = u32::try_from(libc::SYS_membarrier).expect("small");
    let errno = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EINVAL).expect("small");
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 1 - jt, k };
    let mut filter = [
        // The number of the system call is the first word.
        libc::sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        step(JUMP_EQUAL, 0, number),
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: errno },
        libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and the filter it points to live through the call, and the filter has four steps.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: No memory is passed.
    let refused = unsafe { libc::syscall(libc::SYS_membarrier, 1, 0, 0) };
    assert_eq!((refused, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINVAL)));
}

#[test]
fn zones_are_replaced_where_membarrier_is_refused() {
    let node = Node::new(&json!({ "unknownSource": "drop" }));
    let pods = pods(&node);
    let zones = zones();
    under_flood(&node, &refs(&pods), || {
        let replace = || {
            // The filter stays with the thread.
            refuse_membarrier();
            let mut maps = node.maps();
            let running =
                police::running(&maps, &records(&node), |record| record.network.as_str() == "privatezone")
                    .expect("readable");
            for round in 0..times(100) {
                let zone = &zones[(round % 2) as usize].1;
                let applied = police::apply(&mut maps, &running, "privatezone", Some(zone)).expect("applied");
                assert_eq!(applied.generation, Some(u64::from(round) + 2), "{round}");
            }
        };
        std::thread::scope(|scope| scope.spawn(replace).join()).expect("each replacement waits and goes on");
    });
}

/// The network as `netpath apply` reads it.
fn manifest(node: &Node, zone: &Value) -> String {
    let path = node.root.join("network.json");
    let network = conf(&["10.12.34.200/24"], Some(zone));
    node.write(&path, &network);
    path.to_str().expect("text").to_owned()
}

/// Runs the tool or the plugin and kills it after a while; whether that was in time.
fn killed(node: &Node, words: &[&str], add: Option<(&NetNs, &Value)>, after: Duration) -> bool {
    let mut command = Command::new("timeout");
    command
        .args(["-s", "KILL", &format!("{:.4}", after.as_secs_f64()), env!("CARGO_BIN_EXE_netpath")])
        .args(words);
    command.env_clear().env("NETPATH_ROOT", node.root.path()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some((netns, _)) = add {
        command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", netns.name()).env("CNI_NETNS", netns.path());
        command.env("CNI_IFNAME", "net1").env("CNI_PATH", node.root.join("bin"));
    }
    let mut child = node.netns.within(|| command.spawn()).expect("it can be run");
    let mut stdin = child.stdin.take().expect("piped");
    if let Some((_, conf)) = add {
        let _ = std::io::Write::write_all(&mut stdin, conf.to_string().as_bytes());
    }
    drop(stdin);
    let output: Output = child.wait_with_output().expect("it ends");
    match output.status.code() {
        Some(0) => false,
        Some(137) | None => true,
        _ => panic!("{words:?}: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat())),
    }
}

#[test]
fn whoever_is_killed_at_whatever_moment_opens_nothing_and_loses_nothing() {
    for entry in ways() {
        let node = Node::new(&entry);
        let pods = pods(&node);
        let zones = zones();
        let mut count = [0; 3];
        let rounds = times(20).max(4);
        under_flood(&node, &refs(&pods), || {
            // The shortest of some: what is killed later than it ends proves nothing.
            let timed = |run: &dyn Fn() -> bool, undo: &dyn Fn()| {
                let times = (0..3).map(|_| {
                    let start = Instant::now();
                    assert!(!run(), "it has all the time it wants");
                    let took = start.elapsed();
                    undo();
                    took
                });
                times.min().expect("some")
            };
            let all = Duration::from_secs(60);
            let attach = timed(&|| killed(&node, &["attach"], None, all), &|| ());
            let file = manifest(&node, &zones[0].0);
            let apply = timed(&|| killed(&node, &["apply", &file], None, all), &|| ());
            let netns = NetNs::new("pod");
            let network = conf(&["10.12.34.210/24"], Some(&private()));
            let del = || assert!(node.call("DEL", &netns, &network).status.success());
            let add = timed(&|| killed(&node, &[], Some((&netns, &network)), all), &del);
            for round in 0..rounds {
                let part = |whole: Duration| whole * (round + 1) / (rounds + 1);
                count[0] += u32::from(killed(&node, &["attach"], None, part(attach)));
                let file = manifest(&node, &zones[((round + 1) % 2) as usize].0);
                count[1] += u32::from(killed(&node, &["apply", &file], None, part(apply)));
                count[2] += u32::from(killed(&node, &[], Some((&netns, &network)), part(add)));
                del();
            }
            node.netpath(&["attach"]);
            node.netpath(&["apply", &manifest(&node, &zones[0].0)]);
        });
        assert!(count.iter().all(|count| 0 < *count), "{count:?} of {rounds} each were killed in time");
        all_live(&node, &entry);
        is_well(&node);
    }
}
