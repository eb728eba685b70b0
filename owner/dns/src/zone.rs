//! Which names there are, whose, and who may see them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

use banger_types::{GroupName, Subnet, VmId, VmName};

/// A VM that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// Its address on the bridge; none on a network of its VMM's own.
    pub address: Option<Ipv4Addr>,
    /// The VMs whose names it may see.
    pub group: Option<GroupName>,
    /// Whether it may ask for names outside.
    pub nat: bool,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The host itself: it sees all names, and asks others for those outside.
    Host,
    /// A guest.
    Guest(Host),
    /// Somebody else: nothing is answered.
    Stranger,
}

/// The names. Clones are handles to the same ones.
#[derive(Clone, Debug, Default)]
pub struct Zone(Arc<RwLock<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    hosts: HashMap<VmId, Host>,
    /// Whose each name and address is, so that a question costs the same however many there are.
    names: HashMap<String, VmId>,
    addresses: HashMap<Ipv4Addr, VmId>,
    subnet: Option<Subnet>,
    serial: u32,
}

impl Inner {
    fn remove(&mut self, vm: &VmId) {
        let Some(host) = self.hosts.remove(vm) else { return };
        // Somebody else may have them by now.
        let name = key(host.name.as_str());
        if self.names.get(&name) == Some(vm) {
            self.names.remove(&name);
        }
        if let Some(address) = host.address
            && self.addresses.get(&address) == Some(vm)
        {
            self.addresses.remove(&address);
        }
    }

    fn at(&self, address: Ipv4Addr) -> Option<&Host> {
        self.hosts.get(self.addresses.get(&address)?)
    }
}

/// Names are compared without regard to case (RFC 4343).
fn key(name: &str) -> String {
    name.to_ascii_lowercase()
}

impl Zone {
    fn read<T>(&self, look: impl FnOnce(&Inner) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut inner);
        inner.serial = inner.serial.wrapping_add(1);
    }

    /// Says where the names' addresses are.
    pub fn set_subnet(&self, subnet: Subnet) {
        self.write(|inner| inner.subnet = Some(subnet));
    }

    /// Adds a VM, or changes it.
    pub fn add(&self, host: Host) {
        self.write(|inner| {
            inner.remove(&host.vm);
            inner.names.insert(key(host.name.as_str()), host.vm.clone());
            if let Some(address) = host.address {
                inner.addresses.insert(address, host.vm.clone());
            }
            inner.hosts.insert(host.vm.clone(), host);
        });
    }

    /// Takes a VM out.
    pub fn remove(&self, vm: &VmId) {
        self.write(|inner| inner.remove(vm));
    }

    /// Returns where the names' addresses are.
    #[must_use]
    pub fn subnet(&self) -> Option<Subnet> {
        self.read(|inner| inner.subnet)
    }

    pub(crate) fn serial(&self) -> u32 {
        self.read(|inner| inner.serial)
    }

    /// Returns who has an address.
    #[must_use]
    pub fn asker(&self, address: IpAddr) -> Asker {
        let IpAddr::V4(address) = address else { return Asker::Stranger };
        self.read(|inner| {
            if inner.subnet.is_some_and(|subnet| subnet.gateway() == address) {
                return Asker::Host;
            }
            inner.at(address).map_or(Asker::Stranger, |guest| Asker::Guest(guest.clone()))
        })
    }

    /// Finds a VM by a name, in whatever case, if the asker may see it.
    pub(crate) fn by_name(&self, name: &[u8], asker: &Asker) -> Option<Host> {
        let name = key(std::str::from_utf8(name).ok()?);
        self.find(asker, |inner| inner.hosts.get(inner.names.get(&name)?))
    }

    /// Finds a VM by its address, if the asker may see it.
    pub(crate) fn by_address(&self, address: Ipv4Addr, asker: &Asker) -> Option<Host> {
        self.find(asker, |inner| inner.at(address))
    }

    fn find(&self, asker: &Asker, look: impl FnOnce(&Inner) -> Option<&Host>) -> Option<Host> {
        let may_see = |host: &Host| match asker {
            Asker::Host => true,
            Asker::Guest(guest) => {
                guest.vm == host.vm || (guest.group.is_some() && guest.group == host.group)
            }
            Asker::Stranger => false,
        };
        self.read(|inner| look(inner).filter(|host| may_see(host)).cloned())
    }
}
