//! Plots.

use std::path::Path;

use anyhow::Result;

use crate::figures::Figures;

pub(crate) fn draw(_directory: &Path, _figures: &Figures) -> Result<()> {
    Ok(())
}
