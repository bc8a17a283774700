//! What the consumer complains of while a job reads, and whether that is the end of the run: it is when the client cannot mend
//! it by itself, and the error says what can be done. All else is kept for the report, in `heard`.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream::{Error, ErrorKind, Result};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::consumer::session_timeout;
use super::error::error;
use super::heard::With;
use super::lock;
use super::orders::Order;
use super::partition::Shared;
use super::reader::Read;
use super::source::{KafkaShared, Mode};
use super::start::other_assignor;

impl<R: Read> KafkaShared<R> {
    /// Errors that the client puts into its main queue.
    pub(super) fn events(&self) -> Result<()> {
        self.consumer.context().passed_over().into_iter().try_for_each(|cause| self.consider(cause))?;
        loop {
            match self.consumer.poll(Duration::ZERO) {
                // What was heard hides what came behind it.
                None if self.consumer.context().has_heard() => {}
                None => return Ok(()),
                Some(Ok(message)) => {
                    let is_of = |shared: &&Arc<Shared>| shared.is(message.topic(), message.partition());
                    if let Some(shared) = self.held.all().iter().find(is_of) {
                        // The client's position is beyond it, and it is not read.
                        shared.draining.store(true, SeqCst);
                    }
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
        if let Some(refused) = self.consumer.context().heard.refused(&doing()) {
            return Err(refused);
        }
        match cause.rdkafka_error_code() {
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset) => {
                // To find the gap takes an answer of the broker, and readers must not wait for one.
                self.out_of_range.store(true, SeqCst);
                self.wake.wake();
                Ok(())
            }
            Some(Code::InconsistentGroupProtocol) => Err(other_assignor(&self.group, &self.settings, None)),
            Some(Code::InvalidSessionTimeout) => {
                let doing = format!(
                    "cannot join group `{}` at {}: the broker does not take a `session.timeout.ms` of {} (its \
                     `group.min.session.timeout.ms` and `group.max.session.timeout.ms` say what it takes)",
                    self.group,
                    self.settings.brokers,
                    session_timeout(&self.settings).as_millis()
                );
                Err(Error::new(ErrorKind::Option, doing).caused_by(cause))
            }
            // A topic of a pattern may go.
            Some(Code::UnknownTopicOrPartition) if self.is_of_pattern() => Ok(()),
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::InvalidGroupId
                | Code::FencedInstanceId
                | Code::UnsupportedVersion
                | Code::UnsupportedFeature
                | Code::UnsupportedAssignor
                | Code::UnknownTopicOrPartition,
            ) => Err(error(ErrorKind::Source, doing(), cause)),
            _ if matches!(cause, KafkaError::MessageConsumptionFatal(_)) => {
                Err(error(ErrorKind::Source, doing(), cause))
            }
            // The client goes on by itself: a broker that is away comes back, a full group may have room again.
            _ => {
                self.consumer.context().heard.complain(With::Client, cause.to_string());
                Ok(())
            }
        }
    }

    fn is_of_pattern(&self) -> bool {
        matches!(&self.mode, Mode::Member { pattern: Some(_), .. })
    }

    /// The error of a reader that stands outside of its log, with the gap when the broker tells it soon.
    pub(super) fn data_loss(&self) -> Error {
        let held = self.held.all();
        let ends = |which| {
            let mut list = TopicPartitionList::new();
            for shared in &held {
                list.add_partition_offset(&shared.span.topic, shared.span.partition, which).ok()?;
            }
            self.consumer.offsets_for_times(list, Duration::from_secs(2)).ok()
        };
        let gap = || {
            let (low, high) = (ends(Offset::Beginning)?, ends(Offset::End)?);
            held.iter().find_map(|partition| {
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

    /// Whether a topic was made anew, and is not read until it is read from its beginning.
    ///
    /// # Errors
    /// When that is the end.
    pub(super) fn is_remade(&self, topic: &str) -> Result<bool> {
        if !self.consumer.context().is_remade(topic) {
            return Ok(false);
        }
        if self.skips_losses() {
            return Ok(true);
        }
        let doing = format!(
            "topic `{topic}` was deleted and made anew while it was read: what of the old one was not read is gone, and its \
             offsets say nothing of the new one (`on_data_loss(DataLoss::Skip)` reads that from its beginning)"
        );
        Err(Error::new(ErrorKind::DataLoss, doing))
    }

    /// Of a topic that was made anew the job ends, or reads it from its beginning.
    pub(super) fn look_at_remade(&self) -> Result<()> {
        let Some(topic) = self.consumer.context().first_remade() else { return Ok(()) };
        let is_held = self.held.all().iter().any(|shared| shared.span.topic == topic);
        if !is_held {
            self.consumer.context().rewound(&topic);
        } else if self.is_remade(&topic)? && lock(&self.rewinding).insert(topic.clone()) {
            tracing::warn!(topic, "the topic was made anew, reading it from its beginning");
            self.orders.order(Order::Rewind(topic));
        }
        Ok(())
    }
}
