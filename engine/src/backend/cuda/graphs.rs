//! Which graphs there are: one for each shape of a step of decodes, made when the shape comes the second time.
//!
//! The first time, its launches are asked for one by one: the library then chooses its algorithms, which it cannot do
//! while launches are recorded, and a shape that comes but once is not worth a recording. A graph holds addresses, so all of
//! them are given up when anything that they name has moved.
//!
//! There are at most as many as there are keys: buckets of rows by powers of two of splits.

use std::collections::BTreeMap;

use super::device::{Device, DeviceError, Graph};
use super::kernels::Address;
use super::plan::GraphKey;

/// Graphs, and the addresses that they were recorded with.
#[derive(Debug, Default)]
pub struct Graphs {
    places: Vec<Address>,
    made: BTreeMap<GraphKey, Option<Graph>>,
}

impl Graphs {
    /// Does `work`, whose launches are the same whenever `key` and `places` are: by its graph, if there is one.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run<D: Device>(
        &mut self,
        device: &mut D,
        key: GraphKey,
        places: &[Address],
        mut work: impl FnMut(&mut D) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if self.places != places {
            self.forget(device);
            self.places.extend_from_slice(places);
        }
        let graph = match self.made.get(&key) {
            None => {
                self.made.insert(key, None);
                return work(device);
            }
            Some(None) => {
                device.record()?;
                let worked = work(device);
                let graph = device.recorded();
                worked?;
                let graph = graph?;
                self.made.insert(key, Some(graph));
                graph
            }
            Some(Some(graph)) => *graph,
        };
        device.replay(graph)
    }

    /// Gives up all graphs.
    pub fn forget(&mut self, device: &mut dyn Device) {
        for graph in std::mem::take(&mut self.made).into_values().flatten() {
            device.forget(graph);
        }
        self.places.clear();
    }
}
