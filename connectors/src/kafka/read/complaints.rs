//! Errors that the consumer reports while a job reads. An error ends the run if the client cannot
//! recover by itself; it then says what can be done. All other errors are kept for the report, in
//! `client_events`.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream::{Error, ErrorKind, Result};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::consumer::session_timeout;
use super::orders::Order;
use super::partition::{Positions, Shared, add_to};
use super::reader::Read;
use super::source::{KafkaShared, Mode};
use super::start::other_assignor;
use crate::kafka::client_events::Concern;
use crate::kafka::error::error;
use crate::lock;

impl<R: Read> KafkaShared<R> {
    /// Handles the errors in the client's main queue; fails if one of them ends the run.
    pub(crate) fn events(&self) -> Result<()> {
        self.consumer.context().passed_over().into_iter().try_for_each(|cause| self.consider(cause))?;
        loop {
            match self.consumer.poll(Duration::ZERO) {
                // The poll returned nothing because it ran a callback: more events may be queued.
                None if self.consumer.context().has_heard() => {}
                None => return Ok(()),
                Some(Ok(message)) => {
                    let is_of = |shared: &&Arc<Shared>| shared.is(message.topic(), message.partition());
                    if let Some(shared) = self.held.all().iter().find(is_of) {
                        // The client's position has passed this record, which no reader gets:
                        // commits must not follow the position.
                        shared.draining.store(true, SeqCst);
                    }
                    let doing = format!("a record of topic `{}` bypassed its partition's queue", message.topic());
                    return Err(Error::new(ErrorKind::Source, doing));
                }
                Some(Err(cause)) => self.consider(cause)?,
            }
        }
    }

    /// Decides whether an error of the client ends the run.
    pub(crate) fn consider(&self, cause: KafkaError) -> Result<()> {
        let doing = || format!("cannot read from Kafka at {}", self.settings.brokers);
        if let Some(refused) = self.consumer.context().events.refused(&doing()) {
            return Err(refused);
        }
        match cause.rdkafka_error_code() {
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset) => {
                // The gap is found later: that needs an answer from the broker, and readers must
                // not wait for one.
                self.out_of_range.store(true, SeqCst);
                self.wake.wake();
                Ok(())
            }
            Some(Code::InconsistentGroupProtocol) => Err(other_assignor(&self.group, &self.settings, None)),
            Some(Code::InvalidSessionTimeout) => {
                let doing = format!(
                    "cannot join group `{}` at {}: the broker does not accept a `session.timeout.ms` of {} (its \
                     limits are `group.min.session.timeout.ms` and `group.max.session.timeout.ms`)",
                    self.group,
                    self.settings.brokers,
                    session_timeout(&self.settings).as_millis()
                );
                Err(Error::new(ErrorKind::Config, doing).caused_by(cause))
            }
            // A topic that matched the pattern may be deleted.
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
            // The client retries by itself: an absent broker may come back, a full group may have
            // room again.
            _ => {
                self.consumer.context().events.complain(Concern::Client, cause.to_string());
                Ok(())
            }
        }
    }

    fn is_of_pattern(&self) -> bool {
        matches!(&self.mode, Mode::Member { pattern: Some(_), .. })
    }

    /// The error for a reader whose position is outside of the log, with the gap if the broker
    /// reports it soon.
    pub(crate) fn data_loss(&self) -> Error {
        let held = self.held.all();
        let ends = |which| {
            let mut list = TopicPartitionList::new();
            for shared in &held {
                add_to(&mut list, (&shared.span.topic, shared.span.partition), which).ok()?;
            }
            self.consumer.offsets_for_times(list, Duration::from_secs(2)).ok().map(|list| Positions::in_list(&list))
        };
        let gap = || {
            let (low, high) = (ends(Offset::Beginning)?, ends(Offset::End)?);
            held.iter().find_map(|partition| {
                let span = &partition.span;
                let (wanted, low, high) = (partition.polled.load(SeqCst), low.get(span)?, high.get(span)?);
                (wanted < low || wanted > high).then(|| {
                    format!(
                        "records of {} are gone: the next offset to read is {wanted}, the log has {low} to {high}",
                        span.name
                    )
                })
            })
        };
        let unknown = || format!("records of group `{}` were gone before they could be read", self.group);
        Error::new(ErrorKind::DataLoss, gap().unwrap_or_else(unknown))
    }

    /// Whether a topic was recreated and must not be read until the client is back at its
    /// beginning.
    ///
    /// # Errors
    /// If it was recreated and the job must not skip lost records.
    pub(crate) fn is_recreated(&self, topic: &str) -> Result<bool> {
        if !self.consumer.context().is_recreated(topic) {
            return Ok(false);
        }
        if self.skips_losses() {
            return Ok(true);
        }
        let doing = format!(
            "topic `{topic}` was deleted and recreated while it was read: unread records of the old topic are gone, and \
             its offsets do not apply to the new one (`on_data_loss(OnDataLoss::Skip)` reads the new one from its beginning)"
        );
        Err(Error::new(ErrorKind::DataLoss, doing))
    }

    /// Handles a recreated topic: the job ends, or reads the topic from its beginning.
    pub(crate) fn look_at_recreated(&self) -> Result<()> {
        let Some(topic) = self.consumer.context().first_recreated() else { return Ok(()) };
        let is_held = self.held.all().iter().any(|shared| shared.span.topic == topic);
        if !is_held {
            self.consumer.context().rewound(&topic);
        } else if self.is_recreated(&topic)? && lock(&self.rewinding).insert(topic.clone()) {
            tracing::warn!(topic, "the topic was recreated, reading it from its beginning");
            self.orders.order(Order::Rewind(topic));
        }
        Ok(())
    }
}
