//! From wire format to valid types.
