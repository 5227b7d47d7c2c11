//! A vector whose places are handed out, given back and handed out again.
//!
//! Places are 32-bit numbers, half a pointer, and stay where they are when others come and go. It
//! never shrinks: it is as large as what it held at its fullest, which its owner bounds.

use std::ops::{Index, IndexMut};

/// A place in a [`Slab`].
pub(super) type Place = u32;

/// The place of nothing.
pub(super) const NOWHERE: Place = Place::MAX;

/// See the module. A place that was given back holds the default value.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Vec<T>,
    free: Vec<Place>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: Default> Slab<T> {
    /// Takes a place for `item`.
    pub(super) fn insert(&mut self, item: T) -> Place {
        if let Some(place) = self.free.pop() {
            self[place] = item;
            return place;
        }
        self.items.push(item);
        (self.items.len() - 1) as Place
    }

    /// Gives a place back, and what it held to the caller.
    pub(super) fn remove(&mut self, place: Place) -> T {
        self.free.push(place);
        std::mem::take(&mut self[place])
    }

    /// Places in use.
    pub(super) fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Bytes of the places, used and free.
    pub(super) fn bytes(&self) -> usize {
        self.items.capacity() * size_of::<T>() + self.free.capacity() * size_of::<Place>()
    }
}

/// Places come from [`Slab::insert`] alone and are never computed from input, so they are within.
impl<T> Index<Place> for Slab<T> {
    type Output = T;

    fn index(&self, place: Place) -> &T {
        &self.items[place as usize]
    }
}

impl<T> IndexMut<Place> for Slab<T> {
    fn index_mut(&mut self, place: Place) -> &mut T {
        &mut self.items[place as usize]
    }
}
