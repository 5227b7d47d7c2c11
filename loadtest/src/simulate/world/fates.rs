//! Workers come, go and become slower.

use anyhow::Result;

use super::{Fate, News, Slot, World};

impl World<'_> {
    pub(super) fn discover(&mut self) -> Result<()> {
        let there = |(worker, slot): (usize, &Slot)| slot.worker.is_some().then_some(worker);
        for replica in &mut self.replicas {
            replica.discover(self.slots.iter().enumerate().filter_map(there))?;
        }
        Ok(())
    }

    pub(super) fn happens(&mut self, place: usize) -> Result<()> {
        let Some(happening) = self.options.happenings.get(place).copied() else {
            return Ok(());
        };
        self.advance(happening.worker);
        let Some(slot) = self.slots.get_mut(happening.worker) else {
            return Ok(());
        };
        match happening.what {
            Fate::Slows(times) => {
                slot.slowdown = times;
                if let Some(engine) = &mut slot.worker {
                    engine.set_slowdown(times);
                }
            }
            Fate::Joins => {
                if slot.worker.is_none() {
                    slot.come(&self.options.worker)?;
                    self.discover()?;
                    self.introduce(happening.worker);
                }
            }
            Fate::Dies => {
                slot.worker = None;
                slot.life += 1;
                let lost = std::mem::take(&mut slot.requests);
                for request in lost {
                    self.at(
                        self.now + self.options.delays.network,
                        News::Broken(request),
                    );
                }
                // The gateway's broken connections tell every replica at once.
                for replica in &mut self.replicas {
                    replica.lost(happening.worker);
                }
            }
        }
        Ok(())
    }
}
