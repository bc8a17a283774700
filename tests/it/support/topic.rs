//! A source like a topic: partitions that grow while a job runs, and between its runs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use millstream::connector::{
    CheckpointId, Committed, Offset, Offsets, OpenSource, Partition, Polled, ReadBatch, Reader, Room, SharedSource,
    Wake, Worker,
};
use millstream::{ByteSize, Result, Source};

/// See the module. Clones are the same topic.
#[derive(Clone)]
pub struct Topic<T>(Arc<Log<T>>);

struct Log<T> {
    partitions: Mutex<Vec<Vec<T>>>,
    wakes: Mutex<Vec<Wake>>,
    /// Partitions of which nothing is read.
    held: Mutex<BTreeSet<usize>>,
    /// The most records that a poll returns.
    at_once: usize,
}

impl<T> Topic<T> {
    /// A topic with these records in its partitions.
    pub fn new(partitions: Vec<Vec<T>>, at_once: usize) -> Topic<T> {
        let (partitions, wakes, held) = (Mutex::new(partitions), Mutex::default(), Mutex::default());
        Topic(Arc::new(Log { partitions, wakes, held, at_once }))
    }

    fn partitions(&self) -> MutexGuard<'_, Vec<Vec<T>>> {
        self.0.partitions.lock().unwrap()
    }

    pub fn append(&self, partition: usize, records: impl IntoIterator<Item = T>) {
        self.partitions()[partition].extend(records);
        self.wake();
    }

    /// Reads nothing of a partition for now.
    pub fn hold(&self, partition: usize) {
        self.0.held.lock().unwrap().insert(partition);
    }

    /// Reads all partitions.
    pub fn release(&self) {
        self.0.held.lock().unwrap().clear();
        self.wake();
    }

    fn wake(&self) {
        self.0.wakes.lock().unwrap().iter().for_each(Wake::wake);
    }
}

fn name(index: usize) -> Partition {
    Partition::new(format!("topic/{index}"))
}

/// A run of the job.
pub struct Opened<T> {
    topic: Topic<T>,
    start: Vec<usize>,
}

impl<T: Clone + Send + 'static> Source for Topic<T> {
    type Item = T;
    type Shared = Opened<T>;
    type Reader = TopicReader<T>;

    fn name(&self) -> String {
        "topic".to_owned()
    }

    fn connect(self, open: OpenSource) -> Result<Opened<T>> {
        assert!(open.has_watermark, "the source is told that its stream has a watermark");
        let count = self.partitions().len();
        let at = |index| open.resume.position(&name(index)).map_or(0, |next| next.0 as usize);
        Ok(Opened { start: (0..count).map(at).collect(), topic: self })
    }

    fn reader(shared: &Arc<Opened<T>>, worker: Worker, wake: Wake) -> Result<TopicReader<T>> {
        shared.topic.0.wakes.lock().unwrap().push(wake);
        let own = (0..shared.start.len()).filter(|index| index % worker.peers == worker.index);
        let next = own.map(|index| (index, shared.start[index])).collect();
        Ok(TopicReader { topic: shared.topic.clone(), next, is_told: false })
    }
}

impl<T: Send + 'static> SharedSource for Opened<T> {
    fn begin(&self) -> Result<()> {
        Ok(())
    }

    fn commit(&self, _: CheckpointId, _: &Offsets) -> Result<Committed> {
        Ok(Committed::Now)
    }
}

/// Reads its partitions in their order: the second one once the first is at its end.
pub struct TopicReader<T> {
    topic: Topic<T>,
    next: Vec<(usize, usize)>,
    is_told: bool,
}

impl<T: Clone + Send + 'static> Reader for TopicReader<T> {
    type Item = T;

    fn poll(&mut self, batch: &mut ReadBatch<T>, room: Room) -> Result<Polled> {
        let partitions = self.topic.partitions();
        let held = self.topic.0.held.lock().unwrap();
        let can_be_read =
            |(index, next): &&mut (usize, usize)| *next < partitions[*index].len() && !held.contains(index);
        let Some((index, next)) = self.next.iter_mut().find(can_be_read) else {
            return Ok(Polled::Idle);
        };
        let count = self.topic.0.at_once.min(room.records).min(partitions[*index].len() - *next);
        batch.extend(partitions[*index][*next..*next + count].iter().cloned(), ByteSize(64));
        *next += count;
        batch.read_to(name(*index), Offset(*next as u64));
        Ok(Polled::More)
    }

    fn assigned(&mut self) -> Option<Vec<Partition>> {
        let is_told = std::mem::replace(&mut self.is_told, true);
        (!is_told).then(|| self.next.iter().map(|(index, _)| name(*index)).collect())
    }

    fn is_at_end(&self, partition: &Partition) -> Option<bool> {
        let (index, next) = self.next.iter().find(|(index, _)| name(*index) == *partition)?;
        Some(*next == self.topic.partitions()[*index].len())
    }
}
