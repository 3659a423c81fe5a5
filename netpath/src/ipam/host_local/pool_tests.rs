use proptest::prelude::*;

use super::*;

fn range(subnet: &str, start: &str, end: &str, gateway: &str) -> Range {
    Range {
        subnet: subnet.parse().unwrap(),
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A dual-stack network whose first set has two ranges: .1 (the gateway) to .3 and .6 to .7.
fn sets() -> Vec<RangeSet> {
    vec![
        RangeSet(vec![
            range("10.0.0.0/24", "10.0.0.1", "10.0.0.3", "10.0.0.1"),
            range("10.0.1.0/24", "10.0.1.6", "10.0.1.7", "10.0.1.1"),
        ]),
        RangeSet(vec![range("fd00::/64", "fd00::1", "fd00::ffff", "fd00::1")]),
    ]
}

/// Chooses with what is given, and says it in one line.
fn choose(requested: &[&str], taken: &[&str], mine: &[&str], last: &[&str], refused: &[&str]) -> String {
    let (sets, taken, mine, refused) = (sets(), ips(taken).into_iter().collect(), ips(mine), ips(refused));
    let last: Vec<_> = last.iter().map(|text| text.parse().ok()).collect();
    let refuse = |address: IpAddr| refused.contains(&address).then(|| "is the node's own".to_owned());
    let pool = Pool { sets: &sets, taken: &taken, mine: &mine, last: &last, refuse: &refuse };
    match pool.choose(&ips(requested), &ContainerId::parse("container id", "c1").unwrap()) {
        Ok(choices) => {
            let texts: Vec<_> = choices
                .iter()
                .map(|choice| format!("{} {} {}", choice.set, choice.address, choice.gateway))
                .collect();
            texts.join(", ")
        }
        Err(error) => format!("{}: {error}", error.cni_code()),
    }
}

#[test]
fn one_address_from_each_set_in_turn() {
    assert_eq!(choose(&[], &[], &[], &[], &[]), "0 10.0.0.2/24 10.0.0.1, 1 fd00::2/64 fd00::1");
    let got = choose(&[], &[], &[], &["10.0.0.2", "fd00::ff"], &[]);
    assert_eq!(got, "0 10.0.0.3/24 10.0.0.1, 1 fd00::100/64 fd00::1");
    // On to the next range, and around to the first.
    assert_eq!(choose(&[], &[], &[], &["10.0.0.3", ""], &[]), "0 10.0.1.6/24 10.0.1.1, 1 fd00::2/64 fd00::1");
    let got = choose(&[], &[], &[], &["10.0.1.7", "fd00::ffff"], &[]);
    assert_eq!(got, "0 10.0.0.2/24 10.0.0.1, 1 fd00::2/64 fd00::1");
    // The last one again, if nothing else is free.
    let taken = &["10.0.0.2", "10.0.1.6", "10.0.1.7"];
    assert_eq!(
        choose(&[], taken, &[], &["10.0.0.3", ""], &[]),
        "0 10.0.0.3/24 10.0.0.1, 1 fd00::2/64 fd00::1"
    );
    // One that is no longer in the ranges is forgotten.
    assert_eq!(
        choose(&[], &[], &[], &["10.9.9.9", "x"], &[]),
        "0 10.0.0.2/24 10.0.0.1, 1 fd00::2/64 fd00::1"
    );
}

#[test]
fn refused_addresses_are_passed_over() {
    let got = choose(&[], &[], &[], &[], &["10.0.0.2", "fd00::2", "fd00::3"]);
    assert_eq!(got, "0 10.0.0.3/24 10.0.0.1, 1 fd00::4/64 fd00::1");
    let set = RangeSet(vec![range("10.0.0.0/30", "10.0.0.0", "10.0.0.3", "10.0.0.1")]);
    let addresses: Vec<_> = turn(&set, None).map(|(_, address)| address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let sets = [set];
    let id = ContainerId::parse("container id", "c1").unwrap();
    for (taken, want) in [(vec![], Some("10.0.0.2/30")), (ips(&["10.0.0.2"]), None)] {
        let taken = taken.into_iter().collect();
        let pool = Pool { sets: &sets, taken: &taken, mine: &[], last: &[], refuse: &|_| None };
        let got = pool.choose(&[], &id).ok().map(|choices| choices[0].address.to_string());
        assert_eq!(got.as_deref(), want, "neither the network, nor the gateway, nor the broadcast address");
    }
}

#[test]
fn what_is_asked_for_is_given_or_refused() {
    let got = choose(&["fd00::7", "10.0.1.7", "fd00::7"], &[], &[], &[], &[]);
    assert_eq!(got, "0 10.0.1.7/24 10.0.1.1, 1 fd00::7/64 fd00::1");
    assert_eq!(choose(&["fd00::7"], &[], &[], &[], &[]), "0 10.0.0.2/24 10.0.0.1, 1 fd00::7/64 fd00::1");
    let check = |requested: &[&str], taken: &[&str], refused: &[&str], want: &str| {
        assert_eq!(choose(requested, taken, &[], &[], refused), want);
    };
    let (a, b) = ("10.0.0.1-10.0.0.3,10.0.1.6-10.0.1.7", "fd00::1-fd00::ffff");
    check(
        &["10.0.0.2"],
        &["10.0.0.2"],
        &[],
        &format!(
            "120: failed to allocate for range 0: requested IP address 10.0.0.2 is not available in range set {a}"
        ),
    );
    check(
        &["fd00::9"],
        &["fd00::9"],
        &[],
        &format!(
            "120: failed to allocate for range 1: requested IP address fd00::9 is not available in range set {b}"
        ),
    );
    check(
        &["10.0.0.1"],
        &[],
        &[],
        "121: failed to allocate for range 0: requested ip 10.0.0.1 is subnet's gateway",
    );
    check(
        &["10.0.0.2"],
        &[],
        &["10.0.0.2"],
        "121: failed to allocate for range 0: address 10.0.0.2 is the node's own: ask for another one, or take it out of the range",
    );
    check(
        &["10.0.0.2", "10.0.0.3", "10.9.9.9"],
        &[],
        &[],
        "120: failed to allocate all requested IPs: 10.0.0.3 10.9.9.9",
    );
}

#[test]
fn nothing_left_and_twice() {
    let all = &["10.0.0.2", "10.0.0.3", "10.0.1.6", "10.0.1.7"];
    let exhausted = "120: failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.3,10.0.1.6-10.0.1.7";
    assert_eq!(choose(&[], all, &[], &["10.0.0.3"], &[]), exhausted);
    assert_eq!(choose(&[], &all[..2], &[], &["10.0.0.3"], &all[2..]), exhausted);
    assert_eq!(
        choose(&[], &["10.0.0.2"], &["10.0.0.2"], &[], &[]),
        "120: failed to allocate for range 0: 10.0.0.2 has been allocated to c1, duplicate allocation is not allowed"
    );
    // An address of another network in the same directory is none of this set.
    assert!(choose(&[], &[], &["10.7.7.7"], &[], &[]).starts_with("0 10.0.0.2/24"));
}

#[test]
fn the_whole_of_ipv6_is_not_walked() {
    let sets =
        [RangeSet(vec![range("fd00::/16", "fd00::1", "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd00::1")])];
    let last = [Some("fd00::ffff:ffff:ffff:ffff".parse().unwrap())];
    let taken = ips(&["fd00:0:0:1::", "fd00:0:0:1::1"]).into_iter().collect();
    let pool = Pool { sets: &sets, taken: &taken, mine: &[], last: &last, refuse: &|_| None };
    let choices = pool.choose(&[], &ContainerId::parse("container id", "c1").unwrap()).unwrap();
    assert_eq!(choices[0].address.to_string(), "fd00:0:0:1::2/16");
}

/// The standard plugin's iteration, step by step: a cursor that remembers where it began.
fn standard_next(set: &RangeSet, last: Option<IpAddr>, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let next = |address: IpAddr| -> IpAddr {
        match address {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) + 1).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) + 1).into(),
        }
    };
    let mut at = last.and_then(|last| set.0.iter().position(|range| range.contains(last))).unwrap_or(0);
    let mut cursor = last.filter(|&last| set.contains(last));
    let mut began: Option<IpAddr> = None;
    loop {
        let address = match cursor {
            None => set.0[at].start,
            Some(address) if address == set.0[at].end => {
                at = (at + 1) % set.0.len();
                set.0[at].start
            }
            Some(address) => next(address),
        };
        cursor = Some(address);
        if began == Some(address) {
            return None;
        }
        began.get_or_insert(address);
        if address != set.0[at].gateway && !taken.contains(&address) {
            return Some(address);
        }
    }
}

/// Up to three ranges of one /24 each, so that they do not overlap.
fn any_set() -> impl Strategy<Value = RangeSet> {
    let any_range = (1..=12u8, 0..=8u8, 1..=12u8);
    prop::collection::vec(any_range, 1..=3).prop_map(|parts| {
        let range = |(third, &(start, length, gateway)): (u8, &(u8, u8, u8))| {
            let ip = |last: u8| IpAddr::from([10, 0, third, last]);
            let subnet = IpNetwork::new(ip(0), 24).unwrap();
            Range { subnet, start: ip(start), end: ip(start + length), gateway: ip(gateway) }
        };
        RangeSet((0..).zip(&parts).map(range).collect())
    })
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    (0..3u8, 0..24u8).prop_map(|(third, last)| IpAddr::from([10, 0, third, last]))
}

proptest! {
    #[test]
    fn chooses_what_the_standard_plugin_chooses(
        set in any_set(),
        taken in prop::collection::hash_set(any_address(), 0..60),
        last in prop::option::of(any_address()),
    ) {
        let want = standard_next(&set, last, &taken);
        let pool = Pool { sets: &[set], taken: &taken, mine: &[], last: &[last], refuse: &|_| None };
        let got = pool.choose(&[], &ContainerId::parse("container id", "c1").unwrap());
        prop_assert_eq!(got.ok().map(|choices| choices[0].address.ip()), want);
    }

    #[test]
    fn a_turn_visits_every_address_once(set in any_set(), last in prop::option::of(any_address())) {
        let mut visited: Vec<_> = turn(&set, last).map(|(range, address)| {
            assert!(range.contains(address));
            address
        }).collect();
        let total = visited.len();
        if let Some(last) = last.filter(|&last| set.contains(last)) {
            prop_assert_eq!(visited.last(), Some(&last));
        }
        visited.sort();
        visited.dedup();
        prop_assert_eq!(visited.len(), total);
        let want: u128 = set.0.iter().map(|range| number(range.end) - number(range.start) + 1).sum();
        prop_assert_eq!(u128::try_from(total).unwrap(), want);
    }
}
