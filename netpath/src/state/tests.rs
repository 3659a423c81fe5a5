use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::spec::{Mac, NetworkName};
use crate::state::{Endpoint, Fingerprint, Kind, Master, Netns, Phase, Pod, Zone};

fn record(container_id: &str, ifname: &str) -> Record {
    let conf =
        json!({"cniVersion": "1.0.0", "name": "priv", "type": "macvlan", "zone": {"policy": "private"}});
    Record {
        container_id: ContainerId::parse("container_id", container_id).unwrap(),
        ifname: IfName::parse("ifname", ifname).unwrap(),
        phase: Phase::Ready,
        kind: Kind::Macvlan,
        created: 1_790_000_000,
        boot_id: "b4a01ff2-60fd-4b85-9d7b-7e4b0d8c6f6e".to_owned(),
        netns: Netns { path: "/run/netns/a".into(), dev: 4, inode: 4_026_532_222, cookie: Some(u64::MAX) },
        network: NetworkName::parse("name", "priv").unwrap(),
        nad: Some("web/priv".to_owned()),
        pod: Some(Pod { namespace: "default".into(), name: "web".into(), uid: Some("u-1".into()) }),
        conf: conf.as_object().unwrap().clone(),
        master: Some(Master { name: "enp0s8".into(), ifindex: 3, id: Some(1) }),
        mac: Some(Mac::new([2, 0, 0, 0xaa, 0xbb, 0xcc])),
        endpoint: Some(Endpoint { id: 7, generation: 9 }),
        zone: Some(Zone { digest: "00ff".into(), compiled: json!({"flags": 1}) }),
        ips: vec!["10.12.34.200/24".parse().unwrap(), "fd00::200/64".parse().unwrap()],
        host_local_dir: Some("/var/lib/cni/networks/priv".into()),
    }
}

fn records() -> (tempfile::TempDir, Records) {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::new(&Root::new(dir.path()));
    (dir, records)
}

#[test]
fn what_is_written_is_read() {
    let (_dir, records) = records();
    let full = record("c1", "net1");
    let bare = Record {
        phase: Phase::Adding,
        kind: Kind::Chained,
        nad: None,
        pod: None,
        master: None,
        mac: None,
        endpoint: None,
        zone: None,
        ips: vec![],
        host_local_dir: None,
        ..record("c1", "net2")
    };
    records.write(&full).unwrap();
    records.write(&bare).unwrap();
    assert_eq!(records.read(&full.container_id, &full.ifname).unwrap(), Some(full.clone()));
    assert_eq!(records.read(&bare.container_id, &bare.ifname).unwrap(), Some(bare.clone()));

    let mut changed = full.clone();
    changed.endpoint = None;
    records.write(&changed).unwrap();
    let listing = records.all().unwrap();
    assert_eq!(listing.records, [changed, bare]);
    assert!(listing.torn.is_empty());
}

#[test]
fn outlines_are_kept_and_read_again_when_the_record_is_another() {
    let (_dir, records) = records();
    let (first, second) = (record("c1", "net1"), record("c2", "net1"));
    records.write(&first).unwrap();
    records.write(&second).unwrap();
    let mut known = Known::default();
    let read = records.outlines(&mut known).unwrap();
    assert_eq!((read[0].endpoint, &read[0].pod), (first.endpoint, &first.pod));
    let compiled = json!({"flags": 2});
    assert_ne!(read[0].zone.as_ref().unwrap().compiled, Fingerprint::of(&compiled));

    let zone = Some(Zone { digest: "01".into(), compiled: compiled.clone() });
    assert!(records.update(&Record { zone, ..first.clone() }).unwrap());
    let again = records.outlines(&mut known).unwrap();
    assert_eq!(again[0].zone.as_ref().unwrap().compiled, Fingerprint::of(&compiled));
    assert!(Arc::ptr_eq(&again[1], &read[1]), "the other one is not read again");
    records.remove(&first.container_id, &first.ifname).unwrap();
    assert_eq!(records.outlines(&mut known).unwrap().len(), 1);
}

#[test]
fn an_update_brings_back_no_record_that_is_gone() {
    let (_dir, records) = records();
    let record = record("c1", "net1");
    records.write(&record).unwrap();
    records.remove(&record.container_id, &record.ifname).unwrap();
    assert!(!records.update(&record).unwrap());
    assert_eq!(records.names().unwrap(), Vec::<PathBuf>::new(), "nor does a draft stay");
}

#[test]
fn the_file_is_where_and_how_it_is_documented() {
    let (dir, records) = records();
    let record = record("c1", "net1");
    records.write(&record).unwrap();
    let path = dir.path().join("var/lib/netpath/v1/c1-net1.json");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["mac"], "02:00:00:aa:bb:cc");
    assert_eq!(json["phase"], "ready");
    assert_eq!(json["conf"]["zone"]["policy"], "private");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft stays");
}

#[test]
fn nothing_there_is_not_an_error() {
    let (dir, records) = records();
    let record = record("c1", "net1");
    assert_eq!(records.read(&record.container_id, &record.ifname).unwrap(), None);
    assert!(!records.remove(&record.container_id, &record.ifname).unwrap());
    assert!(records.all().unwrap().records.is_empty());
    assert_eq!(records.sweep().unwrap(), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "reading creates nothing");
}

#[test]
fn names_that_look_alike_do_not_meet() {
    let (_dir, records) = records();
    let pairs = [("a", "b-c"), ("a-b", "c"), ("a", "b--c"), ("a-b", "-c")];
    for (container_id, ifname) in pairs {
        records.write(&record(container_id, ifname)).unwrap();
    }
    assert_eq!(records.all().unwrap().records.len(), pairs.len());
    for (container_id, ifname) in pairs {
        let record = record(container_id, ifname);
        assert_eq!(records.read(&record.container_id, &record.ifname).unwrap(), Some(record));
    }
}

#[test]
fn the_longest_names_fit() {
    let (_dir, records) = records();
    let record = record(&"c".repeat(200), &"-".repeat(15));
    records.write(&record).unwrap();
    assert_eq!(records.all().unwrap().records, [record]);
}

#[test]
fn a_torn_record_is_none_and_can_be_replaced_and_removed() {
    let (_dir, records) = records();
    let good = record("good", "net1");
    let record = record("c1", "net1");
    records.write(&good).unwrap();
    records.write(&record).unwrap();
    let path = records.path(&record.container_id, &record.ifname);
    let whole = fs::read(&path).unwrap();

    // The last byte is a newline: without it the record is whole.
    for length in 0..whole.len() - 1 {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(records.read(&record.container_id, &record.ifname).unwrap(), None, "{length} bytes");
    }
    let listing = records.all().unwrap();
    assert_eq!(listing.records, [good]);
    assert_eq!(listing.torn.len(), 1);
    assert_eq!(listing.torn[0].path, path);

    records.write(&record).unwrap();
    assert_eq!(records.read(&record.container_id, &record.ifname).unwrap(), Some(record.clone()));
    fs::write(&path, "").unwrap();
    assert!(records.remove(&record.container_id, &record.ifname).unwrap());
    assert!(records.all().unwrap().torn.is_empty());
}

#[test]
fn causes_of_torn_records() {
    let (_dir, records) = records();
    let record = record("c1", "net1");
    records.write(&record).unwrap();
    let path = records.path(&record.container_id, &record.ifname);
    let other = path.with_file_name("other-net1.json");
    fs::copy(&path, &other).unwrap();
    fs::write(path.with_file_name("empty-net1.json"), " \n").unwrap();
    let bad_name = String::from_utf8(fs::read(&path).unwrap()).unwrap().replace("net1", "a/b");
    fs::write(path.with_file_name("name-net1.json"), bad_name).unwrap();

    let mut torn = records.all().unwrap().torn;
    torn.sort_by(|a, b| a.path.cmp(&b.path));
    let causes: Vec<_> = torn.iter().map(|torn| torn.cause.to_string()).collect();
    assert_eq!(causes, ["it is empty", "it is not a valid record", "it holds the record of c1 net1"]);
}

#[test]
fn a_killed_writer_leaves_a_draft_that_is_swept() {
    let (_dir, records) = records();
    let record = record("c1", "net1");
    records.write(&record).unwrap();
    let path = records.path(&record.container_id, &record.ifname);
    let draft = path.with_file_name(".0123456789abcdef-1-0");
    fs::write(&draft, "{").unwrap();

    let listing = records.all().unwrap();
    assert_eq!((listing.records.len(), listing.torn.len()), (1, 0));
    assert_eq!(records.sweep().unwrap(), 1);
    assert!(!draft.exists());
    assert!(path.exists());
}

#[test]
fn a_failed_write_keeps_the_earlier_record() {
    let (_dir, records) = records();
    let record = record("c1", "net1");
    records.write(&record).unwrap();
    // A directory in the record's place makes the rename fail, after the draft was written.
    let other = Record { ifname: IfName::parse("ifname", "net2").unwrap(), ..record.clone() };
    let path = records.path(&other.container_id, &other.ifname);
    fs::create_dir(&path).unwrap();
    let error = records.write(&other).expect_err("a directory is in the way");
    assert!(error.to_string().contains("cannot put into place"), "{error}");
    fs::remove_dir(&path).unwrap();
    assert_eq!(
        records.names().unwrap(),
        [records.path(&record.container_id, &record.ifname)],
        "no draft stays"
    );
}

#[test]
fn readers_see_whole_records_while_others_write() {
    let (_dir, records) = records();
    let first = record("c1", "net1");
    let second = Record { boot_id: "x".repeat(20_000), ..first.clone() };
    records.write(&first).unwrap();
    std::thread::scope(|scope| {
        for record in [&first, &second] {
            let records = &records;
            scope.spawn(move || (0..50).for_each(|_| records.write(record).unwrap()));
        }
        for _ in 0..500 {
            let read = records.read(&first.container_id, &first.ifname).unwrap();
            assert!(read.as_ref() == Some(&first) || read.as_ref() == Some(&second), "{read:?}");
        }
    });
}

#[test]
fn the_boot_has_a_name() {
    assert_eq!(boot_id().unwrap().len(), 36);
    assert_eq!(boot_id().unwrap(), boot_id().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn file_names_are_unique(
        a in ("[a-z][a-z._-]{0,6}", "[a-z2-]{1,6}"),
        b in ("[a-z][a-z._-]{0,6}", "[a-z2-]{1,6}"),
    ) {
        let records = Records::new(&Root::new("/"));
        let path = |(id, ifname): &(String, String)| records.path(
            &ContainerId::parse("container_id", id).unwrap(),
            &IfName::parse("ifname", ifname).unwrap(),
        );
        prop_assert_eq!(a == b, path(&a) == path(&b));
    }
}
