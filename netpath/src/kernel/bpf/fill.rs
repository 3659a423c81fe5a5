//! Filling maps that take the place of others: ids, generations and numbers stay what records and events name.

use netpath_ebpf::abi::{Master, Meta, Owner, ZoneSlot};

use super::batch::Bulk;
use super::maps::{EVENT_BURST, Maps, MapsError, budget, get, set};
use super::zones::ZoneContent;

impl Maps {
    /// Writes the rows of masters and the ids that were ever given away, as another tree had them.
    pub fn restore(
        &mut self,
        old: &Meta,
        masters: &[(u16, Master)],
        owners: &[(u32, Owner)],
    ) -> Result<(), MapsError> {
        let mut meta: Meta = get(&self.meta, "meta", 0)?;
        let rows = self.owners.len();
        meta.last_endpoint_id = if old.last_endpoint_id < rows { old.last_endpoint_id } else { 0 };
        set(&mut self.meta, "meta", 0, meta)?;
        for (id, master) in masters {
            self.set_master(*id, master)?;
        }
        // What was given away beyond the last row is of no use any more.
        let kept = || owners.iter().filter(|(id, _)| *id < rows);
        Bulk::open(self.pins(), "owners")?.write(kept().copied())?;
        Bulk::open(self.pins(), "budgets")?.write(kept().map(|(id, _)| (*id, budget(EVENT_BURST))))
    }

    /// A row of its own for a zone that another tree had, as that generation.
    pub fn restore_zone(
        &mut self,
        name: &str,
        digest: [u8; 16],
        content: &ZoneContent,
        generation: u64,
    ) -> Result<u32, MapsError> {
        let id = self.free_zone()?;
        let before = ZoneSlot { generation: generation.saturating_sub(1), ..content.slot };
        // The slot that is not in force: writing the zone takes the other one, and counts on from here.
        set(&mut self.zone_slots, "zone_slots", 2 * id, before)?;
        self.write_zone(id, name, digest, content)?;
        Ok(id)
    }
}
