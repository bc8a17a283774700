//! A comparison to look at: the percentile curves as SVG, and an HTML page around them. Both are
//! self-contained.

use std::fmt::Write;
use std::time::Duration;

use millstream::{ComparedRun, Comparison, LatencySnapshot};
use plotters::prelude::*;

type Drawn<T> = Result<T, Box<dyn std::error::Error>>;

/// Line colours that remain distinct with red-green colour blindness (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
];

const SIZE: (u32, u32) = (900, 520);

/// The curves as SVG: latency against percentile, one line per run. Both axes are logarithmic;
/// percentiles by their distance to 100, so that the tail is not squeezed to the edge.
pub fn plot(comparison: &Comparison) -> String {
    let mut svg = String::new();
    draw(comparison, &mut svg).expect("writing to memory succeeds");
    svg
}

fn draw(comparison: &Comparison, svg: &mut String) -> Drawn<()> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let points = || comparison.runs.iter().flat_map(|run| &run.curve);
    let right = points().map(|point| left_to_hundred(point.percentile)).fold(10.0, f64::max);
    let lowest = points().map(|point| milliseconds(point.latency)).fold(f64::MAX, f64::min).clamp(1e-3, 1e6);
    let highest = comparison.runs.iter().map(|run| milliseconds(run.latency.max)).fold(lowest, f64::max);
    let latencies = lowest * 0.8..highest.max(lowest * 10.0) * 1.25;
    let title = format!("{}: from due to acknowledged", comparison.job);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d((1.0..right).log_scale(), latencies.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("percentile of records")
        .y_desc("latency in milliseconds")
        .x_label_formatter(&|left| percentile(*left))
        .y_label_formatter(&|latency| format!("{latency}"))
        .light_line_style(BLACK.mix(0.06))
        .bold_line_style(BLACK.mix(0.18))
        .label_style(("sans-serif", 14))
        .draw()?;
    for (run, colour) in comparison.runs.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        let line = run.curve.iter().map(|point| (left_to_hundred(point.percentile), milliseconds(point.latency)));
        chart
            .draw_series(LineSeries::new(line, style))?
            .label(&run.trigger)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()?;
    root.present()?;
    Ok(())
}

/// One record in this many is slower: 10 at the 90th percentile, 100 at the 99th.
fn left_to_hundred(percentile: f64) -> f64 {
    100.0 / (100.0 - percentile)
}

fn percentile(left: f64) -> String {
    let percentile = 100.0 - 100.0 / left;
    let digits = (left.log10().round() as usize).saturating_sub(2);
    format!("{percentile:.digits$}")
}

fn milliseconds(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1e3
}

/// An HTML page with the plot, the figures, and how they were measured.
pub fn page(comparison: &Comparison) -> String {
    let mut rows = String::new();
    for run in &comparison.runs {
        row(&mut rows, run);
    }
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{job}: triggers compared</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; color: #222; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .3em .6em; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; white-space: nowrap; }}
svg {{ max-width: 100%; height: auto; }}
.results {{ font-weight: bold; }}
</style>
</head>
<body>
<h1>{job}</h1>
<p>{records} records in each run, {rate} due each second from each source; worker threads: {workers}. Latencies are in
milliseconds, from when a record was due to when a sink had acknowledged its output; records that arrived in the first
{warm_up:?} are not measured.</p>
{plot}
<div class="wide"><table>
<thead><tr><th>trigger</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th>
<th>of p50: queue</th><th>compute</th><th>acknowledgement</th><th>µs CPU/record</th><th>measured</th></tr></thead>
<tbody>
{rows}</tbody>
</table></div>
<p class="results">{results}</p>
<p>Not included: the time to fetch a record, because the sources read ahead of the schedule; and the cost of commits, because
none are made: short micro-batches commit far more often than a continuous job. The delay of the schedule itself, some
0.1 ms, counts against every run. The runs followed one another on one machine, and the first one pays the one-time costs of
the process and its broker. Differences of a few per cent, and brief disturbances of the machine, are not significant.</p>
</body>
</html>
"#,
        job = escaped(&comparison.job),
        records = comparison.records,
        rate = comparison.records_per_second,
        workers = comparison.workers,
        warm_up = comparison.warm_up,
        plot = plot(comparison),
        results = escaped(&comparison.results.to_string()),
    )
}

fn row(rows: &mut String, run: &ComparedRun) {
    let LatencySnapshot { p50, p90, p99, p999, max, .. } = run.latency;
    let parts = [run.queue.p50, run.compute.p50, run.acknowledgement.p50];
    let mut text = format!("<tr><td>{}</td>", escaped(&run.trigger));
    for latency in [p50, p90, p99, p999, max].into_iter().chain(parts) {
        write!(text, "<td>{:.3}</td>", milliseconds(latency)).expect("writing to memory succeeds");
    }
    let cpu = run.cpu_per_record.map_or_else(|| "–".to_owned(), |cpu| format!("{:.1}", cpu.as_secs_f64() * 1e6));
    writeln!(rows, "{text}<td>{cpu}</td><td>{}</td></tr>", run.latency.count).expect("writing to memory succeeds");
}

/// Escapes text for HTML: names come from the user.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
