//! One record per attachment, and the lock that everything that writes shares.
