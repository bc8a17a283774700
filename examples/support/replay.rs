//! Replay of dead letters, as a job that ends.

use clap::Args;
use millstream::{Job, Report, Result, Trigger};
use millstream_connectors::{DeadLetter, Kafka, Message};

// Which letters to send back; all of them by default. The others count as done. A doc comment here
// would become the text of `--help` in an example without one of its own.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Only letters of records that were read from this topic
    #[arg(long)]
    pub origin: Option<String>,
    /// Only letters whose cause contains this text
    #[arg(long)]
    pub cause: Option<String>,
}

impl Filter {
    fn lets_through(&self, letter: &DeadLetter) -> bool {
        let topic = letter.origin.as_ref().map(|(topic, ..)| topic);
        self.origin.as_ref().is_none_or(|origin| topic == Some(origin))
            && self.cause.as_ref().is_none_or(|cause| letter.cause.contains(cause))
    }
}

/// Sends the letters that are in the topic now back to the topics they were read from.
pub fn replay(kafka: &Kafka, letters: String, group: String, filter: Filter) -> Result<Report> {
    let kafka = kafka.clone();
    let job = Job::new("replay", move |flow| {
        let filter = filter.clone();
        flow.source(kafka.topic(&letters).group(&group).raw())?
            .or_stop()
            .filter(move |message| message.dead_letter().is_some_and(|letter| filter.lets_through(&letter)))
            .flat_map(Message::revived)
            .sink(kafka.messages().raw())
    });
    job.trigger(Trigger::AvailableNow).run()
}
