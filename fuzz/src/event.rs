//! Drop events: whatever lies in the ring buffer, written by a program of any version.

use std::time::Duration;

use netpath::observe::{DecodeError, Event, Limits, Window, tally};
use netpath_ebpf::abi::DropEvent;
use serde_json::Value;

const LEN: usize = size_of::<DropEvent>();

/// Records one after the other; the last may be cut.
pub fn check(data: &[u8]) {
    let limits = Limits { interval: Duration::from_millis(3), lines: 2, groups: 4 };
    let (mut window, mut told, mut read) = (Window::default(), 0, 0);
    for (number, record) in data.chunks(LEN).enumerate() {
        let event = match Event::decode(record) {
            Ok(event) => event,
            Err(DecodeError::Length(length)) => {
                assert!(length == record.len() && length != LEN, "{length} bytes are refused");
                continue;
            }
            Err(DecodeError::Direction(direction)) => {
                assert!(direction > 1, "direction {direction} is refused");
                continue;
            }
        };
        assert_eq!(record.len(), LEN, "an event has one length");
        for name in [None, Some("team-a/web-0/net1".to_owned())] {
            let line = event.line(|_, _| name.clone());
            assert!(line.contains(&event.reason.to_string()), "no reason in: {line}");
            assert!(!line.contains('\n'), "two lines: {line}");
            let json = event.to_json(name.as_deref());
            let text = json.to_string();
            assert_eq!(
                serde_json::from_str::<Value>(&text).ok(),
                Some(json),
                "JSON is read as it was written"
            );
        }
        read += 1;
        let now = Duration::from_millis(u64::try_from(number).unwrap_or(u64::MAX));
        told += tally(now, &limits, &mut window, [event]).map_or(0, |report| count(&report, &limits));
    }
    told += tally(Duration::MAX, &limits, &mut window, []).map_or(0, |report| count(&report, &limits));
    assert_eq!(told, read, "every event is told or counted as withheld, and none twice");
}

fn count(report: &netpath::observe::Report, limits: &Limits) -> u64 {
    assert!(report.groups.len() <= limits.lines, "more lines than asked for");
    assert_eq!(report.lines(|_, _| None).iter().filter(|line| line.contains('\n')).count(), 0, "two lines");
    report.withheld + report.groups.iter().map(|group| group.count).sum::<u64>()
}

/// One event each of what the programs write.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mapped = |last: [u8; 4]| [&[0; 10][..], &[0xff, 0xff], &last].concat();
    let record = |ethertype: u16, head: [u8; 4], addresses: &[u8], ports: [u16; 2]| {
        let mut record = [7u32.to_ne_bytes(), 3u32.to_ne_bytes()].concat();
        record.extend([1u16.to_ne_bytes(), ethertype.to_ne_bytes()].concat());
        record.extend(head);
        record.extend(addresses);
        record.extend(ports.map(u16::to_ne_bytes).concat());
        record.extend(74u32.to_ne_bytes());
        record.extend([2, 0, 0, 0, 0, 0x11, 2, 0, 0, 0, 0, 0x99, 0, 0, 0, 0]);
        record
    };
    let (pod, far) = (mapped([10, 12, 34, 5]), mapped([8, 8, 8, 8]));
    let v4 = [&pod[..], &far].concat();
    let v6 = [&[0; 16][..], &[0xff, 2], &[0; 13], &[1]].concat();
    let syn = record(0x0800, [14, 0, 0, 6], &v4, [40_000, 443]);
    vec![
        ("syn-outside-the-zone".to_owned(), syn.clone()),
        ("audited-ping".to_owned(), record(0x0800, [14, 0, 1, 1], &v4, [8, 0])),
        ("received-neighbour-solicitation".to_owned(), record(0x86dd, [12, 1, 0, 58], &v6, [135, 0])),
        ("arp".to_owned(), record(0x0806, [9, 0, 0, 0], &v4, [0, 0])),
        ("lldp".to_owned(), record(0x88cc, [2, 0, 0, 0], &[0; 32], [0, 0])),
        ("newer-reason".to_owned(), record(0x0800, [200, 0, 0, 17], &v4, [53, 53])),
        ("unknown-direction".to_owned(), record(0x0800, [14, 2, 0, 17], &v4, [53, 53])),
        ("cut".to_owned(), syn[..71].to_vec()),
        ("flood".to_owned(), syn.repeat(9)),
    ]
}
