//! The live line on a terminal: rate, latency, lag, and the percentage when the run has an end.
//! There is no line when standard error is not a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::Report;

/// A line that is redrawn in place.
#[derive(Debug)]
pub(crate) struct Line {
    bar: ProgressBar,
    before: Option<(f64, u64)>,
}

impl Line {
    /// How often it is drawn.
    pub(crate) const EVERY: Duration = Duration::from_millis(250);

    /// `None` when standard error is not a terminal: a report is not free.
    pub(crate) fn new() -> Option<Line> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is a constant"));
        (!bar.is_hidden()).then_some(Line { bar, before: None })
    }

    pub(crate) fn draw(&mut self, report: &Report, bounded: bool) {
        let (seconds, records) = (report.elapsed_seconds, report.records_out());
        let (then, fewer) = self.before.replace((seconds, records)).unwrap_or((0.0, 0));
        let rate = records.saturating_sub(fewer) as f64 / (seconds - then).max(0.001);
        let mut message = format!("{}  {seconds:.0} s  {records} out  {rate:.0}/s", report.job);
        if let Some(slowest) = report.sinks.iter().map(|sink| sink.latency).max_by_key(|latency| latency.p50) {
            let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
            message += &format!("  p50 {:.2} ms  p99 {:.2} ms", milliseconds(slowest.p50), milliseconds(slowest.p99));
        }
        match report.fraction() {
            Some(fraction) if bounded => message += &format!("  {:.0} %", fraction * 100.0),
            _ => {
                message += &format!(
                    "  lag {}",
                    report.sources.iter().map(super::report::SourceReport::lag_records).sum::<u64>()
                );
            }
        }
        self.bar.set_message(message);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
