//! What an error of librdkafka means for a job.

use millstream::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// An error that says what was being done. Its kind follows from the code, or is `otherwise`.
pub(crate) fn error(otherwise: ErrorKind, doing: impl Into<String>, cause: KafkaError) -> Error {
    Error::new(kind(otherwise, &cause), doing).caused_by(cause)
}

fn kind(otherwise: ErrorKind, cause: &KafkaError) -> ErrorKind {
    match cause.rdkafka_error_code() {
        Some(code) if is_refusal(code) => ErrorKind::Refused,
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::UnknownTopicId) => {
            ErrorKind::NotFound
        }
        Some(Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::LogTruncation) => ErrorKind::DataLoss,
        Some(
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::Resolve
            | Code::NetworkException,
        ) if otherwise == ErrorKind::Unreachable => ErrorKind::Unreachable,
        _ => otherwise,
    }
}

/// The broker refuses this client; asking again does not help.
pub(crate) fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::InvalidGroupId
            | Code::FencedInstanceId
            | Code::SSL
    )
}

/// No broker has answered yet.
pub(crate) fn is_silence(cause: &KafkaError) -> bool {
    matches!(
        cause.rdkafka_error_code(),
        Some(Code::OperationTimedOut | Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve)
    )
}

/// The client does not know a partition that the brokers have named. It learns of it in a moment.
pub(crate) fn is_unheard_of(cause: &KafkaError) -> bool {
    cause.rdkafka_error_code() == Some(Code::UnknownPartition)
}

/// This record cannot be written; the next one can.
pub(crate) fn is_of_record(code: Code) -> bool {
    is_of_batch(code)
        || matches!(
            code,
            Code::InvalidTopic
                | Code::InvalidPartitions
                | Code::InvalidArgument
                | Code::UnknownPartition
                | Code::UnknownTopic
                | Code::UnknownTopicOrPartition
        )
}

/// A broker refused a batch, perhaps because of another record in it.
pub(crate) fn is_of_batch(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidMessage
            | Code::InvalidRecord
            | Code::InvalidDifferentRecord
            | Code::InvalidTimestamp
            | Code::PolicyViolation
    )
}

/// The group is rebalancing: a moment later it accepts the same from those that are still members.
pub(crate) fn is_changing(code: Code) -> bool {
    matches!(code, Code::RebalanceInProgress | Code::IllegalGeneration | Code::StaleMemberEpoch)
}

/// The group does not know this member, or no longer does.
pub(crate) fn is_lost(code: Code) -> bool {
    matches!(code, Code::UnknownMemberId)
}

/// The commit may succeed when it is sent again.
pub(crate) fn is_transient(code: Code) -> bool {
    is_changing(code)
        || matches!(
            code,
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::WaitingForCoordinator
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::NetworkException
                | Code::BrokerNotAvailable
                | Code::NotEnoughReplicas
                | Code::NotEnoughReplicasAfterAppend
                | Code::UnstableOffsetCommit
                | Code::ThrottlingQuotaExceeded
                | Code::DestroyBroker
                | Code::BrokerDestroy
        )
}
