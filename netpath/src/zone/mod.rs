//! Zone configuration to wanted map content.
