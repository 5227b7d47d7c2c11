//! Which cache group of a model is followed. Pure.
//!
//! A model with several kinds of attention tells of each block once per cache group, under one and
//! the same hash. Of these only one can be followed, or a block that one group dropped would seem
//! gone, or one that it kept still there. It is the first group that stores blocks of a kind that
//! makes prefixes; the decoder lets no other kind through.

use pointsman_proto::kv_events::{Event, GroupEvent};

/// The group that one publisher's stream is followed by.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Groups {
    followed: Option<u32>,
}

impl Groups {
    /// Whether an event is about the followed group.
    pub fn admit(&mut self, event: &GroupEvent) -> bool {
        match event.event {
            Event::AllBlocksCleared => true,
            Event::BlockStored(_) => *self.followed.get_or_insert(event.group) == event.group,
            // Before anything was stored there is nothing to remove.
            Event::BlockRemoved(_) => self.followed.is_none_or(|group| group == event.group),
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_proto::kv_events::{BlockRemoved, BlockStored, Medium};

    use super::*;

    fn stored(group: u32) -> GroupEvent {
        let event = Event::BlockStored(BlockStored {
            block_hashes: Vec::new(),
            parent: None,
            token_ids: Vec::new(),
            block_size: 16,
            lora_name: None,
            medium: Medium::Gpu,
            cache_salt: None,
            extras: Vec::new(),
        });
        GroupEvent { event, group }
    }

    fn removed(group: u32) -> GroupEvent {
        let event = Event::BlockRemoved(BlockRemoved {
            block_hashes: Vec::new(),
            medium: Medium::Gpu,
        });
        GroupEvent { event, group }
    }

    #[test]
    fn the_first_group_that_stores_is_followed_and_no_other() {
        let mut groups = Groups::default();
        assert!(groups.admit(&removed(4)));
        assert!(groups.admit(&stored(1)));
        for (group, followed) in [(0, false), (1, true), (2, false)] {
            assert_eq!(groups.admit(&stored(group)), followed);
            assert_eq!(groups.admit(&removed(group)), followed);
        }
        let event = Event::AllBlocksCleared;
        assert!(groups.admit(&GroupEvent { event, group: 0 }));
    }
}
