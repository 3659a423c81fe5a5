//! The C library's allocator.

/// Has all threads of this process take memory from one place. Each would have one of its own, and keep what it once
/// needed. For processes whose threads are few and mostly wait.
pub fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: No memory is passed, and the allocator takes its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives the kernel back what was needed for a moment, as to read all records anew: it is kept where it lies between what is still
/// in use. For who has nothing to do.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: No memory is passed, and the allocator takes its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
