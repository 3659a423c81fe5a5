//! The cables: every machine has a leg in the public and in the private network, as in the lab.

use anyhow::Result;

use super::machine::Machine;

/// The interface of the public network, by which nodes reach each other and the internet.
pub(crate) const PUBLIC: &str = "enp0s3";
/// The interface of the private network, the master of the pods' second interfaces.
pub(crate) const PRIVATE: &str = "enp0s8";

/// Number of the control plane's machine in both networks.
pub(crate) const CONTROL_PLANE: u8 = 10;

/// Address of a machine in the public network.
pub(crate) fn public(number: u8) -> String {
    format!("10.0.2.{number}")
}

/// The pods' addresses on a node.
pub(crate) fn pods(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// One machine whose bridges are the two networks.
pub(crate) fn switch(switch: &Machine) -> Result<()> {
    for bridge in ["public", "private"] {
        switch.ip(&format!("link add {bridge} type bridge"))?;
        switch.ip(&format!("link set {bridge} up"))?;
    }
    Ok(())
}

/// The gateway of both networks, and what lies behind it.
pub(crate) fn gateway(switch: &Machine, gateway: &Machine) -> Result<()> {
    cable(switch, gateway, "public", PUBLIC)?;
    cable(switch, gateway, "private", PRIVATE)?;
    gateway.sh(&format!(
        "ip addr add 10.0.2.2/24 dev {PUBLIC}
         ip addr add 10.12.34.254/24 dev {PRIVATE}
         ip addr add 2001:db8:12:34::fe/64 dev {PRIVATE} nodad
         ip addr add 8.8.8.8/32 dev lo
         ip addr add 2001:4860:4860::8888/128 dev lo nodad
         echo 1 > /proc/sys/net/ipv4/ip_forward
         echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
    ))?;
    Ok(())
}

/// Joins a machine to both networks; `others` are the numbers of the other nodes.
pub(crate) fn join(
    switch: &Machine,
    gateway: &Machine,
    machine: &Machine,
    number: u8,
    others: &[u8],
) -> Result<()> {
    cable(switch, machine, "public", PUBLIC)?;
    cable(switch, machine, "private", PRIVATE)?;
    machine.sh(&format!(
        "ip addr add {}/24 dev {PUBLIC}
         ip addr add 10.12.34.{number}/24 dev {PRIVATE}
         ip addr add 2001:db8:12:34::{number}/64 dev {PRIVATE} nodad
         ip route add default via 10.0.2.2 dev {PUBLIC}
         echo 1 > /proc/sys/net/ipv4/ip_forward",
        public(number)
    ))?;
    for other in others {
        machine.ip(&format!("route replace {} via {} dev {PUBLIC}", pods(*other), public(*other)))?;
    }
    gateway.ip(&format!("route replace {} via {} dev {PUBLIC}", pods(number), public(number)))
}

fn cable(switch: &Machine, machine: &Machine, bridge: &str, leg: &str) -> Result<()> {
    // The interface of a machine that was switched off is gone with it, and its other end as well; the kernel
    // takes a moment for that.
    let port = format!("{leg}-{}", machine.name);
    let port = &port[port.len().saturating_sub(15)..];
    switch.sh(&format!(
        "while ip link show {port} >/dev/null 2>&1; do ip link del {port} || sleep 0.02; done
         ip link add {port} master {bridge} type veth peer name {leg}-new
         ip link set {port} up"
    ))?;
    move_link(switch, machine, &format!("{leg}-new"))?;
    machine.sh(&format!("ip link set {leg}-new name {leg} && ip link set {leg} up"))?;
    Ok(())
}

/// Moves a link from one machine to another. Machines do not see each other's processes: the host moves it.
fn move_link(from: &Machine, to: &Machine, link: &str) -> Result<()> {
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", from.init));
    command.args(["ip", "link", "set", link, "netns", &to.init.to_string()]);
    crate::process::output(&mut command).map(drop)
}
