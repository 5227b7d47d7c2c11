//! A cursor over msgpack bytes that checks every length against the bytes that remain.
//!
//! rmp names the markers; the walking is ours, because the wire comes from another process: a count
//! that the rest of the input cannot hold is refused before anything is reserved for it, and
//! nesting has a bound.

use rmp::Marker;

/// Why a value could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the input ends inside a value")]
    Truncated,
    #[error("arrays and maps nest too deep")]
    TooDeep,
    #[error("the marker 0xc1 is reserved")]
    Reserved,
    #[error("expected {0}")]
    Unexpected(&'static str),
}

/// A position in msgpack bytes. Reading moves it on; after an error its position means nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// An integer in either of msgpack's signs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Integer {
    Unsigned(u64),
    Negative(i64),
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn peek(&self) -> Result<Marker, ReadError> {
        let byte = self.rest.first().ok_or(ReadError::Truncated)?;
        Ok(Marker::from_u8(*byte))
    }

    /// Consumes a nil if one is next.
    pub(super) fn nil(&mut self) -> Result<bool, ReadError> {
        let is_nil = self.peek()? == Marker::Null;
        if is_nil {
            self.marker()?;
        }
        Ok(is_nil)
    }

    pub(super) fn bool(&mut self) -> Result<bool, ReadError> {
        match self.marker()? {
            Marker::False => Ok(false),
            Marker::True => Ok(true),
            _ => Err(ReadError::Unexpected("a truth value")),
        }
    }

    pub(super) fn integer(&mut self) -> Result<Integer, ReadError> {
        let signed = |value: i64| match u64::try_from(value) {
            Ok(value) => Integer::Unsigned(value),
            Err(_) => Integer::Negative(value),
        };
        Ok(match self.marker()? {
            Marker::FixPos(value) => Integer::Unsigned(u64::from(value)),
            Marker::FixNeg(value) => signed(i64::from(value)),
            Marker::U8 => Integer::Unsigned(u64::from(u8::from_be_bytes(self.array()?))),
            Marker::U16 => Integer::Unsigned(u64::from(u16::from_be_bytes(self.array()?))),
            Marker::U32 => Integer::Unsigned(u64::from(u32::from_be_bytes(self.array()?))),
            Marker::U64 => Integer::Unsigned(u64::from_be_bytes(self.array()?)),
            Marker::I8 => signed(i64::from(i8::from_be_bytes(self.array()?))),
            Marker::I16 => signed(i64::from(i16::from_be_bytes(self.array()?))),
            Marker::I32 => signed(i64::from(i32::from_be_bytes(self.array()?))),
            Marker::I64 => signed(i64::from_be_bytes(self.array()?)),
            _ => return Err(ReadError::Unexpected("an integer")),
        })
    }

    pub(super) fn u32(&mut self) -> Result<u32, ReadError> {
        match self.integer()? {
            Integer::Unsigned(value) => u32::try_from(value).ok(),
            Integer::Negative(_) => None,
        }
        .ok_or(ReadError::Unexpected("an integer from 0 to 2^32 - 1"))
    }

    /// A number of any kind, as a float.
    pub(super) fn f64(&mut self) -> Result<f64, ReadError> {
        match self.peek()? {
            Marker::F64 => {
                self.marker()?;
                Ok(f64::from_be_bytes(self.array()?))
            }
            Marker::F32 => {
                self.marker()?;
                Ok(f64::from(f32::from_be_bytes(self.array()?)))
            }
            _ => Ok(match self.integer()? {
                Integer::Unsigned(value) => value as f64,
                Integer::Negative(value) => value as f64,
            }),
        }
    }

    pub(super) fn str(&mut self) -> Result<&'a str, ReadError> {
        let length = match self.marker()? {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 => self.length8()?,
            Marker::Str16 => self.length16()?,
            Marker::Str32 => self.length32()?,
            _ => return Err(ReadError::Unexpected("a string")),
        };
        std::str::from_utf8(self.take(length)?).map_err(|_| ReadError::Unexpected("UTF-8"))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], ReadError> {
        let length = match self.marker()? {
            Marker::Bin8 => self.length8()?,
            Marker::Bin16 => self.length16()?,
            Marker::Bin32 => self.length32()?,
            _ => return Err(ReadError::Unexpected("a byte string")),
        };
        self.take(length)
    }

    /// The number of elements of the array that opens here. At least that many bytes remain.
    pub(super) fn array_len(&mut self) -> Result<usize, ReadError> {
        let count = match self.marker()? {
            Marker::FixArray(count) => usize::from(count),
            Marker::Array16 => self.length16()?,
            Marker::Array32 => self.length32()?,
            _ => return Err(ReadError::Unexpected("an array")),
        };
        self.within(count, count)
    }

    /// The number of entries of the map that opens here. At least twice that many bytes remain.
    pub(super) fn map_len(&mut self) -> Result<usize, ReadError> {
        let count = match self.marker()? {
            Marker::FixMap(count) => usize::from(count),
            Marker::Map16 => self.length16()?,
            Marker::Map32 => self.length32()?,
            _ => return Err(ReadError::Unexpected("a map")),
        };
        self.within(count, count.saturating_mul(2))
    }

    /// Moves past one value of any type and returns its bytes. `nesting` is how many more levels
    /// may open.
    pub(super) fn skip(&mut self, nesting: usize) -> Result<&'a [u8], ReadError> {
        let start = self.rest;
        self.pass(nesting)?;
        Ok(&start[..start.len() - self.rest.len()])
    }

    fn pass(&mut self, nesting: usize) -> Result<(), ReadError> {
        let values = match self.peek()? {
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => self.array_len()?,
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => 2 * self.map_len()?,
            _ => return self.pass_scalar(),
        };
        let nesting = nesting.checked_sub(1).ok_or(ReadError::TooDeep)?;
        for _ in 0..values {
            self.pass(nesting)?;
        }
        Ok(())
    }

    fn pass_scalar(&mut self) -> Result<(), ReadError> {
        let length = match self.marker()? {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::False | Marker::True => {
                0
            }
            Marker::U8 | Marker::I8 => 1,
            Marker::U16 | Marker::I16 | Marker::FixExt1 => 2,
            Marker::FixExt2 => 3,
            Marker::U32 | Marker::I32 | Marker::F32 => 4,
            Marker::FixExt4 => 5,
            Marker::U64 | Marker::I64 | Marker::F64 => 8,
            Marker::FixExt8 => 9,
            Marker::FixExt16 => 17,
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 | Marker::Bin8 => self.length8()?,
            Marker::Str16 | Marker::Bin16 => self.length16()?,
            Marker::Str32 | Marker::Bin32 => self.length32()?,
            // An extension carries one byte of type beside its data.
            Marker::Ext8 => self.length8()? + 1,
            Marker::Ext16 => self.length16()? + 1,
            Marker::Ext32 => self.length32()?.saturating_add(1),
            Marker::Reserved => return Err(ReadError::Reserved),
            Marker::FixArray(_)
            | Marker::Array16
            | Marker::Array32
            | Marker::FixMap(_)
            | Marker::Map16
            | Marker::Map32 => return Err(ReadError::Unexpected("a scalar")),
        };
        self.take(length).map(drop)
    }

    fn within(&self, count: usize, least_bytes: usize) -> Result<usize, ReadError> {
        if least_bytes > self.rest.len() {
            return Err(ReadError::Truncated);
        }
        Ok(count)
    }

    fn marker(&mut self) -> Result<Marker, ReadError> {
        Ok(Marker::from_u8(u8::from_be_bytes(self.array()?)))
    }

    fn length8(&mut self) -> Result<usize, ReadError> {
        Ok(usize::from(u8::from_be_bytes(self.array()?)))
    }

    fn length16(&mut self) -> Result<usize, ReadError> {
        Ok(usize::from(u16::from_be_bytes(self.array()?)))
    }

    fn length32(&mut self) -> Result<usize, ReadError> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(ReadError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ReadError> {
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(ReadError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }
}
