//! One request, one answer: a blocking netlink socket with a deadline.
//!
//! Requests are written with the types of `netlink-packet-route`. Answers are read by `decode`, which takes the
//! few attributes that are needed and steps over all others, so that no exotic link or route of the node can
//! make a listing fail. There is no runtime behind this: a request and its answer cost two system calls.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::decode;
use super::error::{NetlinkError, Op};

/// How long the kernel may take for one answer; RTNL is a global lock, and a busy node holds it for a while.
const DEADLINE: Duration = Duration::from_secs(10);
/// The largest datagram of a dump is 32 KiB.
const BUFFER: usize = 64 * 1024;
/// How often a listing is read again when it changed meanwhile.
const DUMP_TRIES: u32 = 32;

#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// A socket of the calling thread's namespace; it may be used from any other.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let socket = connect(0).map_err(|source| NetlinkError::Open { source })?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends a request that the kernel only acknowledges.
    pub(super) fn acknowledged(
        &mut self,
        op: Op,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.send(&op, message, flags | NLM_F_ACK)?;
        self.answers(&op, |_, _| {}).map(|_| ())
    }

    /// Sends a request for one object, which `read` takes from the answer.
    pub(super) fn get<T>(
        &mut self,
        op: Op,
        message: RouteNetlinkMessage,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<T, NetlinkError> {
        // The acknowledgement marks the end of the answer, and with it the socket is always in step.
        self.send(&op, message, NLM_F_ACK)?;
        let mut found = None;
        self.answers(&op, |kind, payload| found = read(kind, payload))?;
        found.ok_or(NetlinkError::Malformed { op, what: "the object is missing" })
    }

    /// Lists objects; `read` returns nothing for one that is not wanted.
    pub(super) fn dump<T, R: IntoIterator<Item = T>>(
        &mut self,
        op: Op,
        message: impl Fn() -> RouteNetlinkMessage,
        read: impl Fn(u16, &[u8]) -> R,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            self.send(&op, message(), NLM_F_DUMP)?;
            let mut list = Vec::new();
            let interrupted = self.answers(&op, |kind, payload| list.extend(read(kind, payload)))?;
            if !interrupted {
                return Ok(list);
            }
        }
        Err(NetlinkError::Unstable { op, tries: DUMP_TRIES })
    }

    fn send(&mut self, op: &Op, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = retry(|| self.socket.send(&bytes, 0));
        sent.map(|_| ()).map_err(|source| NetlinkError::Exchange { op: op.clone(), source })
    }

    /// Reads answers to the last request up to its end; returns whether a dump was interrupted by a change.
    fn answers(&mut self, op: &Op, mut each: impl FnMut(u16, &[u8])) -> Result<bool, NetlinkError> {
        let mut interrupted = false;
        loop {
            self.buffer.clear();
            let received = retry(|| self.socket.recv(&mut self.buffer, libc::MSG_TRUNC));
            let length = received.map_err(|source| NetlinkError::Exchange { op: op.clone(), source })?;
            if self.buffer.len() < length {
                return Err(NetlinkError::Malformed { op: op.clone(), what: "a datagram is too long" });
            }
            let mut rest = &self.buffer[..];
            while !rest.is_empty() {
                let short = |_| NetlinkError::Malformed { op: op.clone(), what: "a message is cut off" };
                let message = NetlinkBuffer::new_checked(rest).map_err(short)?;
                let length = decode::aligned(message.length());
                rest = rest.get(length..).unwrap_or_default();
                // What is left of a request that ran into its deadline must not answer this one.
                if message.sequence_number() != self.sequence {
                    continue;
                }
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match decode::refusal(message.flags(), message.payload()) {
                            None => Ok(interrupted),
                            Some(source) => Err(NetlinkError::Refused { op: op.clone(), source }),
                        };
                    }
                    kind => each(kind, message.payload()),
                }
            }
        }
    }
}

/// A socket that hears of changes, for a caller that waits for one.
#[derive(Debug)]
pub(super) struct Monitor(Socket);

impl Monitor {
    /// Subscribes to `groups` in the calling thread's namespace.
    pub(super) fn open(groups: u32) -> Result<Self, NetlinkError> {
        connect(groups).map(Self).map_err(|source| NetlinkError::Open { source })
    }

    /// Waits for any change, at most for `timeout`; returns whether there was one.
    pub(super) fn wait(&self, op: Op, timeout: Duration) -> Result<bool, NetlinkError> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;

        let failed = |source| NetlinkError::Exchange { op: op.clone(), source };
        // Rounded up, or the last millisecond would be spent polling without waiting.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(false),
            Ok(_) => {
                // The content does not matter, the caller looks again; a lost event (`ENOBUFS`) is one, too.
                let mut buffer = Vec::with_capacity(BUFFER);
                match self.0.recv(&mut buffer, libc::MSG_DONTWAIT) {
                    Ok(_) => Ok(true),
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                        Ok(true)
                    }
                    Err(error) => Err(failed(error)),
                }
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

fn connect(groups: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Reasons in words, no copy of the request in each acknowledgement, and dumps filtered by the kernel.
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    socket.set_netlink_get_strict_chk(true)?;
    let deadline = TimeVal::new(DEADLINE.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &deadline)?;
    Ok(socket)
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
