//! The table of published ports: which address and port of this machine leads to which port of a VM.

use crate::api::Fault;
use crate::api::vm::Port;
use rusqlite::{Connection, Row, named_params};

/// Those of that VM.
///
/// # Errors
/// The store's.
pub fn of(connection: &Connection, vm_id: &str) -> Result<Vec<Port>, Fault> {
    let mut statement = connection.prepare("SELECT * FROM ports WHERE vm_id = ? ORDER BY port, address")?;
    let rows = statement.query_map([vm_id], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes down one of a VM.
///
/// # Errors
/// The store's; the VM has that place already.
pub fn add(connection: &Connection, vm_id: &str, port: &Port) -> Result<(), Fault> {
    let sql = "INSERT INTO ports (vm_id, address, port, guest) VALUES (:vm_id, :address, :port, :guest)";
    connection.prepare(sql)?.execute(named_params! {
        ":vm_id": vm_id, ":address": port.address.to_string(), ":port": port.port, ":guest": port.guest,
    })?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Port> {
    let address: String = row.get("address")?;
    let address = address.parse().map_err(|_| rusqlite::Error::InvalidQuery)?;
    Ok(Port { address, port: row.get("port")?, guest: row.get("guest")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::Store;
    use crate::daemon::store::vms::{self, tests::planned};
    use std::path::Path;

    #[test]
    fn ports_read_back_and_go_with_their_vm() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let vm = planned(2);
        let port = |address: &str, port, guest| Port { address: address.parse().unwrap(), port, guest };
        let ports = [port("127.0.0.1", 8080, 80), port("::1", 8080, 81), port("0.0.0.0", 9000, 65535)];
        store.change(|t| vms::save(t, &vm)).unwrap();
        store.change(|t| ports.iter().try_for_each(|port| add(t, &vm.id, port))).unwrap();
        assert_eq!(store.change(|t| of(t, &vm.id)).unwrap(), ports);
        assert_eq!(store.change(|t| add(t, &vm.id, &ports[0])).unwrap_err().code, "store");
        assert_eq!(store.change(|t| add(t, &vm.id, &port("::1", 0, 80))).unwrap_err().code, "store");
        // What changes the VM's row leaves them alone.
        store.change(|t| vms::save(t, &vm)).unwrap();
        assert_eq!(store.change(|t| of(t, &vm.id)).unwrap().len(), 3);
        store.change(|t| vms::remove(t, &vm.id)).unwrap();
        assert!(store.change(|t| of(t, &vm.id)).unwrap().is_empty());
    }
}
