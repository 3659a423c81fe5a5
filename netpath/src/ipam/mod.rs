//! Address management: `host-local` and `static` in-process, everything else executed from `CNI_PATH`.
