//! Asks whether there is a CUDA device, on machines where there may not even be a driver.
//!
//! The order matters: every driver call panics when the driver library cannot be loaded, so its presence is asked
//! first, then the driver is initialised, and only then are devices counted.

use cudarc::driver::{result, sys};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// No driver library.
    NoDriver,
    /// A driver that sees no device.
    NoDevice,
    /// At least one device.
    Devices {
        /// How many.
        count: u32,
        /// The name of the first.
        name: String,
    },
    /// The driver is there and does not work.
    Failed(String),
}

/// Looks for devices. Takes some 100 ms where there is a driver, since that is what its initialisation takes.
pub fn probe() -> Probed {
    #[expect(unsafe_code, reason = "loading a library runs its initialisers")]
    // SAFETY: only NVIDIA's driver library is loaded, by its own name; its initialisers have no preconditions.
    let present = unsafe { sys::is_culib_present() };
    if !present {
        return Probed::NoDriver;
    }
    match devices() {
        Ok(None) => Probed::NoDevice,
        Ok(Some((count, name))) => Probed::Devices { count, name },
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Probed::NoDevice,
        Err(error) => Probed::Failed(error.to_string()),
    }
}

fn devices() -> Result<Option<(u32, String)>, result::DriverError> {
    result::init()?;
    let count = u32::try_from(result::device::get_count()?).unwrap_or(0);
    if count == 0 {
        return Ok(None);
    }
    let name = result::device::get_name(result::device::get(0)?)?;
    Ok(Some((count, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_never_panics() {
        let found = probe();
        assert_eq!(found, probe(), "the same machine answers the same twice");
    }
}
