//! The labels that tell the metrics of a job from those of others.

use std::fmt;

use metrics::Label;

use super::names::Metric;

/// The labels that all metrics of a job have: its name, and its number when other jobs of that name
/// run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels {
    job: String,
    number: u32,
}

impl Labels {
    /// The labels of the `number`th job of that name in this process, counted from 1.
    pub(crate) fn new(job: &str, number: u32) -> Labels {
        Labels { job: job.to_owned(), number }
    }

    /// The labels of a metric of this job; `of` has the values of the metric's other labels.
    pub(super) fn of(&self, metric: &Metric, of: &[&str]) -> Vec<Label> {
        let mut values = vec![self.job.clone()];
        values.extend(of.iter().map(|value| (*value).to_owned()));
        debug_assert_eq!(values.len(), metric.labels.len(), "{}", metric.name);
        let mut labels: Vec<Label> =
            metric.labels.iter().zip(values).map(|(label, value)| Label::new(*label, value)).collect();
        if self.number > 1 {
            labels.insert(1, Label::new("clone", self.number.to_string()));
        }
        labels
    }
}

/// The labels in Prometheus' text format, without the braces.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job_name=\"{}\"", escaped(&self.job))?;
        if self.number > 1 { write!(f, ",clone=\"{}\"", self.number) } else { Ok(()) }
    }
}

/// A label's value, escaped for the text format.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
