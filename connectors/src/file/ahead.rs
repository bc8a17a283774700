//! State shared by the feed thread, the workers and the control thread: the blocks read ahead, and
//! how far each file is committed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millstream::connector::{Moment, Offset, Offsets, OpenSource, Partition, Wake};
use millstream::{Clock, Lag};

use crate::lock;

use super::block::Block;

pub(super) struct Ahead {
    state: Mutex<State>,
    /// Wakes the feed thread: there is room, something was committed, the run is over, or a look is
    /// due.
    changed: Condvar,
    clock: Clock,
    /// The memory for each worker's queue, in bytes.
    most: u64,
    is_bounded: bool,
}

#[derive(Default)]
struct State {
    queues: Vec<Queue>,
    /// The feed thread pushes no more blocks.
    has_ended: bool,
    /// The run is over: no worker reads any more.
    is_over: bool,
    is_called: bool,
    /// The feed thread found a worker without room.
    is_full: bool,
    /// When the feed thread, which is resting, looks at the directory next.
    due: Option<Moment>,
    places: HashMap<Partition, Place>,
    /// Files that are gone, and since when, until the engine forgets them too.
    departed: HashMap<Partition, Moment>,
    /// Files that the engine has been asked to forget and has not forgotten yet.
    recalled: HashSet<Partition>,
    /// How often each file was truncated: after each time its contents are another partition.
    cuts: HashMap<String, u64>,
    /// The number of files deleted or moved.
    disposed: u64,
    /// Partitions that the engine no longer reads: their blocks are dropped.
    refused: HashSet<Partition>,
}

#[derive(Default)]
struct Queue {
    blocks: VecDeque<Block>,
    bytes: u64,
    wake: Option<Wake>,
}

/// The offsets of a file.
#[derive(Clone, Debug)]
struct Place {
    path: Partition,
    worker: usize,
    start: u64,
    committed: u64,
    end: u64,
    /// Set while the file is gone, or not found yet in this run: how far it was handed on. Reading
    /// continues there when the file is back.
    left: Option<u64>,
}

/// Separates the partition of a file from the number of times it was truncated.
const CUT: char = '+';

/// What a worker finds in its queue.
pub(super) enum Next {
    Block(Box<Block>),
    Nothing,
    End,
}

/// The largest chunk, and the smallest, however little memory there is.
const CHUNK_MAX: u64 = 64 << 10;
const CHUNK_MIN: u64 = 4 << 10;
/// Files that are gone are forgotten once there are this many, because the engine cuts a checkpoint
/// each time.
const DEPARTED_MAX: usize = 1024;
/// A file that is back within this time is read on, however many are gone: a directory may be
/// remounted.
const AWAY_MAX: Duration = Duration::from_secs(600);

impl Ahead {
    pub(super) fn new(open: &OpenSource) -> Ahead {
        let state = State { queues: (0..open.workers).map(|_| Queue::default()).collect(), ..State::default() };
        Ahead {
            state: Mutex::new(state),
            changed: Condvar::new(),
            clock: open.clock.clone(),
            most: open.prefetch.0 / open.workers as u64,
            is_bounded: open.is_bounded(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    // For the feed thread.

    /// The number of bytes read from a file at once.
    pub(super) fn chunk(&self) -> usize {
        (self.most / 4).clamp(CHUNK_MIN, CHUNK_MAX) as usize
    }

    /// Whether a worker's queue has room for another chunk. An empty queue always has room.
    pub(super) fn has_room(&self, worker: usize) -> bool {
        let mut state = self.lock();
        let bytes = state.queues[worker].bytes;
        let has_room = bytes == 0 || bytes + self.chunk() as u64 <= self.most;
        state.is_full |= !has_room;
        has_room
    }

    pub(super) fn push(&self, worker: usize, block: Block) {
        let block = Block { arrived: self.clock.now(), ..block };
        let mut state = self.lock();
        if block.position.as_ref().is_some_and(|(partition, _)| state.refused.contains(partition)) {
            return;
        }
        let queue = &mut state.queues[worker];
        queue.bytes += block.size();
        queue.blocks.push_back(block);
        if let Some(wake) = &queue.wake {
            wake.wake();
        }
    }

    /// Waits until the thread is called, or until `until`.
    pub(super) fn rest(&self, until: Option<Moment>) {
        // A simulated clock does not wake this thread when it is moved; `serve` does.
        const MOST: Duration = Duration::from_secs(3600);
        let mut state = self.lock();
        state.due = until;
        while !state.is_called && !state.is_over && until.is_none_or(|until| self.clock.now() < until) {
            let left = until.map_or(MOST, |until| until - self.clock.now());
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_called = false;
        state.due = None;
    }

    pub(super) fn end(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.has_ended, true) {
            state.queues.iter().filter_map(|queue| queue.wake.as_ref()).for_each(Wake::wake);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// Whether a bounded run has read all its files.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    /// The partition of what a file contains now, from the partition of the file.
    pub(super) fn contents(&self, file: &str) -> Partition {
        match self.lock().cuts.get(file) {
            None => Partition::new(file),
            Some(cuts) => Partition::new(format!("{file}{CUT}{cuts}")),
        }
    }

    /// Notes that a file was truncated. Its contents are a new partition from now on, so that a
    /// commit of the old contents is not mistaken for one of the new.
    pub(super) fn cut(&self, file: &str) {
        *self.lock().cuts.entry(file.to_owned()).or_default() += 1;
    }

    /// Adds a file that `worker` is to read. Returns the offset where reading begins, as this or an
    /// earlier run left it, and the worker that reads it: the previous one as long as what it read
    /// is not all committed. Returns `None` while the engine is still forgetting the file; the next
    /// look finds it again.
    pub(super) fn arrive(
        &self,
        partition: &Partition,
        path: &Partition,
        end: u64,
        worker: usize,
    ) -> Option<(u64, usize)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.recalled.contains(partition) {
            return None;
        }
        let new = |worker| Place { path: path.clone(), worker, start: 0, committed: 0, end, left: None };
        let place = state.places.entry(partition.clone()).or_insert_with(|| new(worker));
        let begin = place.left.unwrap_or(0);
        if place.left.is_some() {
            let worker = if place.committed < begin { place.worker } else { worker };
            *place = Place { start: begin, committed: place.committed.min(begin), ..new(worker) };
            state.departed.remove(partition);
        }
        Some((begin, place.worker))
    }

    /// Sets the end of a file whose length has changed.
    pub(super) fn stretch(&self, partition: &Partition, end: u64) {
        if let Some(place) = self.lock().places.get_mut(partition) {
            place.end = end;
        }
    }

    /// Notes that a file is gone and was handed on up to `at`.
    pub(super) fn depart(&self, partition: &Partition, at: u64) {
        let mut state = self.lock();
        if let Some(place) = state.places.get_mut(partition) {
            place.left = Some(at);
            place.end = at;
            state.departed.insert(partition.clone(), self.clock.now());
        }
    }

    /// Counts a file that the source deleted or moved.
    pub(super) fn dispose(&self) {
        self.lock().disposed += 1;
    }

    pub(super) fn committed(&self, partition: &Partition) -> u64 {
        self.lock().places.get(partition).map_or(0, |place| place.committed)
    }

    // For the workers.

    pub(super) fn woken_by(&self, worker: usize, wake: Wake) {
        self.lock().queues[worker].wake = Some(wake);
    }

    pub(super) fn take(&self, worker: usize) -> Next {
        let mut state = self.lock();
        let queue = &mut state.queues[worker];
        let Some(block) = queue.blocks.pop_front() else {
            return if state.has_ended { Next::End } else { Next::Nothing };
        };
        queue.bytes -= block.size();
        if std::mem::take(&mut state.is_full) {
            self.call(&mut state);
        }
        Next::Block(Box::new(block))
    }

    /// Whether a worker has taken its last block.
    pub(super) fn is_through(&self, worker: usize) -> bool {
        let state = self.lock();
        state.has_ended && state.queues[worker].blocks.is_empty()
    }

    /// Drops the blocks of these partitions, those in the queue and all later ones.
    pub(super) fn refuse(&self, worker: usize, partitions: &[Partition]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.refused.extend(partitions.iter().cloned());
        let queue = &mut state.queues[worker];
        queue.blocks.retain(|block| !block.is_of(partitions));
        queue.bytes = queue.blocks.iter().map(Block::size).sum();
        self.call(state);
    }

    // For the control thread.

    /// Takes over what an earlier run committed. Its files count as gone until a look finds them.
    pub(super) fn resume(&self, offsets: &Offsets) {
        let mut state = self.lock();
        for (partition, Offset(committed)) in offsets.iter() {
            let path = partition.clone();
            let place = Place { path, worker: 0, start: committed, committed, end: committed, left: Some(committed) };
            state.places.insert(partition.clone(), place);
            state.departed.insert(partition.clone(), self.clock.now());
            let cut = partition.name().rsplit_once(CUT);
            if let Some((file, Ok(cuts))) = cut.map(|(file, cuts)| (file, cuts.parse::<u64>())) {
                let known = state.cuts.entry(file.to_owned()).or_default();
                *known = cuts.max(*known);
            }
        }
    }

    pub(super) fn commit(&self, offsets: &Offsets) {
        let mut state = self.lock();
        for (partition, Offset(committed)) in offsets.iter() {
            if let Some(place) = state.places.get_mut(partition) {
                place.committed = committed;
            }
        }
        if self.is_bounded {
            // A file may be done now, and a bounded run has no further look that would find it.
            self.call(&mut state);
        }
    }

    /// Calls the feed thread when a look is due: the thread sleeps in real time, and the clock may
    /// be simulated.
    pub(super) fn look_when_due(&self) {
        let mut state = self.lock();
        if state.due.is_some_and(|due| self.clock.now() >= due) {
            self.call(&mut state);
        }
    }

    /// Takes the files that have been gone for long and are fully committed, once many files are
    /// gone.
    pub(super) fn forget_departed(&self) -> Vec<Partition> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.departed.len() < DEPARTED_MAX || !state.recalled.is_empty() {
            return Vec::new();
        }
        let now = self.clock.now();
        let is_done = |place: &Place| place.left.is_none_or(|left| place.committed >= left);
        let is_over =
            |partition: &Partition, since: &mut Moment| now - *since >= AWAY_MAX && is_done(&state.places[partition]);
        let gone: Vec<Partition> = state.departed.extract_if(is_over).map(|(partition, _)| partition).collect();
        for partition in &gone {
            state.places.remove(partition);
            let file = partition.name().rsplit_once(CUT).map_or(partition.name(), |(file, _)| file);
            // The contents before a truncation may be gone for long while the file still exists.
            let newest = state.cuts.get(file).map(|cuts| Partition::new(format!("{file}{CUT}{cuts}")));
            if newest.is_some_and(|newest| !state.places.contains_key(&newest)) {
                state.cuts.remove(file);
            }
        }
        state.recalled.extend(gone.iter().cloned());
        gone
    }

    /// Notes that the engine has forgotten these partitions.
    pub(super) fn given_back(&self, partitions: &[Partition]) {
        let mut state = self.lock();
        state.recalled.retain(|partition| !partitions.contains(partition));
    }

    /// The number of files deleted or moved.
    pub(super) fn disposed(&self) -> u64 {
        self.lock().disposed
    }

    /// The lag of the files that are not done; in a bounded run of all files, so that its progress
    /// can be reported.
    pub(super) fn lag(&self) -> Vec<Lag> {
        let lag =
            |place: &Place| Lag::new(&place.path, Offset(place.start), Offset(place.committed), Offset(place.end));
        let mut lag: Vec<Lag> = self
            .lock()
            .places
            .values()
            .filter(|place| self.is_bounded || place.committed < place.end)
            .map(lag)
            .collect();
        lag.sort_by(|left, right| left.partition.cmp(&right.partition));
        lag
    }

    pub(super) fn be_over(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    fn call(&self, state: &mut State) {
        state.is_called = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::block::{Content, Records};

    fn ahead(workers: usize, most: u64) -> Ahead {
        let state = State { queues: (0..workers).map(|_| Queue::default()).collect(), ..State::default() };
        Ahead { state: Mutex::new(state), changed: Condvar::new(), clock: Clock::simulated(), most, is_bounded: false }
    }

    fn block(size: usize) -> Block {
        let (ranges, modified) = (Vec::new(), millstream::EventTime::default());
        let records = Records { bytes: vec![0; size], offset: 0, ranges, header: None, modified };
        let (path, content) = (Partition::new("path"), Content::Records(records));
        Block { path, content, position: None, arrived: Moment::default() }
    }

    #[test]
    fn a_worker_has_room_for_its_share_and_always_for_one_chunk() {
        for most in [0, 1 << 10, 1 << 16, 1 << 20] {
            let ahead = ahead(2, most);
            let mut bytes = 0;
            while ahead.has_room(0) {
                ahead.push(0, block(ahead.chunk()));
                bytes += ahead.chunk() as u64;
            }
            assert!(bytes <= most.max(CHUNK_MIN), "{bytes} of {most}");
            assert!(bytes * 2 >= most, "{bytes} of {most}");
            assert!(ahead.has_room(1), "the other worker is not held up");
        }
    }

    #[test]
    fn a_block_that_is_taken_calls_for_more() {
        let ahead = ahead(1, 1 << 10);
        ahead.push(0, block(1 << 12));
        assert!(!ahead.has_room(0));
        assert!(matches!(ahead.take(0), Next::Block(_)));
        ahead.rest(None);
        assert!(ahead.has_room(0));
        assert!(matches!(ahead.take(0), Next::Nothing));
        ahead.end();
        assert!(matches!(ahead.take(0), Next::End));
    }

    #[test]
    fn what_a_cut_file_holds_is_another_partition() {
        let (first, path) = (ahead(1, 0), Partition::new("a"));
        let before = first.contents("a#1");
        assert_eq!(first.arrive(&before, &path, 9, 0), Some((0, 0)));
        first.cut("a#1");
        let after = first.contents("a#1");
        assert_ne!(before, after);
        assert_eq!(first.arrive(&after, &path, 5, 0), Some((0, 0)));
        first.commit(&[(before.clone(), Offset(9)), (after.clone(), Offset(2))].into_iter().collect());
        first.depart(&before, 9);
        assert_eq!((first.committed(&before), first.committed(&after)), (9, 2));
        // A later run finds the newest partition.
        let second = ahead(1, 0);
        second.resume(&[(before, Offset(9)), (after.clone(), Offset(2))].into_iter().collect());
        assert_eq!(second.contents("a#1"), after);
        assert_eq!(second.arrive(&after, &path, 7, 0), Some((2, 0)), "a file that was away is read on");
    }

    #[test]
    fn files_that_are_gone_for_long_are_forgotten_and_wait_until_the_engine_has() {
        let ahead = ahead(1, 0);
        let partitions: Vec<Partition> = (0..DEPARTED_MAX).map(|file| Partition::new(file.to_string())).collect();
        for partition in &partitions {
            ahead.arrive(partition, partition, 0, 0);
            ahead.depart(partition, 0);
        }
        assert!(ahead.forget_departed().is_empty(), "they may come back");
        ahead.clock.advance(AWAY_MAX);
        assert_eq!(ahead.forget_departed().len(), DEPARTED_MAX);
        assert_eq!(ahead.arrive(&partitions[0], &partitions[0], 1, 0), None);
        ahead.given_back(&partitions);
        assert_eq!(ahead.arrive(&partitions[0], &partitions[0], 1, 0), Some((0, 0)));
    }
}
