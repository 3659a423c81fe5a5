//! What programs are told of the kernel that runs: what they may read of a frame that no helper tells, and how.

use std::sync::OnceLock;

use aya::{
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use aya_obj::Object;
use netpath_ebpf::abi::cookie_by;

use super::{
    BpfError, Hook,
    beside::beside,
    cast,
    loader::{Constants, has_looked, load_classifier},
    object,
    skb::{self, Layout, Origin},
};

/// What programs are told of the kernel that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// What they read of its record of a frame: nothing where they may read it neither by its type nor as the kernel's memory, as before
    /// Linux 6.2 below lockdown's `confidentiality`.
    layout: Layout,
    /// One of [`cookie_by`].
    cookie_by: u32,
}

impl Told {
    fn find() -> Result<Self, BpfError> {
        let layout = readable()?;
        if layout == Layout::default() {
            tracing::warn!("{UNREAD}");
        }
        Ok(Self { layout, cookie_by: cookie_by(&layout)? })
    }

    /// Has it written into the programs.
    pub(super) fn to(&self, constants: &mut Constants) {
        let Layout { sums, summed, checksum, head, network, cast, origin } = self.layout;
        constants
            .set("SKB_SUMS", sums)
            .set("SKB_SUMMED", summed)
            .set("SKB_CHECKSUM", checksum)
            .set("SKB_HEAD", head)
            .set("SKB_NETWORK", network)
            .set("HAVE_SKB_TYPE", u32::from(cast != 0))
            .set("COOKIE_BY", self.cookie_by)
            .set("SKB_SOCKET", origin.socket)
            .set("SOCKET_NETNS", origin.netns)
            .set("NETNS_COOKIE", origin.cookie);
    }

    /// Type number of the call by which this kernel gives out its record of a frame; 0 without one.
    pub(super) const fn cast(&self) -> u32 {
        self.layout.cast
    }

    /// By what TC programs learn the cookie of a frame's network namespace.
    pub const fn netns_cookie(&self) -> &'static str {
        match self.cookie_by {
            cookie_by::HELPER => "helper",
            cookie_by::TYPES => "types",
            _ => "nothing",
        }
    }
}

/// Loads the programs of this binary's object by what is known of this kernel; by [`without_types`] if it refuses them so.
pub fn with_what_is_known<T>(load: impl Fn(Object, &Told) -> Result<T, BpfError>) -> Result<T, BpfError> {
    let (told, object) = beside(Told::find, object::parse);
    let told = told?;
    let loaded = load(object?, &told);
    match without_types(&told, &loaded) {
        Some(told) => load(object::parse()?, &told),
        None => loaded,
    }
}

/// What to tell programs once more that were refused: a kernel may take the way to a cookie in a program that does nothing else, and
/// not among all that these do. Better they know less of a frame than that nobody is policed.
///
/// Only where the verifier has said no of a program that goes that way, which it then says of that program each time. Whatever else fails,
/// a signal or no memory, may pass; it would last as long as the programs.
fn without_types<T>(told: &Told, loaded: &Result<T, BpfError>) -> Option<Told> {
    let Err(BpfError::Program { program, source }) = loaded else { return None };
    let ProgramError::LoadError { io_error, .. } = &**source else { return None };
    let refusals = [libc::EINVAL, libc::EACCES, libc::E2BIG];
    let is_refused = io_error.raw_os_error().is_some_and(|number| refusals.contains(&number));
    if told.cookie_by != cookie_by::TYPES || *program == Hook::Xdp.name() || !is_refused {
        return None;
    }
    // Without what the verifier wrote.
    tracing::warn!(program, error = %io_error, "{UNKNOWN_SENDERS}");
    Some(Told { cookie_by: cookie_by::NOTHING, ..*told })
}

/// Whether TC programs of this kernel learn from which network namespace a frame was sent.
pub fn has_netns_cookie() -> Result<bool, BpfError> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let found = with_what_is_known(|object, told| {
        // Whether they do is known when they have been taken.
        if told.cookie_by == cookie_by::TYPES {
            object::verify_by(object, told)?;
        }
        Ok(told.cookie_by != cookie_by::NOTHING)
    })?;
    Ok(*FOUND.get_or_init(|| found))
}

/// How TC programs learn the cookie of a frame's network namespace. Both take as long; the helper is a promise of the kernel's, and its
/// types are there seven releases longer.
fn cookie_by(layout: &Layout) -> Result<u32, BpfError> {
    let is_told = layout.cast != 0 && layout.origin != Origin::default();
    Ok(match () {
        () if is_taken(&cast::ask_for_cookie())? => cookie_by::HELPER,
        () if is_told && is_taken(&cast::walk_to_cookie(layout))? => cookie_by::TYPES,
        () => cookie_by::NOTHING,
    })
}

/// Whether the kernel takes a program of TC.
fn is_taken(instructions: &[u64]) -> Result<bool, BpfError> {
    match load_classifier("netpath_probe", instructions) {
        Ok(_) => Ok(true),
        Err(error) if has_looked(&error) => Ok(false),
        Err(error) => Err(BpfError::Probe { source: Box::new(ProgramError::IOError(error)) }),
    }
}

fn readable() -> Result<Layout, BpfError> {
    let found = skb::layout()?;
    if found.cast != 0 && is_taken(&cast::all_reads(&found))? {
        return Ok(found);
    }
    let may_read = is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_probe_read_kernel)
        .map_err(|source| BpfError::Probe { source: Box::new(source) })?;
    Ok(if may_read { Layout { cast: 0, ..found } } else { Layout::default() })
}

/// What people are told where programs do not read the kernel's record of a frame.
pub const UNREAD: &str = "this kernel does not let programs see what it will still do to a frame: where a pod has a checksum written and \
                          how a frame is cut is not checked (docs/threat-model.md, 29)";

/// What people are told where programs could not be loaded with a way to cookies that the kernel has taken alone.
const UNKNOWN_SENDERS: &str = "this kernel refuses a program that reads by its types whose namespace a frame is from; all are loaded \
                               without: a borrowed MAC is told as before Linux 6.2 (docs/threat-model.md)";

/// Whether the programs of this kernel read its record of a frame.
pub fn reads_frames() -> Result<bool, BpfError> {
    Ok(readable()? != Layout::default())
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya_obj::VerifierLog;

    use super::*;

    fn refused(program: &'static str, number: i32) -> Result<(), BpfError> {
        let (io_error, verifier_log) =
            (io::Error::from_raw_os_error(number), VerifierLog::new("long".to_owned()));
        let source = Box::new(ProgramError::LoadError { io_error, verifier_log });
        Err(BpfError::Program { program, source })
    }

    #[test]
    fn only_a_refusal_of_a_way_by_types_is_tried_again() {
        let told = |cookie_by| Told { layout: Layout::default(), cookie_by };
        let by_types = told(cookie_by::TYPES);
        for program in ["ingress", "egress"] {
            for number in [libc::EACCES, libc::EINVAL, libc::E2BIG] {
                let without = without_types(&by_types, &refused(program, number));
                assert_eq!(without, Some(told(cookie_by::NOTHING)), "{number}");
            }
        }
        assert_eq!(without_types(&by_types, &refused("xdp", libc::EACCES)), None, "it asks for none");
        for number in [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENOSPC, libc::EPERM, 524] {
            assert_eq!(without_types(&by_types, &refused("ingress", number)), None, "{number}: it may pass");
        }
        assert_eq!(without_types(&by_types, &Ok(())), None);
        let untried = Box::new(ProgramError::NotLoaded);
        let untried = Err::<(), _>(BpfError::Program { program: "ingress", source: untried });
        assert_eq!(without_types(&by_types, &untried), None);
        for other in [cookie_by::HELPER, cookie_by::NOTHING] {
            assert_eq!(without_types(&told(other), &refused("ingress", libc::EACCES)), None);
        }
    }
}
