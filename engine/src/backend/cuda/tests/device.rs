//! A device that is this CPU: its memory is ours, its kernels are the shim's, its library is a plain loop.
//!
//! It is as late as a device: nothing is done before somebody waits for it, so that whoever looks too early, or counts on
//! memory that has changed meanwhile, is found out.

#![expect(clippy::many_single_char_names, reason = "the sizes of a product")]

use std::collections::{BTreeMap, VecDeque};

use half::bf16;

use super::super::device::{
    Activation, Argument, Device, DeviceError, Graph, Grid, Memory, Product, StridedCopy, TICKETS,
    Ticket,
};
use super::super::kernels::Address;
use super::cpu_run::{Shape, launch};
use super::memory::{Array, Random};
use crate::backend::exchange::{Exchange, ThreadRank};

/// Activations are bf16.
#[derive(Default)]
pub(super) struct CpuDevice {
    memory: BTreeMap<Address, Array<u8>>,
    order: u64,
    /// What is not done yet.
    queue: VecDeque<Work>,
    /// What is being recorded.
    recording: Option<Vec<Work>>,
    graphs: BTreeMap<Graph, Vec<Work>>,
    /// What was read for tickets, and how many tickets there were.
    read: VecDeque<(Ticket, Vec<u8>)>,
    tickets: u64,
    outstanding: u64,
    /// Of a device that computes with others.
    group: Option<ThreadRank>,
    /// Launches until one fails.
    pub(super) fails_after: Option<usize>,
    /// Why it left its group.
    pub(super) left: Vec<String>,
    /// Kernels that were launched, products of the library, and graphs that were replayed.
    pub(super) launches: BTreeMap<String, usize>,
}

/// What was asked for.
#[derive(Clone)]
enum Work {
    Write(Address, Vec<u8>),
    Copy(StridedCopy),
    Launch(String, Grid, Vec<Vec<u64>>),
    Multiply(Product, [Address; 3]),
    Read(Ticket, Address, usize),
    AddUp(Address, usize),
    Gather([Address; 2], usize),
}

impl std::fmt::Debug for CpuDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuDevice({} buffers)", self.memory.len())
    }
}

impl CpuDevice {
    /// So many of them, which meet where they wait for what they were asked for.
    pub(super) fn group(ranks: usize) -> Vec<Self> {
        let of_rank = |rank| Self {
            group: Some(rank),
            ..Self::default()
        };
        ThreadRank::group(ranks).into_iter().map(of_rank).collect()
    }

    /// The bytes from an address to the end of its memory.
    fn at(&mut self, address: Address) -> &mut [u8] {
        let (first, array) = self.memory.range_mut(..=address).next_back().unwrap();
        &mut array.values_mut()[(address - first) as usize..]
    }

    /// Makes NaN of everything in memory.
    pub(super) fn fill_with_nan(&mut self, memory: Memory) {
        self.wait();
        self.at(memory.address)[..memory.bytes].fill(0xff);
    }

    /// Fails if anything was written outside of any memory.
    pub(super) fn check_guards(&self) {
        self.memory.values().for_each(|array| {
            array.values();
        });
    }

    fn ask(&mut self, work: Work) {
        match &mut self.recording {
            Some(recording) => recording.push(work),
            None => self.queue.push_back(work),
        }
    }

    fn wait(&mut self) {
        assert!(
            self.recording.is_none(),
            "a device that records cannot be waited for"
        );
        while let Some(work) = self.queue.pop_front() {
            self.work(work);
        }
    }

    fn work(&mut self, work: Work) {
        match work {
            Work::Write(to, bytes) => self.at(to)[..bytes.len()].copy_from_slice(&bytes),
            Work::Copy(copy) => {
                for row in 0..copy.rows {
                    let run = self.at(copy.from)[row * copy.from_stride..][..copy.bytes].to_vec();
                    self.at(copy.to)[row * copy.to_stride..][..copy.bytes].copy_from_slice(&run);
                }
            }
            Work::Launch(kernel, grid, values) => {
                self.order += 1;
                let shape = Shape {
                    grid: grid.blocks,
                    threads: grid.threads,
                    shared_bytes: grid.shared_bytes,
                    order: Random(self.order).next(),
                };
                let arguments: Vec<Argument> = values
                    .iter()
                    .map(|value| Argument {
                        value: value.as_ptr().cast(),
                        bytes: size_of_val(value.as_slice()),
                    })
                    .collect();
                launch(&kernel, shape, &arguments);
                self.count(kernel);
            }
            Work::Multiply(product, places) => {
                self.count("library".to_owned());
                self.product(product, places);
            }
            Work::Read(ticket, from, bytes) => {
                let bytes = self.at(from)[..bytes].to_vec();
                self.read.push_back((ticket, bytes));
            }
            Work::AddUp(at, elements) => {
                self.count("add_up".to_owned());
                let mut values = self.values(at, elements);
                self.group.as_ref().unwrap().add_up(&mut values);
                for (to, value) in self.at(at).chunks_exact_mut(2).zip(values) {
                    to.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
                }
            }
            Work::Gather([from, to], bytes) => {
                self.count("gather".to_owned());
                let mut own = vec![0.0_f32; bytes / 4];
                bytemuck::cast_slice_mut::<_, u8>(&mut own)
                    .copy_from_slice(&self.at(from)[..bytes]);
                let mut all: Vec<u8> = Vec::new();
                let group = self.group.as_ref().unwrap();
                group.share(&own, &mut |_, part| {
                    all.extend(bytemuck::cast_slice::<_, u8>(part));
                });
                self.at(to)[..all.len()].copy_from_slice(&all);
            }
        }
    }

    fn count(&mut self, what: String) {
        *self.launches.entry(what).or_default() += 1;
    }

    fn values(&mut self, address: Address, count: usize) -> Vec<f32> {
        let bytes = &self.at(address)[..2 * count];
        let pairs = bytes.chunks_exact(2);
        pairs
            .map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32())
            .collect()
    }

    fn product(&mut self, product: Product, [y, x, weight]: [Address; 3]) {
        let Product {
            m,
            n,
            k,
            y_stride,
            wide,
        } = product;
        let [m, n, k, y_stride] = [m, n, k, y_stride].map(|size| size as usize);
        let (x, weight) = (self.values(x, m * k), self.values(weight, n * k));
        for (row, x) in x.chunks(k).enumerate() {
            for (column, weight) in weight.chunks(k).enumerate() {
                let sum: f32 = x.iter().zip(weight).map(|(x, weight)| x * weight).sum();
                let at = row * y_stride + column;
                if wide {
                    self.at(y)[4 * at..4 * at + 4].copy_from_slice(&sum.to_le_bytes());
                } else {
                    let bytes = bf16::from_f32(sum).to_le_bytes();
                    self.at(y)[2 * at..2 * at + 2].copy_from_slice(&bytes);
                }
            }
        }
    }
}

impl Device for CpuDevice {
    fn name(&self) -> String {
        "this CPU".to_owned()
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        Ok((1 << 30, 1 << 30))
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory, DeviceError> {
        assert!(
            self.recording.is_none(),
            "no memory is taken while a graph is recorded"
        );
        let mut array = Array::<u8>::poisoned(bytes);
        array.values_mut().fill(0);
        let address = array.address();
        self.memory.insert(address, array);
        Ok(Memory { address, bytes })
    }

    fn free(&mut self, memory: Memory) {
        if memory.bytes > 0 {
            self.wait();
            self.memory.remove(&memory.address).unwrap().values();
        }
    }

    fn write(&mut self, to: Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        assert!(self.recording.is_none() && offset + bytes.len() <= to.bytes);
        self.ask(Work::Write(to.address + offset as Address, bytes.to_vec()));
        Ok(())
    }

    fn read(&mut self, from: Memory, offset: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.wait();
        bytes.copy_from_slice(&self.at(from.address)[offset..offset + bytes.len()]);
        Ok(())
    }

    fn read_later(&mut self, from: Memory, bytes: usize) -> Result<Ticket, DeviceError> {
        assert!(bytes <= from.bytes && self.outstanding < TICKETS);
        self.tickets += 1;
        self.outstanding += 1;
        let ticket = Ticket(self.tickets);
        self.ask(Work::Read(ticket, from.address, bytes));
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket, bytes: &mut [u8]) -> Result<(), DeviceError> {
        while self.read.is_empty() {
            let work = self.queue.pop_front().unwrap();
            self.work(work);
        }
        let (found, read) = self.read.pop_front().unwrap();
        assert_eq!((found, read.len()), (ticket, bytes.len()));
        self.outstanding -= 1;
        bytes.copy_from_slice(&read);
        Ok(())
    }

    fn record(&mut self) -> Result<(), DeviceError> {
        assert!(self.recording.is_none());
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn recorded(&mut self) -> Result<Graph, DeviceError> {
        let graph = Graph(self.graphs.len() as u64 + 1);
        self.graphs.insert(graph, self.recording.take().unwrap());
        Ok(graph)
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.count("graph".to_owned());
        self.queue.extend(self.graphs[&graph].iter().cloned());
        Ok(())
    }

    fn forget(&mut self, graph: Graph) {
        // Its number is not used again.
        self.graphs.get_mut(&graph).unwrap().clear();
        self.count("forgotten".to_owned());
    }

    fn copy(&mut self, copy: StridedCopy) -> Result<(), DeviceError> {
        self.ask(Work::Copy(copy));
        Ok(())
    }

    unsafe fn launch(
        &mut self,
        kernel: &str,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<(), DeviceError> {
        if let Some(launches) = &mut self.fails_after {
            if *launches == 0 {
                return Err(DeviceError {
                    doing: format!("launching {kernel}"),
                    reason: "it fell off".to_owned(),
                });
            }
            *launches -= 1;
        }
        let values = arguments.iter().map(|argument| {
            let mut value = vec![0_u64; argument.bytes.div_ceil(8)];
            let to = bytemuck::cast_slice_mut::<u64, u8>(&mut value);
            // SAFETY: an argument's value is as long as it says while the launch is asked for.
            let from =
                unsafe { std::slice::from_raw_parts(argument.value.cast::<u8>(), argument.bytes) };
            to[..argument.bytes].copy_from_slice(from);
            value
        });
        let values = values.collect();
        self.ask(Work::Launch(kernel.to_owned(), grid, values));
        Ok(())
    }

    fn rank(&self) -> (usize, usize) {
        let rank = |group: &ThreadRank| (group.rank(), group.ranks());
        self.group.as_ref().map_or((0, 1), rank)
    }

    fn add_up(
        &mut self,
        at: Address,
        elements: usize,
        activation: Activation,
    ) -> Result<(), DeviceError> {
        assert_eq!(activation, Activation::Bf16);
        self.ask(Work::AddUp(at, elements));
        Ok(())
    }

    fn gather(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.ask(Work::Gather([from, to], bytes));
        Ok(())
    }

    fn leave(&mut self, reason: &str) {
        self.left.push(reason.to_owned());
    }

    fn multiply(
        &mut self,
        product: Product,
        y: Address,
        x: Address,
        weight: Address,
    ) -> Result<(), DeviceError> {
        self.ask(Work::Multiply(product, [y, x, weight]));
        Ok(())
    }
}
