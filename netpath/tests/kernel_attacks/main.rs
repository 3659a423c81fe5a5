//! The ways out of a private zone, one by one, on a real wire: what a pod with NET_RAW can send is sent from inside
//! its namespace, and the far end, or the sibling that it aims at, is the witness. The number in a test's name is
//! that of the attack in docs/threat-model.md.
//!
//! A frame that must not arrive is counted, once, with its reason, as its true sender's. Each attack has an honest
//! twin that differs in nothing but the lie, and that arrives. What is out of reach of a program on the master is
//! shown here as well: the test says what happens and how somebody can notice.

mod arena;
mod attachment;
#[path = "../common/mod.rs"]
mod common;
mod flood;
mod frames;
mod host;
mod known;
mod large;
mod late;
mod lifecycle;
mod multicast;
mod neighbours;
mod net_admin;
mod siblings;
mod spoofing;
mod tc;
mod tunnels;
