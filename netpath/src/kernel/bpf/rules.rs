//! Which entry of a zone decided how much: a row of `rules` and of `rule_counters` for each.
//!
//! Words and port ranges name rows. A zone that is rewritten keeps the rows of the entries that stay, so that
//! their counts go on; a row whose entry is gone rests for one generation, since programs that run with the old
//! one still count into it.

use aya::maps::{MapError, PerCpuValues};
use aya::util::nr_cpus;
use netpath_ebpf::abi::{
    PortSet, REST_ALLOW, REST_DENY, Rule, RuleCounters, ZONE_RULES, ZoneSlot, rule_kind, zone_verdict,
};

use super::{
    bases,
    maps::{Maps, MapsError, Raw, get, set},
    zones::ZoneContent,
};

/// Rows of a zone that are entries.
pub(super) const OWN: std::ops::Range<u8> = 1..REST_ALLOW;

/// What a rule of a zone has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleCount {
    /// Its number: 0 = no entry matched, [`REST_ALLOW`], [`REST_DENY`], or an entry's.
    pub number: u8,
    /// The entry; all zero where the rule is none.
    pub rule: Rule,
    /// All CPUs together.
    pub counters: RuleCounters,
}

/// Row of the maps for each number in a content, and back.
pub(super) struct Numbers([u8; ZONE_RULES as usize]);

impl Numbers {
    /// Every number stays what it is.
    pub(super) fn same() -> Self {
        let mut number = 0;
        Self([(); ZONE_RULES as usize].map(|()| {
            number += 1;
            number - 1
        }))
    }

    fn of(&self, number: u8) -> u8 {
        self.0.get(usize::from(number)).copied().unwrap_or(0)
    }

    /// `word` with other numbers.
    pub(super) fn word(&self, word: u32) -> u32 {
        let [_, egress, _, ingress] = word.to_le_bytes();
        word & !zone_verdict::RULES | zone_verdict::rules(self.of(egress), self.of(ingress & 0x7f))
    }

    /// `slot` with other numbers.
    pub(super) fn slot(&self, mut slot: ZoneSlot) -> ZoneSlot {
        slot.near_word_v4 = self.word(slot.near_word_v4);
        slot.near_word_v6 = self.word(slot.near_word_v6);
        slot.words_v4 = slot.words_v4.map(|word| self.word(word));
        slot.words_v6 = slot.words_v6.map(|word| self.word(word));
        slot
    }

    /// `set` with other numbers.
    pub(super) fn set(&self, mut set: PortSet) -> PortSet {
        for range in &mut set {
            range.egress_rule = self.of(range.egress_rule);
            range.ingress_rule = self.of(range.ingress_rule);
        }
        set
    }
}

/// Whether two rows are about one entry, whatever generation has it.
pub(super) fn is_same(a: &Rule, b: &Rule) -> bool {
    a.kind != rule_kind::FREE && Rule { generation: 0, ..*a } == Rule { generation: 0, ..*b }
}

impl Maps {
    /// What the rules of zone `id` decided since each came into it; those without an entry first. Empty if the zone
    /// is not loaded.
    pub fn rule_counts(&self, id: u32) -> Result<Vec<RuleCount>, MapsError> {
        let Some(zone) = self.zone(id)? else { return Ok(Vec::new()) };
        let mut counts = Vec::new();
        for number in [0, REST_ALLOW, REST_DENY].into_iter().chain(OWN) {
            let row = row_of(id, number);
            let rule: Rule = get(&self.rules, "rules", row)?;
            if OWN.contains(&number) && !is_in_force(&rule, zone.slot.generation) {
                continue;
            }
            counts.push(RuleCount { number, rule, counters: self.count(row)? });
        }
        Ok(counts)
    }

    fn count(&self, row: u32) -> Result<RuleCounters, MapsError> {
        let values = self.rule_counters.get(&row, 0).map_err(|source| unread("read", source))?;
        let mut before = [0; 4];
        self.bases.add(&bases::RULE_COUNTERS, row, &mut before)?;
        let [tx_packets, tx_bytes, rx_packets, rx_bytes] = before;
        let before = RuleCounters { tx_packets, tx_bytes, rx_packets, rx_bytes };
        Ok(values.iter().fold(before, |sum, Raw(one)| RuleCounters {
            tx_packets: sum.tx_packets.wrapping_add(one.tx_packets),
            tx_bytes: sum.tx_bytes.wrapping_add(one.tx_bytes),
            rx_packets: sum.rx_packets.wrapping_add(one.rx_packets),
            rx_bytes: sum.rx_bytes.wrapping_add(one.rx_bytes),
        }))
    }

    /// The entries of zone `id` in its generation `current`, and their numbers in that order by row.
    pub(super) fn entries(&self, id: u32, current: u64) -> Result<(Vec<Rule>, Numbers), MapsError> {
        let (mut rules, mut numbers) = (Vec::new(), Numbers::same());
        for number in OWN {
            let rule: Rule = get(&self.rules, "rules", row_of(id, number))?;
            if is_in_force(&rule, current) {
                rules.push((number, rule));
            }
        }
        rules.sort_by_key(|(_, rule)| {
            (rule.kind, rule.family, rule.addr, rule.prefix_len, order(&rule.ports))
        });
        for ((number, _), place) in rules.iter().zip(OWN) {
            numbers.0[usize::from(*number)] = place;
        }
        Ok((rules.into_iter().map(|(_, rule)| Rule { generation: 0, ..rule }).collect(), numbers))
    }

    /// Gives the entries of `content` their rows in zone `id`, whose generation `current` is in force; returns where
    /// each is now. Nothing may run any more with a generation before that one.
    pub(super) fn place_rules(
        &mut self,
        id: u32,
        current: u64,
        content: &ZoneContent,
    ) -> Result<Numbers, MapsError> {
        let mut rows = Vec::new();
        for number in OWN {
            rows.push((number, get::<Rule>(&self.rules, "rules", row_of(id, number))?, false));
        }
        let mut numbers = Numbers::same();
        let mut fresh = Vec::new();
        let next = current + 1;
        for (rule, number) in content.rules.iter().zip(OWN) {
            let stays = rows.iter_mut().find(|(_, row, _)| row.generation >= current && is_same(row, rule));
            match stays {
                Some((row, _, taken)) => {
                    *taken = true;
                    numbers.0[usize::from(number)] = *row;
                    set(&mut self.rules, "rules", row_of(id, *row), Rule { generation: next, ..*rule })?;
                }
                None => fresh.push((number, rule)),
            }
        }
        for (number, rule) in fresh {
            let free = rows.iter_mut().find(|(_, row, taken)| !taken && !is_in_force(row, current));
            numbers.0[usize::from(number)] = match free {
                Some((row, _, taken)) => {
                    *taken = true;
                    self.reset_count(row_of(id, *row))?;
                    set(&mut self.rules, "rules", row_of(id, *row), Rule { generation: next, ..*rule })?;
                    *row
                }
                None if rule.kind == rule_kind::DENY => REST_DENY,
                None => REST_ALLOW,
            };
        }
        // Whoever was ended before its flip left rows of a generation that never was.
        for (row, rule, taken) in rows {
            if !taken && current < rule.generation {
                set(&mut self.rules, "rules", row_of(id, row), Rule { generation: current, ..rule })?;
            }
        }
        Ok(numbers)
    }

    /// Forgets what the zone that had row `id` before has counted.
    pub(super) fn reset_rules(&mut self, id: u32) -> Result<(), MapsError> {
        for row in id * ZONE_RULES..(id + 1) * ZONE_RULES {
            set(&mut self.rules, "rules", row, Rule::default())?;
            self.reset_count(row)?;
        }
        Ok(())
    }

    fn reset_count(&mut self, row: u32) -> Result<(), MapsError> {
        let cpus = nr_cpus().map_err(|(_, source)| unread("size", MapError::IoError(source)))?;
        let zeros = PerCpuValues::try_from(vec![Raw(RuleCounters::default()); cpus])
            .map_err(|source| unread("size", MapError::IoError(source)))?;
        self.rule_counters.set(row, zeros, 0).map_err(|source| unread("write", source))?;
        self.bases.forget(&bases::RULE_COUNTERS, row)
    }
}

fn is_in_force(rule: &Rule, current: u64) -> bool {
    rule.kind != rule_kind::FREE && current <= rule.generation
}

/// The order in which a zone's image has ports.
fn order(ports: &PortSet) -> Vec<(u8, u16, u16)> {
    ports.iter().map(|range| (range.protocol, range.first, range.last)).collect()
}

pub(super) fn row_of(zone: u32, number: u8) -> u32 {
    zone * ZONE_RULES + u32::from(number)
}

fn unread(op: &'static str, source: MapError) -> MapsError {
    MapsError::Access { op, map: "rule_counters", source }
}
