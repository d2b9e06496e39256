//! Addresses for the devices that are left when others were removed: QEMU would give
//! them those that have become free.

use serde_json::json;

use super::{Device, Work, device};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::qmp::Qmp;

/// The properties that say where on its bus a device is.
const PLACES: [&str; 7] = ["addr", "channel", "scsi-id", "lun", "unit", "nr", "slot"];

impl Work<'_> {
    /// Says of each device where it is, if QEMU would choose that.
    pub(super) fn pin(&mut self, qmp: &mut Qmp, devices: &[Device]) -> Result<()> {
        for word in self.words.iter_mut().filter(|word| word.name == "device") {
            let Some(value) = word.value.as_deref() else { continue };
            let mut fields = Fields::read(value);
            let id = fields.get("id");
            let Some(device) = devices.iter().find(|one| one.id.as_deref() == id && id.is_some())
            else {
                let what = "devices were removed, and one that is left has no id";
                self.out.unknown.push(format!("{what}: `-device {value}` could get another place"));
                continue;
            };
            if device.plugged {
                continue;
            }
            for place in PLACES {
                if fields.has(place) {
                    continue;
                }
                let ask = json!({"path": device.path, "property": place});
                match qmp.execute("qom-get", ask) {
                    Ok(value) if place == "addr" => {
                        fields.set_value(place, device::address(device, value));
                    }
                    Ok(value) => fields.set_value(place, value),
                    Err(Error::Refused { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            if let Some((_, bus)) = device.bus.rsplit_once('/')
                && !fields.has("bus")
            {
                fields.set("bus", bus);
            }
            word.value = Some(fields.write());
        }
        Ok(())
    }
}
