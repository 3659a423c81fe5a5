//! What to do to the host: steps as values, each with its undo.
