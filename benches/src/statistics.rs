//! Medians with their uncertainty: a paired figure is a difference or ratio of two runs next to
//! each other in time, and the interval comes from a bootstrap.

/// The median of a few figures.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A median with its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// Estimates the median of paired figures and its interval.
pub fn estimate(figures: &[f64]) -> Estimate {
    const RESAMPLES: usize = 10_000;
    let mut random = fastrand::Rng::with_seed(1);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let resample: Vec<f64> = figures.iter().map(|_| figures[random.usize(..figures.len())]).collect();
            median(&resample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: f64| medians[(RESAMPLES as f64 * share) as usize];
    Estimate { median: median(figures), low: at(0.025), high: at(0.975) }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.median, self.low, self.high)
    }
}
