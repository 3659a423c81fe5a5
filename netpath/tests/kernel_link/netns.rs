//! Network namespaces and their sysctls.

use std::path::Path;

use netpath::kernel::netns;
use netpath::kernel::sysctl;

use crate::common::{NetNs, chain};

#[test]
fn a_thread_enters_a_namespace_and_comes_back() {
    let (a, b) = (NetNs::new("a"), NetNs::new("b"));
    let own = netns::identity(Path::new("/proc/thread-self/ns/net")).expect("our own");
    let there = a.within(|| netns::identity(Path::new("/proc/thread-self/ns/net")).expect("its own"));
    assert_eq!(there, netns::identity(&a.path()).expect("by its path"));
    assert_ne!(there, own);
    assert_ne!(there, netns::identity(&b.path()).expect("by its path"));
    assert_eq!(netns::identity(Path::new("/proc/thread-self/ns/net")).expect("our own"), own);
    assert!(a.within(|| netns::is_same_as_current(&a.path()).expect("an answer")));
    assert!(!a.within(|| netns::is_same_as_current(&b.path()).expect("an answer")));
    let cookie = netns::cookie_of(&a.path()).expect("entered").expect("a kernel since 5.14");
    assert_eq!(a.within(netns::cookie), Some(cookie));
    assert_ne!(netns::cookie(), Some(cookie));
    assert_ne!(netns::cookie_of(&b.path()).expect("entered"), Some(cookie));
}

#[test]
fn what_is_no_namespace_is_an_error_that_names_it() {
    let error = netns::within(Path::new("/nowhere/ns"), || ()).expect_err("missing");
    assert!(error.is_gone());
    assert!(
        chain(&error).starts_with("cannot open network namespace `/nowhere/ns`: No such file"),
        "{error}"
    );
    let error = netns::within(Path::new("/proc/self/ns/uts"), || ()).expect_err("of another kind");
    assert!(error.to_string().starts_with("cannot enter `/proc/self/ns/uts`"), "{error}");
}

#[test]
fn a_panic_inside_reaches_a_caller_who_is_back() {
    let own = || netns::identity(Path::new("/proc/thread-self/ns/net")).expect("our own");
    let (pod, other, home) = (NetNs::new("pod"), NetNs::new("other"), own());
    let panic = std::panic::catch_unwind(|| pod.within(|| panic!("inside"))).expect_err("it panicked");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    assert_eq!(own(), home);
    let inner = pod.within(|| (other.within(own), own()));
    let of = |netns: &NetNs| netns::identity(&netns.path()).expect("by its path");
    assert_eq!((inner, own()), ((of(&other), of(&pod)), home));
}

#[test]
fn sysctls_are_those_of_the_thread_s_namespace() {
    let (a, b) = (NetNs::new("a"), NetNs::new("b"));
    let key = "net/ipv4/conf/lo/arp_notify";
    a.within(|| sysctl::write(key, "1")).expect("written");
    assert_eq!(a.within(|| sysctl::read(key)).expect("read"), "1");
    assert_eq!(b.within(|| sysctl::read(key)).expect("read"), "0");
    assert_eq!(a.sysctl(key), "1");
    let error = a.within(|| sysctl::write("net/ipv4/conf/nothing/arp_notify", "1")).expect_err("missing");
    assert!(
        chain(&error).contains("cannot set sysctl `net/ipv4/conf/nothing/arp_notify` to 1: No such"),
        "{error}"
    );
    assert!(a.within(|| sysctl::exists("net/ipv4/conf/lo")));
    assert!(!a.within(|| sysctl::exists("net/ipv4/conf/nothing")));
}
