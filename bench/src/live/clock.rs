//! By what traffic is timed.

use std::time::Duration;

use anyhow::Result;
use nix::time::ClockId;

/// Part of the time on the wall below which a thread that is never out of work has not been told all of its time.
const WHOLE: f64 = 0.85;

/// A clock that runs while packets are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// CPU time of the calling thread, in which the soft interrupts run that receive what it sends.
    Thread,
    /// Time on the wall. A kernel that was built with IRQ_TIME_ACCOUNTING keeps soft interrupts apart, so that the
    /// thread's own time lacks the receiving side.
    Wall,
}

impl Clock {
    /// The one to use here: tried on `work`, which does nothing but send, and is interrupted seldom enough that this does
    /// not happen every time.
    pub(super) fn choose(mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        let mut largest = 0.0_f64;
        for _ in 0..50 {
            let (thread, wall) = (Self::Thread.now()?, Self::Wall.now()?);
            work()?;
            let (thread, wall) = (Self::Thread.now()? - thread, Self::Wall.now()? - wall);
            largest = largest.max(thread.as_secs_f64() / wall.as_secs_f64());
        }
        Ok(if largest < WHOLE { Self::Wall } else { Self::Thread })
    }

    /// What it shows.
    pub(super) fn now(self) -> Result<Duration> {
        let clock = match self {
            Self::Thread => ClockId::CLOCK_THREAD_CPUTIME_ID,
            Self::Wall => ClockId::CLOCK_MONOTONIC,
        };
        Ok(clock.now()?.into())
    }

    /// Nanoseconds a frame that a test run takes, of which the kernel says itself how long each took: on the wall it needs
    /// another 20 milliseconds to get ready.
    pub(super) fn live(self, frames: u32, run: impl FnOnce() -> Result<Duration>) -> Result<f64> {
        let begun = self.now()?;
        let each = run()?;
        let all = self.now()? - begun;
        Ok(match self {
            Self::Thread => all.as_secs_f64() * 1e9 / f64::from(frames),
            Self::Wall => each.as_secs_f64() * 1e9,
        })
    }

    /// What its nanoseconds are.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Thread => "CPU nanoseconds",
            Self::Wall => {
                "Nanoseconds (of the wall: this kernel keeps soft interrupts apart from a thread's CPU time)"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_was_not_told_of_its_time_looks_at_the_wall() {
        let rest = || {
            std::thread::park_timeout(Duration::from_millis(1));
            Ok(())
        };
        assert_eq!(Clock::choose(rest).expect("clocks"), Clock::Wall);
    }
}
