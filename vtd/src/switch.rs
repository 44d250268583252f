//! Groups that go from context to context.

use heapless::Vec;
use portcullis_hal::{
    CacheMaintenance, Clock, DeviceId, RegisterIo, TableMemory,
    sync::{Ordering, fence},
};
use portcullis_iommu::Error;

use crate::{
    context::{BusPage, Member, Members, VtdContext, VtdPrepared},
    domain::DomainUsers,
    remapping::VtdIommu,
    spec::entries::ContextEntry,
    table_access::need_pages,
};

impl<R: RegisterIo, M: TableMemory, C: Clock, K: CacheMaintenance, const UNITS: usize>
    VtdIommu<R, M, C, K, UNITS>
{
    /// The devices with their units.
    pub(crate) fn members(&self, devices: &[DeviceId]) -> Result<Members, Error> {
        let mut members = Vec::new();
        for &device in devices {
            let unit = self.place(device).ok_or(Error::NotBehindUnit { device })?;
            members
                .push(Member { device, unit })
                .map_err(|_| Error::BadMemberCount { count: devices.len() })?;
        }
        Ok(Members(members))
    }

    /// Those of a group's devices that are behind a unit.
    pub(crate) fn known_members(&self, devices: &[DeviceId]) -> Members {
        let mut members = Vec::new();
        for &device in devices {
            if let Some(unit) = self.place(device) {
                let _ = members.push(Member { device, unit });
            }
        }
        Members(members)
    }

    /// Puts the context on the units of the members, if it may be there.
    pub(crate) fn admit(&self, members: &Members, context: &VtdContext) -> Result<(), Error> {
        let _one_at_a_time = self.switching.lock();
        for &Member { device, unit: place } in &members.0 {
            let unit = self.units.get(place).ok_or(Error::NotBehindUnit { device })?;
            // SNP would be a reserved bit there.
            if context.tables.is_coherent() && unit.snoop_control().is_none() {
                return Err(Error::NoSnoopControl);
            }
            if !context.units.contains(place) {
                return Err(Error::NotBehindUnit { device });
            }
        }
        self.count(members, |users| users.add(context.domain));
        // Who changes the tables from now on sees that the context is on these units; what was changed
        // before is seen by them.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Takes the reservation of a switch back that does not happen.
    pub(crate) fn dismiss(&self, members: &Members, target: Option<ContextEntry>) {
        if let Some(entry) = target {
            self.count(members, |users| users.remove(ContextEntry::domain(entry.high)));
        }
    }

    fn count(&self, members: &Members, change: impl Fn(&DomainUsers)) {
        for unit in members.0.iter().filter_map(|member| self.units.get(member.unit)) {
            change(&unit.users);
        }
    }

    /// Gives up a switch that was not wholly reserved.
    pub(crate) fn abandon(&self, mut prepared: VtdPrepared) {
        let _one_at_a_time = self.switching.lock();
        self.dismiss(&prepared.members, prepared.target);
        while let Some(BusPage { page, .. }) = prepared.context_tables.pop() {
            self.pool.give_back(page);
        }
    }

    /// Reserves the context tables that the members' buses lack.
    pub(crate) fn reserve_buses(&self, prepared: &mut VtdPrepared) -> Result<(), Error> {
        for &Member { device, unit: place } in &prepared.members.0 {
            let unit = self.units.get(place).ok_or(Error::NotBehindUnit { device })?;
            let bus = device.requester.bus();
            let reserved =
                prepared.context_tables.iter().any(|table| (table.unit, table.bus) == (place, bus));
            if reserved || unit.devices.has_bus(&self.tables_of(unit), bus) {
                continue;
            }
            let page = self.pool.take(1).map_err(need_pages)?;
            if let Err(table) = prepared.context_tables.push(BusPage { unit: place, bus, page }) {
                self.pool.give_back(table.page);
            }
        }
        Ok(())
    }

    /// Puts the reserved context tables in their places.
    pub(crate) fn add_buses(&self, prepared: &mut VtdPrepared) {
        while let Some(BusPage { unit: place, bus, page }) = prepared.context_tables.pop() {
            let unused = match self.units.get(place) {
                Some(unit) => unit.devices.add_bus(&self.tables_of(unit), bus, page),
                None => Some(page),
            };
            if let Some(unused) = unused {
                self.pool.give_back(unused);
            }
        }
    }

    /// Blocks the members and makes their units forget them.
    pub(crate) fn block_members(&self, members: &Members) -> Result<(), Error> {
        self.on_each(self.of(members.units()), |place, unit, tables| {
            unit.block(tables, members.behind(place))
        })
    }

    /// Blocks the members of a prepared switch, then lets them join.
    pub(crate) fn switch(&self, members: &Members, target: Option<ContextEntry>) -> Result<(), Error> {
        let Some(entry) = target else { return self.block_members(members) };
        self.block_members(members).inspect_err(|_| self.dismiss(members, target))?;
        let joined = self.on_each(self.of(members.units()), |place, unit, tables| {
            unit.join(tables, members.behind(place), entry)
        });
        if joined.is_err() {
            // A unit does not answer any more; what it has not cached yet stays closed.
            let _ = self.block_members(members);
        }
        joined
    }
}
