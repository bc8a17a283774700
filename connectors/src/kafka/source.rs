//! Reading topics. A process has one consumer, connected, served and destroyed on the control thread; each worker polls
//! the queues of its own partitions (`reader`), which were split off before anything was assigned, and
//! is woken by librdkafka's callback. A partition belongs to one worker for a whole run.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millstream::{
    Bytes, Change, CheckpointId, Error, ErrorKind, Lag, Offsets, OpenSource, Progress, Result, SharedSource, Wake,
};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::{ClientContext, Offset, Statistics, TopicPartitionList};

use super::client::{Heard, Settings};
use super::commit::Commits;
use super::error::error;
use super::lock;
use super::reader::Read;
use super::start::{DataLoss, End, Span, Starting, next, not_a_list};
use super::topic::Topic;

/// What the consumer tells, on whichever thread polls the main queue: the control thread.
pub(super) struct Context {
    heard: Heard,
    statistics: Mutex<Option<Statistics>>,
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.note(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        *lock(&self.statistics) = Some(statistics);
    }
}

impl ConsumerContext for Context {}

/// A partition as reader, commit and report see it.
pub(super) struct Shared {
    pub(super) span: Span,
    /// The offset after the last message that the reader has taken from its queue.
    pub(super) polled: AtomicI64,
    /// The reader is taking messages, so the client's position is ahead of `polled`; stays set when it left early, or
    /// took a message that it did not keep.
    pub(super) draining: AtomicBool,
    /// Where the client says the partition stands; beyond control records too.
    position: AtomicI64,
    /// The end of the log, as last heard.
    high: AtomicI64,
}

impl Shared {
    /// Where a partition stands whose records before `done` are done: what the client's position has passed beyond it
    /// are control records, which nobody polls. Only when nothing is being polled, and nothing was polled beyond `done`,
    /// looked at *after* the client told its positions.
    pub(super) fn beyond_control_records(&self, done: i64, positions: &Positions) -> i64 {
        let position = positions.get(&self.span).filter(|position| *position > done);
        let at_rest = || !self.draining.load(SeqCst) && self.polled.load(SeqCst) == done;
        position.filter(|_| at_rest()).unwrap_or(done)
    }
}

/// The half of a Kafka source that a process has once.
pub struct KafkaShared<R> {
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) partitions: Vec<Arc<Shared>>,
    pub(super) read: R,
    settings: Arc<Settings>,
    group: String,
    on_data_loss: DataLoss,
    commits: Commits,
    /// A reader stands outside of its log.
    out_of_range: AtomicBool,
    wake: Wake,
    looked: Mutex<Option<Instant>>,
    _claim: Claim,
}

/// Partitions that a source of this process reads for a group: a second one would commit past the first.
struct Claim(Vec<(String, String, String)>);

static CLAIMED: Mutex<BTreeSet<(String, String, String)>> = Mutex::new(BTreeSet::new());

impl Claim {
    fn new(brokers: &str, group: &str, spans: &[Span]) -> Result<Claim> {
        let of = |span: &Span| (brokers.to_owned(), group.to_owned(), span.name.name().to_owned());
        let wanted: Vec<_> = spans.iter().map(of).collect();
        let mut claimed = lock(&CLAIMED);
        if let Some((_, _, partition)) = wanted.iter().find(|wanted| claimed.contains(*wanted)) {
            let doing =
                format!("group `{group}` already reads {partition} in this process: give one of the two another group");
            return Err(Error::new(ErrorKind::Option, doing));
        }
        claimed.extend(wanted.iter().cloned());
        Ok(Claim(wanted))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = lock(&CLAIMED);
        claimed.retain(|claim| !self.0.contains(claim));
    }
}

/// How often positions are compared with ends for the report.
const POSITIONS_EVERY: Duration = Duration::from_secs(1);

impl<R: Read> KafkaShared<R> {
    pub(super) fn connect(topic: &Topic, read: R, open: OpenSource) -> Result<KafkaShared<R>> {
        let group = topic.source.group.clone().unwrap_or_else(|| open.job.clone());
        if group.is_empty() {
            return Err(Error::new(ErrorKind::Option, "the consumer group must have a name"));
        }
        let end = match (&topic.source.end_at, open.bounded) {
            (Some(end), _) if *end != End::Never || !open.bounded => end.clone(),
            (_, true) => End::Latest,
            (_, false) => End::Never,
        };
        let on_data_loss = topic.source.on_data_loss.unwrap_or_default();
        let mut consumer = create(topic, &group, &end, on_data_loss, &open, PARTITIONS_EXPECTED)?;
        let spans = Starting {
            consumer: &consumer,
            settings: &topic.settings,
            heard: &consumer.context().heard,
            topics: &topic.names,
            options: &topic.source,
            group: &group,
            end: &end,
            resume: open.resume.as_ref(),
        }
        .spans()?;
        if spans.len() > PARTITIONS_EXPECTED {
            // Split queues are bounded one by one, and a client's bounds cannot be changed.
            consumer = create(topic, &group, &end, on_data_loss, &open, spans.len())?;
            for name in &topic.names {
                let known = consumer.fetch_metadata(Some(name), topic.settings.connect_within);
                let heard = &consumer.context().heard;
                known.map_err(|cause| topic.settings.unreachable("reach Kafka", cause, heard))?;
            }
        }
        let claim = Claim::new(&topic.settings.brokers, &group, &spans)?;
        let partitions = spans.into_iter().map(|span| {
            let (start, high) = (AtomicI64::new(span.start), AtomicI64::new(span.high));
            let polled = AtomicI64::new(span.start);
            Arc::new(Shared { polled, draining: AtomicBool::new(false), position: start, high, span })
        });
        let partitions: Vec<_> = partitions.collect();
        let consumer = Arc::new(consumer);
        let commits = Commits::start(Arc::clone(&consumer), partitions.clone(), group.clone(), open.wake.clone())?;
        Ok(KafkaShared {
            out_of_range: AtomicBool::new(false),
            wake: open.wake,
            consumer,
            partitions,
            read,
            settings: Arc::clone(&topic.settings),
            group,
            on_data_loss,
            commits,
            looked: Mutex::default(),
            _claim: claim,
        })
    }

    /// Whether reading goes on where the log is, when it is not where it was.
    pub(super) fn skips_losses(&self) -> bool {
        self.on_data_loss == DataLoss::Skip
    }

    /// Errors that the client puts into its main queue.
    fn events(&self) -> Result<()> {
        loop {
            match self.consumer.poll(Duration::ZERO) {
                None => return Ok(()),
                Some(Ok(message)) => {
                    let doing = format!("a record of topic `{}` came past its partition's queue", message.topic());
                    return Err(Error::new(ErrorKind::Source, doing));
                }
                Some(Err(cause)) => self.consider(cause)?,
            }
        }
    }

    /// Whether an error of the client ends the run.
    pub(super) fn consider(&self, cause: KafkaError) -> Result<()> {
        let doing = || format!("cannot read from Kafka at {}", self.settings.brokers);
        if let Some(reason) = self.consumer.context().heard.refusal() {
            return Err(Error::new(ErrorKind::Refused, doing()).caused_by(reason));
        }
        match cause.rdkafka_error_code() {
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset) => {
                // To find the gap takes an answer of the broker, and readers must not wait for one.
                self.out_of_range.store(true, SeqCst);
                self.wake.wake();
                Ok(())
            }
            Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed | Code::UnknownTopicOrPartition) => {
                Err(error(ErrorKind::Source, doing(), cause))
            }
            _ if matches!(cause, KafkaError::MessageConsumptionFatal(_)) => {
                Err(error(ErrorKind::Source, doing(), cause))
            }
            // The client goes on by itself: a broker that is away comes back.
            _ => Ok(()),
        }
    }

    /// The error of a reader that stands outside of its log, with the gap when the broker tells it soon.
    fn data_loss(&self) -> Error {
        let ends = |which| {
            let mut list = TopicPartitionList::with_capacity(self.partitions.len());
            for Shared { span, .. } in self.partitions.iter().map(Arc::as_ref) {
                list.add_partition_offset(&span.topic, span.partition, which).ok()?;
            }
            self.consumer.offsets_for_times(list, Duration::from_secs(2)).ok()
        };
        let gap = || {
            let (low, high) = (ends(Offset::Beginning)?, ends(Offset::End)?);
            self.partitions.iter().find_map(|partition| {
                let span = &partition.span;
                let of = |list: &TopicPartitionList| match list.find_partition(&span.topic, span.partition)?.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                };
                let (wanted, low, high) = (partition.polled.load(SeqCst), of(&low)?, of(&high)?);
                (wanted < low || wanted > high).then(|| {
                    format!(
                        "records of {} are gone: offset {wanted} was to be read next, the log has {low} to {high}",
                        span.name
                    )
                })
            })
        };
        let unknown = || format!("records of group `{}` are gone before they could be read", self.group);
        Error::new(ErrorKind::DataLoss, gap().unwrap_or_else(unknown))
    }

    /// Takes over what the client's statistics and positions say of ends.
    fn look_at_ends(&self) {
        let positions = Positions::of(&self.consumer);
        let statistics = lock(&self.consumer.context().statistics).take();
        for partition in &self.partitions {
            let span = &partition.span;
            if let Some(position) = positions.get(span) {
                partition.position.fetch_max(position, SeqCst);
            }
            let told = statistics
                .as_ref()
                .and_then(|statistics| statistics.topics.get(&span.topic)?.partitions.get(&span.partition));
            if let Some(told) = told {
                // The last stable offset is the end for those who read committed records only.
                let high = if told.ls_offset >= 0 { told.ls_offset } else { told.hi_offset };
                partition.high.fetch_max(high, SeqCst);
            }
        }
    }
}

/// The client's positions by partition.
pub(super) struct Positions(Option<TopicPartitionList>);

impl Positions {
    pub(super) fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Positions {
        Positions(consumer.position().ok())
    }

    pub(super) fn get(&self, span: &Span) -> Option<i64> {
        match self.0.as_ref()?.find_partition(&span.topic, span.partition)?.offset() {
            Offset::Offset(position) => Some(position),
            _ => None,
        }
    }
}

fn create(
    topic: &Topic,
    group: &str,
    end: &End,
    on_data_loss: DataLoss,
    open: &OpenSource,
    partitions: usize,
) -> Result<BaseConsumer<Context>> {
    let mut config = topic.settings.config()?;
    let prefetch = Prefetch::new(open.prefetch, partitions);
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", if on_data_loss == DataLoss::Skip { "earliest" } else { "error" })
        .set("isolation.level", topic.source.isolation.unwrap_or_default().name())
        .set("enable.partition.eof", if *end == End::Never { "false" } else { "true" })
        .set("allow.auto.create.topics", "false")
        .set("queued.min.messages", "100000")
        .set("queued.max.messages.kbytes", prefetch.queued_kbytes.to_string())
        .set("statistics.interval.ms", "5000");
    // The user's own word on these counts.
    for (property, value) in [
        // A partition whose queue was full is left out of fetches for this long; the default is a second.
        ("fetch.queue.backoff.ms", "5".to_owned()),
        ("fetch.error.backoff.ms", "50".to_owned()),
        ("fetch.wait.max.ms", "100".to_owned()),
        ("fetch.min.bytes", "1".to_owned()),
        ("fetch.max.bytes", prefetch.fetch_bytes.to_string()),
        ("fetch.message.max.bytes", prefetch.fetch_partition_bytes.to_string()),
        ("topic.metadata.refresh.interval.ms", "30000".to_owned()),
    ] {
        let aliases = ["max.partition.fetch.bytes"].iter().filter(|_| property == "fetch.message.max.bytes");
        let set = aliases.copied().chain([property]).any(|name| topic.settings.properties.contains_key(name));
        if !set {
            config.set(property, value);
        }
    }
    let heard = Heard::default();
    let context = Context { heard, statistics: Mutex::default() };
    let mut consumer: BaseConsumer<Context> =
        config.create_with_context(context).map_err(|cause| topic.settings.not_created(cause))?;
    let wake = open.wake.clone();
    consumer.set_nonempty_callback(move || wake.wake());
    Ok(consumer)
}

/// Sources with more partitions connect a second time, when their number is known.
const PARTITIONS_EXPECTED: usize = 8;

/// How the memory for what is fetched ahead is divided.
struct Prefetch {
    queued_kbytes: u64,
    fetch_bytes: u64,
    fetch_partition_bytes: u64,
}

impl Prefetch {
    fn new(memory: Bytes, partitions: usize) -> Prefetch {
        // A partition below its limit is fetched once more, a response is held as long as one of its messages is, and
        // each message takes some 400 bytes of the client's own: so a quarter is what queues may hold by their own
        // count (measured: a million records of 1.2 kB in 64 partitions).
        let share = memory.0 / 4 / partitions as u64;
        Prefetch {
            queued_kbytes: (share / 1024).clamp(1, 65_536),
            // The client refuses less than the largest message.
            fetch_bytes: (memory.0 / 4).clamp(1 << 20, 50 << 20),
            fetch_partition_bytes: share.clamp(1 << 14, 1 << 20),
        }
    }
}

impl<R: Read> SharedSource for KafkaShared<R> {
    fn begin(&self) -> Result<()> {
        let mut list = TopicPartitionList::with_capacity(self.partitions.len());
        for Shared { span, .. } in self.partitions.iter().map(Arc::as_ref) {
            list.add_partition_offset(&span.topic, span.partition, Offset::Offset(span.start))
                .map_err(|cause| not_a_list(&span.topic, cause))?;
        }
        // A process that dies before its first commit must find this start again.
        let passing = self.partitions.iter().filter(|partition| partition.span.is_passing);
        let starts: Offsets =
            passing.map(|partition| (partition.span.name.clone(), next(partition.span.start))).collect();
        if !starts.is_empty() {
            self.commits.order(CheckpointId::default(), &starts);
        }
        self.consumer
            .assign(&list)
            .map_err(|cause| error(ErrorKind::Source, format!("cannot read {} partitions", list.count()), cause))
    }

    fn serve(&self) -> Result<Vec<Change>> {
        self.events()?;
        if self.out_of_range.load(SeqCst) {
            return Err(self.data_loss());
        }
        let mut looked = lock(&self.looked);
        if looked.is_none_or(|looked| looked.elapsed() >= POSITIONS_EVERY) {
            *looked = Some(Instant::now());
            self.look_at_ends();
        }
        self.commits.answers().into_iter().map(|answer| answer.map(Change::Committed)).collect()
    }

    fn commit(&self, checkpoint: CheckpointId, offsets: &Offsets) -> Result<Progress> {
        self.commits.order(checkpoint, offsets);
        Ok(Progress::Pending)
    }

    fn started_at(&self) -> Offsets {
        self.partitions.iter().map(|partition| (partition.span.name.clone(), next(partition.span.start))).collect()
    }

    fn lag(&self) -> Vec<Lag> {
        let of = |partition: &Arc<Shared>| {
            let polled = partition.polled.load(SeqCst);
            let at = polled.max(partition.position.load(SeqCst));
            let end = partition.span.end.unwrap_or_else(|| partition.high.load(SeqCst));
            Lag::new(&partition.span.name, next(partition.span.start), next(at.min(end.max(polled))), next(end))
        };
        self.partitions.iter().map(of).collect()
    }

    fn close(&self) {
        self.commits.close();
    }
}

impl<R> fmt::Debug for KafkaShared<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kafka group `{}`, {} partitions", self.group, self.partitions.len())
    }
}
