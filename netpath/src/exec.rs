//! Runs a plan step by step and undoes it in reverse when a step fails.
