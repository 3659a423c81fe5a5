//! Which interface of a pod has the default route.

use std::net::IpAddr;

use super::{RouteVia, Step};
use crate::spec::IfName;

/// Distance between the metric of a default route that counts and that of the next best.
const STEP: u32 = 100;
/// Metric of an IPv6 route that is added without one.
const V6_METRIC: u32 = 1024;

/// An interface of a pod, in the order in which they were attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub ifname: IfName,
    /// `default-route` of the pod's annotation.
    pub asked: Option<Vec<IpAddr>>,
    /// Whether the network may take the default route over without being asked.
    pub overrides: bool,
}

/// A default route that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The interface it goes through.
    pub ifname: String,
    /// The route.
    pub route: RouteVia,
}

/// The default route of a family has gone to one interface, and no other has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Of IPv6, else of IPv4.
    pub v6: bool,
    /// Index of the interface.
    pub to: usize,
    /// The gateway that was asked for; `None` where the interface keeps what its network configured.
    pub gateway: Option<IpAddr>,
}

/// What to do about default routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultRoutes {
    /// What to do to the pod.
    pub steps: Vec<Step>,
    /// What to correct in the results.
    pub moved: Vec<Moved>,
}

/// Several interfaces want the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "default-route: {} are gateways of the same family, and a pod has one default route of each: leave one of them",
    gateways.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
)]
pub struct SeveralDefaults {
    /// The gateways.
    pub gateways: Vec<IpAddr>,
}

/// Refuses what no pod can have; for before anything is attached.
pub fn check_gateways<'a>(asked: impl Iterator<Item = &'a [IpAddr]>) -> Result<(), SeveralDefaults> {
    let all: Vec<IpAddr> = asked.flatten().copied().collect();
    for v6 in [false, true] {
        let gateways: Vec<_> = all.iter().copied().filter(|gateway| gateway.is_ipv6() == v6).collect();
        if 1 < gateways.len() {
            return Err(SeveralDefaults { gateways });
        }
    }
    Ok(())
}

/// Puts the default route of each family where the pod wants it.
///
/// Asked for a gateway, the interface gets it, and all others lose theirs. Asked with an empty list, the interface
/// keeps what its network configured, and all others lose theirs of the families that it has. Where nobody asks,
/// the first interface that has one counts; another's is kept behind it, so that what is bound to that interface
/// still finds its gateway.
pub fn default_routes(
    attached: &[Attached],
    present: &[DefaultRoute],
) -> Result<DefaultRoutes, SeveralDefaults> {
    check_gateways(attached.iter().filter_map(|it| it.asked.as_deref()))?;
    let mut plan = DefaultRoutes::default();
    for v6 in [false, true] {
        let of_family: Vec<&DefaultRoute> =
            present.iter().filter(|it| it.route.dst.is_ipv6() == v6).collect();
        match asked(attached, &of_family, v6) {
            Some(moved) => {
                move_to(attached, &of_family, &moved, &mut plan.steps);
                plan.moved.push(moved);
            }
            // Who asks for another family has said nothing of this one.
            None => demote(attached, &of_family, v6, &mut plan.steps),
        }
    }
    Ok(plan)
}

fn asked(attached: &[Attached], present: &[&DefaultRoute], v6: bool) -> Option<Moved> {
    let wish = |(to, it): (usize, &Attached)| {
        let gateways = it.asked.as_ref()?;
        match gateways.iter().find(|gateway| gateway.is_ipv6() == v6) {
            Some(gateway) => Some(Moved { v6, to, gateway: Some(*gateway) }),
            None => {
                let has = present.iter().any(|route| route.ifname == it.ifname.as_str());
                (gateways.is_empty() && has).then_some(Moved { v6, to, gateway: None })
            }
        }
    };
    let wishes: Vec<Moved> = attached.iter().enumerate().filter_map(wish).collect();
    wishes.iter().find(|it| it.gateway.is_some()).or_else(|| wishes.first()).cloned()
}

fn move_to(attached: &[Attached], present: &[&DefaultRoute], moved: &Moved, steps: &mut Vec<Step>) {
    let to = attached[moved.to].ifname.as_str();
    let stays =
        |it: &DefaultRoute| it.ifname == to && (moved.gateway.is_none() || it.route.gateway == moved.gateway);
    let known = |it: &DefaultRoute| attached.iter().any(|other| other.ifname.as_str() == it.ifname);
    let (kept, lost): (Vec<&DefaultRoute>, Vec<&DefaultRoute>) =
        present.iter().copied().filter(|it| known(it)).partition(|it| stays(it));
    steps.extend(lost.into_iter().map(delete));
    if let Some(gateway) = moved.gateway
        && kept.is_empty()
    {
        let dst = match gateway {
            IpAddr::V4(_) => "0.0.0.0/0",
            IpAddr::V6(_) => "::/0",
        };
        let dst = dst.parse().expect("is a network");
        let route = RouteVia {
            dst,
            gateway: Some(gateway),
            priority: None,
            table: None,
            scope: None,
            mtu: None,
            advmss: None,
            protocol: None,
        };
        steps.push(Step::AddRoute { ifname: to.to_owned(), route });
    }
}

fn demote(attached: &[Attached], present: &[&DefaultRoute], v6: bool, steps: &mut Vec<Step>) {
    let of = |it: &Attached| -> Vec<&DefaultRoute> {
        present.iter().copied().filter(|route| route.ifname == it.ifname.as_str()).collect()
    };
    let metric = |it: &DefaultRoute| it.route.priority.unwrap_or(if v6 { V6_METRIC } else { 0 });
    // Who may take over stands before the others, whatever its place.
    let (overriding, others): (Vec<&Attached>, Vec<&Attached>) = attached.iter().partition(|it| it.overrides);
    let mut order = overriding.into_iter().chain(others);
    let Some(mut worst) = order.find_map(|it| of(it).into_iter().map(metric).max()) else { return };
    for it in order {
        for route in of(it) {
            if worst < metric(route) {
                continue;
            }
            worst = worst.saturating_add(STEP);
            steps.push(delete(route));
            let behind = RouteVia { priority: Some(worst), ..route.route.clone() };
            steps.push(Step::AddRoute { ifname: route.ifname.clone(), route: behind });
        }
    }
}

fn delete(it: &DefaultRoute) -> Step {
    Step::DeleteRoute { ifname: it.ifname.clone(), route: it.route.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name`, `name=` (an empty list), `name=gateway,gateway`, `name!` (may take over).
    fn attached(texts: &[&str]) -> Vec<Attached> {
        let one = |text: &&str| {
            let (name, asked) = match text.split_once('=') {
                Some((name, list)) => (
                    name,
                    Some(list.split(',').filter(|it| !it.is_empty()).map(|it| it.parse().unwrap()).collect()),
                ),
                None => (text.trim_end_matches('!'), None),
            };
            Attached { ifname: IfName::parse("x", name).unwrap(), asked, overrides: text.ends_with('!') }
        };
        texts.iter().map(one).collect()
    }

    /// `interface gateway [metric]`
    fn present(texts: &[&str]) -> Vec<DefaultRoute> {
        let one = |text: &&str| {
            let words: Vec<&str> = text.split(' ').collect();
            let gateway: IpAddr = words[1].parse().unwrap();
            let dst = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().unwrap();
            let route = RouteVia {
                dst,
                gateway: Some(gateway),
                priority: words.get(2).map(|metric| metric.parse().unwrap()),
                table: Some(254),
                scope: Some(0),
                mtu: None,
                advmss: None,
                protocol: Some(3),
            };
            DefaultRoute { ifname: words[0].to_owned(), route }
        };
        texts.iter().map(one).collect()
    }

    #[track_caller]
    fn check(interfaces: &[&str], routes: &[&str], expected: &[&str]) {
        let plan = default_routes(&attached(interfaces), &present(routes)).unwrap();
        let steps: Vec<String> = plan
            .steps
            .iter()
            .map(|step| {
                step.to_string().replace(" table 254", "").replace(" scope 0", "").replace("route ", "")
            })
            .collect();
        assert_eq!(steps, expected);
    }

    #[test]
    fn the_interface_that_is_asked_for_gets_the_default_route_and_no_other_keeps_one() {
        check(
            &["eth0", "net1=10.1.0.1"],
            &["eth0 10.0.0.1"],
            &["remove 0.0.0.0/0 via 10.0.0.1 from `eth0`", "add 0.0.0.0/0 via 10.1.0.1 to `net1`"],
        );
        check(
            &["eth0", "net1=10.1.0.1"],
            &["eth0 10.0.0.1", "net1 10.1.0.1"],
            &["remove 0.0.0.0/0 via 10.0.0.1 from `eth0`"],
        );
        check(
            &["eth0", "net1=10.1.0.9"],
            &["net1 10.1.0.1"],
            &["remove 0.0.0.0/0 via 10.1.0.1 from `net1`", "add 0.0.0.0/0 via 10.1.0.9 to `net1`"],
        );
    }

    #[test]
    fn families_go_by_themselves() {
        check(
            &["eth0", "net1=fd01::1"],
            &["eth0 10.0.0.1", "eth0 fd00::1"],
            &["remove ::/0 via fd00::1 from `eth0`", "add ::/0 via fd01::1 to `net1`"],
        );
        check(
            &["eth0", "net1=10.1.0.1", "net2=fd01::1"],
            &["eth0 10.0.0.1", "eth0 fd00::1"],
            &[
                "remove 0.0.0.0/0 via 10.0.0.1 from `eth0`",
                "add 0.0.0.0/0 via 10.1.0.1 to `net1`",
                "remove ::/0 via fd00::1 from `eth0`",
                "add ::/0 via fd01::1 to `net2`",
            ],
        );
    }

    #[test]
    fn an_empty_list_keeps_what_the_network_configured_and_never_leaves_the_pod_without() {
        check(
            &["eth0", "net1="],
            &["eth0 10.0.0.1", "eth0 fd00::1", "net1 10.1.0.1"],
            &["remove 0.0.0.0/0 via 10.0.0.1 from `eth0`"],
        );
        check(&["eth0", "net1="], &["eth0 10.0.0.1"], &[]);
    }

    #[test]
    fn a_default_route_that_nobody_asked_for_stands_behind_the_first() {
        check(
            &["eth0", "net1"],
            &["eth0 10.0.0.1", "net1 10.1.0.1"],
            &["remove 0.0.0.0/0 via 10.1.0.1 from `net1`", "add 0.0.0.0/0 via 10.1.0.1 metric 100 to `net1`"],
        );
        check(
            &["eth0", "net1", "net2"],
            &["net2 fd02::1 1024", "eth0 fd00::1 1024", "net1 fd01::1 1024"],
            &[
                "remove ::/0 via fd01::1 metric 1024 from `net1`",
                "add ::/0 via fd01::1 metric 1124 to `net1`",
                "remove ::/0 via fd02::1 metric 1024 from `net2`",
                "add ::/0 via fd02::1 metric 1224 to `net2`",
            ],
        );
        check(&["eth0", "net1"], &["eth0 10.0.0.1", "net1 10.1.0.1 5000"], &[]);
        check(&["eth0", "net1"], &["net1 10.1.0.1"], &[]);
    }

    #[test]
    fn a_network_that_may_take_over_stands_before_the_first() {
        check(
            &["eth0", "net1!"],
            &["eth0 10.0.0.1", "net1 10.1.0.1"],
            &["remove 0.0.0.0/0 via 10.0.0.1 from `eth0`", "add 0.0.0.0/0 via 10.0.0.1 metric 100 to `eth0`"],
        );
        check(&["eth0", "net1!"], &["eth0 10.0.0.1 200", "net1 10.1.0.1 1"], &[]);
    }

    #[test]
    fn interfaces_that_are_not_ours_keep_what_they_have() {
        check(&["eth0", "net1=10.1.0.1"], &["wg0 10.9.0.1"], &["add 0.0.0.0/0 via 10.1.0.1 to `net1`"]);
    }

    #[test]
    fn one_default_route_of_a_family_is_all_that_a_pod_has() {
        let two = attached(&["eth0", "net1=10.1.0.1", "net2=10.2.0.1"]);
        let error = default_routes(&two, &[]).unwrap_err().to_string();
        assert!(error.contains("10.1.0.1 and 10.2.0.1 are gateways of the same family"), "{error}");
        let both = attached(&["eth0", "net1=10.1.0.1,fd01::1"]);
        assert_eq!(
            default_routes(&both, &[]).unwrap().moved,
            [
                Moved { v6: false, to: 1, gateway: Some("10.1.0.1".parse().unwrap()) },
                Moved { v6: true, to: 1, gateway: Some("fd01::1".parse().unwrap()) },
            ]
        );
    }
}
