//! Suite `live`.

use anyhow::Result;

use crate::{Effort, figures::Figures};

pub(crate) fn run(_effort: Effort, _figures: &mut Figures) -> Result<()> {
    Ok(())
}
