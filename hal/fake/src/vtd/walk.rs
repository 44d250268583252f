//! Address translation in legacy mode (manual, 3.4 and 3.7; entry formats in chapter 9).

use super::state::{CachedContext, CachedLeaf, Reached, Reason, State};

const READ: u64 = 1;
const WRITE: u64 = 2;
/// SNP of a leaf.
const SNOOP: u64 = 1 << 11;
/// Bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl State {
    pub(super) fn translate(&mut self, requester: u16, iova: u64, write: bool) -> Result<Reached, Reason> {
        let context = self.context(requester)?;
        let bits = (12 + 9 * u32::from(context.levels)).min(64);
        let width = bits.min(u32::from(self.config.guest_bits));
        if width < 64 && iova >> width != 0 {
            return Err(Reason(0x4));
        }
        let needed = if write { WRITE } else { READ };
        let denied = Reason(if write { 0x5 } else { 0x6 });
        if self.absent_leaves.contains_key(&(context.domain, 1, iova >> 12)) {
            return Err(denied);
        }
        let leaf = match self.cached_leaf(context.domain, iova) {
            Some(leaf) => leaf,
            None => self.walk(context, iova, denied)?,
        };
        if leaf.rights & needed == 0 {
            return Err(denied);
        }
        Ok(Reached { phys: leaf.phys | iova & 0xfff, snoops: leaf.snoops })
    }

    /// The context entry of a requester: cached, or from the tables.
    fn context(&mut self, requester: u16) -> Result<CachedContext, Reason> {
        match self.contexts.get(&requester) {
            Some(Some(context)) => return Ok(*context),
            Some(None) => return Err(Reason(0x2)),
            None => {}
        }
        let found = self.read_context(requester);
        match found {
            Ok(context) => {
                self.contexts.insert(requester, Some(context));
            }
            Err(_) if self.config.caching_mode => {
                self.contexts.insert(requester, None);
            }
            Err(_) => {}
        }
        found
    }

    fn read_context(&mut self, requester: u16) -> Result<CachedContext, Reason> {
        let (bus, devfn) = (u64::from(requester >> 8), u64::from(requester & 0xff));
        let root = self.root + bus * 16;
        let (low, high) = self.walk_pair(root).ok_or(Reason(0x8))?;
        if low & 1 == 0 {
            return Err(Reason(0x1));
        }
        if low & !ADDRESS & !1 != 0 || high != 0 {
            return Err(Reason(0xa));
        }
        let (low, high) = self.walk_pair((low & ADDRESS) + devfn * 16).ok_or(Reason(0x9))?;
        if low & 1 == 0 {
            return Err(Reason(0x2));
        }
        if low & 0xff0 != 0 || low >> 52 != 0 || high & 0xffff_ffff_ff00_0080 != 0 {
            return Err(Reason(0xb));
        }
        let (width, domain) = ((high & 7) as u8, (high >> 8) as u16);
        let untranslated = low >> 2 & 3 == 0;
        if !untranslated || width == 0 || self.config.widths >> width & 1 == 0 {
            return Err(Reason(0x3));
        }
        if u32::from(domain) >= self.config.domains() {
            return Err(Reason(0x3));
        }
        if domain == 0 && self.config.caching_mode {
            self.violation("domain 0 used under caching mode");
        }
        Ok(CachedContext { table: low & ADDRESS, levels: width + 2, domain })
    }

    fn walk_pair(&self, address: u64) -> Option<(u64, u64)> {
        Some((self.memory.walk(address)?, self.memory.walk(address + 8)?))
    }

    fn cached_leaf(&self, domain: u16, iova: u64) -> Option<CachedLeaf> {
        (1..=3).find_map(|level| {
            let leaf = self.leaves.get(&(domain, level, iova >> shift(level)))?;
            Some(CachedLeaf { phys: leaf.phys | iova & ((1 << shift(level)) - 1) & !0xfff, ..*leaf })
        })
    }

    fn walk(&mut self, context: CachedContext, iova: u64, denied: Reason) -> Result<CachedLeaf, Reason> {
        let domain = context.domain;
        let (mut level, mut table, mut rights) = self.deepest_table(context, iova);
        loop {
            let index = iova >> shift(level) & 0x1ff;
            let entry = self.memory.walk(table + index * 8).ok_or(Reason(0x7))?;
            if entry & (READ | WRITE) == 0 {
                if self.config.caching_mode {
                    self.absent_leaves.insert((domain, 1, iova >> 12), ());
                }
                return Err(denied);
            }
            rights &= entry;
            let is_leaf = level == 1 || entry & 1 << 7 != 0;
            self.check_reserved(entry, level, is_leaf)?;
            if is_leaf {
                let page = entry & ADDRESS & !((1 << shift(level)) - 1);
                if page >> 20 == 0xfee {
                    return Err(Reason(0xe));
                }
                let leaf = CachedLeaf { phys: page, rights, snoops: entry & SNOOP != 0 };
                self.leaves.insert((domain, level, iova >> shift(level)), leaf);
                let inside = iova & ((1 << shift(level)) - 1) & !0xfff;
                return Ok(CachedLeaf { phys: page | inside, ..leaf });
            }
            table = entry & ADDRESS;
            self.tables.insert((domain, level, iova >> shift(level)), (table, rights));
            level -= 1;
        }
    }

    /// Where to begin: the lowest table that the paging-structure caches know on the way to `iova`.
    fn deepest_table(&self, context: CachedContext, iova: u64) -> (u8, u64, u64) {
        (2..=context.levels)
            .find_map(|level| {
                let &(table, rights) = self.tables.get(&(context.domain, level, iova >> shift(level)))?;
                Some((level - 1, table, rights))
            })
            .unwrap_or((context.levels, context.table, READ | WRITE))
    }

    fn check_reserved(&self, entry: u64, level: u8, is_leaf: bool) -> Result<(), Reason> {
        let bad_snoop = entry & SNOOP != 0 && !(is_leaf && self.config.snoop_control);
        let large = is_leaf && level > 1;
        let bad_size = large && (level > 3 || self.config.large_pages >> (level - 2) & 1 == 0);
        let misaligned = large && entry & ADDRESS & ((1 << shift(level)) - 1) != 0;
        let transient = entry & 1 << 62 != 0;
        if bad_snoop || bad_size || misaligned || transient { Err(Reason(0xc)) } else { Ok(()) }
    }
}

fn shift(level: u8) -> u32 {
    12 + 9 * (u32::from(level) - 1)
}
