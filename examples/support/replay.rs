//! The way back of dead letters, as a job with an end.

use clap::Args;
use millstream::{Job, Report, Result, Trigger};
use millstream_connectors::{DeadLetter, Kafka, Message};

// Which letters go back; all of them when nothing is said. The others count as done. A doc comment here would be the text
// of `--help` wherever an example has none.
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

/// Sends what is in the topic now back to where it was read.
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
