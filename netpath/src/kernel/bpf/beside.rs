//! Two things at a time.

use std::{
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

/// Does the one in a thread of its own and the other one in this; one after the other where no thread can be had.
pub(super) fn beside<A: Send, B>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    let one = Mutex::new(Some(one));
    let run = || one.lock().unwrap_or_else(PoisonError::into_inner).take().map(|one| one());
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, run);
        let other = other();
        let one = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => run(),
        };
        (one.unwrap_or_else(|| unreachable!("it is taken once")), other)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_done_and_what_they_borrow_is_left() {
        let words = ["one".to_owned(), "other".to_owned()];
        assert_eq!(beside(|| words[0].len(), || words[1].len()), (3, 5));
        let panicked = std::panic::catch_unwind(|| beside(|| panic!("it is passed on"), || ()));
        assert!(panicked.is_err());
    }
}
