//! What a drop event means.
