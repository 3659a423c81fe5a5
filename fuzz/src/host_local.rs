//! Addresses from a directory in which anything may lie: what is given is free, in its range, and written down;
//! what fails leaves nothing; what is given back is free again.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use ipnetwork::IpNetwork;
use netpath::{
    ipam::{self, Reservation},
    root::Root,
    spec::{
        CniArgs, CniEnv, CniVersion, Command, ContainerId, HostLocalConf, IfName, IpamConf, NetworkName,
        Range, RangeSet,
    },
};

use crate::cursor::Cursor;

const WITHIN: Duration = Duration::from_secs(5);
const CONTAINERS: [&str; 3] = ["a", "b", "c1d2"];
const INTERFACES: [&str; 2] = ["net1", "net2"];
/// What may lie in the directory already, besides any name that is an address.
const FILES: [&str; 6] =
    ["last_reserved_ip.0", "last_reserved_ip.1", "10.0.0.3", "10.0.0.1", "fd00::2", "not an address"];

/// A pool, files that lie there, and calls.
pub fn check(data: &[u8]) {
    let mut cursor = Cursor::new(data);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = Root::new(directory.path());
    let conf = IpamConf::HostLocal(pool(&mut cursor));
    let name = NetworkName::parse("name", "lan").expect("a name");
    let env = CniEnv {
        command: Command::Add,
        container_id: None,
        netns: None,
        ifname: None,
        args: CniArgs::default(),
        path: vec![],
        netns_override: false,
    };
    let network = ipam::Network {
        name: &name,
        cni_version: CniVersion::LATEST,
        conf: &conf,
        stdin: b"{}",
        env: &env,
        root: &root,
        within: WITHIN,
        // Nothing is executed here.
        lead: || Err(std::io::ErrorKind::Unsupported.into()),
    };
    let lan = ipam::host_local_dir(&network).expect("host-local has a directory");
    fs::create_dir_all(&lan).expect("a directory");
    for _ in 0..cursor.byte() % 8 {
        file(&mut cursor, &lan);
    }
    for _ in 0..16 {
        if cursor.is_empty() {
            break;
        }
        call(&mut cursor, &network, &lan);
    }
}

/// One or two range sets: small ones, so that they are used up.
fn pool(cursor: &mut Cursor<'_>) -> HostLocalConf {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let [what, first, last, wish] = cursor.take();
    let first = first % 16;
    let v4 = Range {
        subnet: "10.0.0.0/28".parse().expect("a subnet"),
        start: IpAddr::from([10, 0, 0, first]),
        end: IpAddr::from([10, 0, 0, first + last % (16 - first)]),
        gateway: IpAddr::from([10, 0, 0, what >> 4]),
    };
    let v6 = Range {
        subnet: "fd00::/124".parse().expect("a subnet"),
        start: ip("fd00::1"),
        end: ip("fd00::6"),
        gateway: ip("fd00::1"),
    };
    let sets =
        if what & 1 == 0 { vec![RangeSet(vec![v4])] } else { vec![RangeSet(vec![v4]), RangeSet(vec![v6])] };
    let requested = if what & 2 == 0 { vec![] } else { vec![IpAddr::from([10, 0, 0, wish % 18])] };
    HostLocalConf {
        ranges: sets,
        routes: vec![],
        data_dir: None,
        resolv_conf: None,
        requested,
        nad_subnets: vec![],
    }
}

/// A file of another program, an older version, or one that was killed.
fn file(cursor: &mut Cursor<'_>, directory: &Path) {
    let number = cursor.byte();
    let name = match FILES.get(usize::from(number)) {
        Some(name) => (*name).to_owned(),
        None => format!("10.0.0.{}", number % 16),
    };
    let content = match cursor.byte() {
        0 => format!("{}\r\n{}", cursor.one_of(&CONTAINERS), cursor.one_of(&INTERFACES)).into_bytes(),
        1 => cursor.one_of(&CONTAINERS).into(),
        2 => format!("10.0.0.{}", cursor.byte()).into_bytes(),
        _ => cursor.until(0).to_vec(),
    };
    fs::write(directory.join(name), content).expect("a file");
}

fn call(cursor: &mut Cursor<'_>, network: &ipam::Network<'_>, lan: &Path) {
    let what = cursor.byte();
    let container_id =
        ContainerId::parse("id", CONTAINERS[usize::from(what >> 2) % 3]).expect("a container id");
    let ifname = IfName::parse("ifname", INTERFACES[usize::from(what >> 4) % 2]).expect("a name");
    let request = ipam::Request { network: *network, container_id: &container_id, ifname: &ifname };
    let IpamConf::HostLocal(pool) = network.conf else { return };
    let before = reservations(lan);
    let own = |all: &[Reservation]| {
        let is_own = |one: &&Reservation| {
            one.container_id == container_id.as_str() && one.ifname.as_deref() == Some(ifname.as_str())
        };
        all.iter().filter(is_own).map(|one| one.address).collect::<Vec<_>>()
    };
    // One address is somebody's for good, as the node's own are.
    let nodes: IpAddr = [10, 0, 0, 5].into();
    match what & 3 {
        0 | 1 => match ipam::add(&request, &|address| {
            (address == nodes).then(|| "is the node's own".to_owned())
        }) {
            Ok(given) => {
                assert_eq!(given.ips.len(), pool.ranges.len(), "one address of each range set");
                let after = reservations(lan);
                for (ip, set) in given.ips.iter().zip(&pool.ranges) {
                    let address = ip.address.ip();
                    assert!(before.iter().all(|one| one.address != address), "{address} was taken");
                    assert!(set.0.iter().any(|range| range.contains(address)), "{address} is in no range");
                    assert!(is_a_hosts(ip.address) && address != nodes, "{address} is nobody's to have");
                    assert!(ip.gateway != Some(address), "{address} is the gateway");
                    assert!(own(&after).contains(&address), "{address} is not written down");
                }
            }
            Err(error) => {
                assert!(!error.to_string().is_empty() && error.cni_code() != 0, "{error:?}");
                assert_eq!(reservations(lan), before, "a failed ADD leaves what was there: {error}");
            }
        },
        2 => {
            ipam::del(&request).expect("what can be read can be removed");
            assert_eq!(own(&reservations(lan)), Vec::<IpAddr>::new(), "DEL gives everything back");
        }
        _ => {
            let gone = ipam::gc(network, &|container, _| *container == container_id).expect("a list");
            let after = reservations(lan);
            assert_eq!(after.len() + gone.len(), before.len(), "GC tells what it gives back");
            assert!(gone.iter().all(|one| one.container_id == container_id.as_str()), "{gone:?}");
        }
    }
}

/// Neither the network's address nor the broadcast address.
fn is_a_hosts(address: IpNetwork) -> bool {
    address.ip() != address.network() && (address.is_ipv6() || address.ip() != address.broadcast())
}

fn reservations(lan: &Path) -> Vec<Reservation> {
    ipam::reservations(lan, WITHIN).expect("the directory can be read")
}

/// Pools that are empty, used by others, damaged, used up.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    vec![
        of("two-adds-and-a-del", &[0x10, 1, 9, 0, 0, 0, 4, 2, 0]),
        of("both-families", &[0x11, 1, 9, 0, 0, 0, 4, 8, 2, 6, 0]),
        of("used-up", &[0x10, 1, 2, 0, 0, 0, 4, 8, 16, 20, 24]),
        of("asked-for", &[0x12, 1, 9, 7, 0, 0, 4]),
        of("asked-for-the-gateway", &[0x72, 1, 9, 7, 0, 0]),
        of("others-files", &[0x10, 1, 9, 0, 4, 2, 0, 0, 0, 2, 1, 1, 6, 9, b'x', 0, 0, 2, 4, 0, 4, 2, 3, 7]),
        of("empty-files", &[0x10, 1, 9, 0, 3, 6, 9, 0, 7, 9, 0, 0, 9, 0, 0, 0, 4]),
        of("gc", &[0x10, 1, 9, 0, 0, 0, 4, 3, 0]),
    ]
}
