//! A web service with jobs inside: an order that is posted is answered once Kafka has its invoice,
//! not before.
//!
//! ```text
//! cargo run --release --example embed
//! curl -d '{"id": 1, "customer": 7, "cents": 1250}' -H 'content-type: application/json' \
//!     localhost:8080/orders
//! curl localhost:8080/report
//! curl localhost:8080/metrics
//! curl localhost:8080/readyz
//! ```
//!
//! `POST /orders` answers 200 when the broker has the invoice, 503 when this cannot be known in
//! time, and 400 with the cause for a body that is not an order. `GET /report` shows what both jobs
//! do: one makes invoices, the other reads them back and adds up the sales. `GET /metrics` is for
//! Prometheus: it shows the metrics that the jobs send to the `metrics` facade, followed by the
//! histogram of latencies, which can be added up over a fleet.
//!
//! `GET /livez` answers 200 while the jobs work or recover by themselves, `GET /readyz` while they
//! also have their partitions and have caught up. Otherwise both answer 503 with the reasons.
//! `kubernetes.yaml` beside this file uses them as probes.
//!
//! On SIGINT and SIGTERM the service answers the open requests, drains the jobs and commits. Exit
//! status: 0 after that, 1 if the service could not start or a job failed (the reason is on
//! standard error), 2 for a wrong flag.

mod support;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use millstream::{
    ByteSize, Error, ErrorKind, Health, HealthLimits, Job, JobEvent, JobHandle, Restart, Result, Running, Sender,
    Undelivered, channel, discard, histograms,
};
use millstream_connectors::{Kafka, StartAt};
use serde::{Deserialize, Serialize};
use support::embedded::{Embedded, brokers};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Answers a posted order once Kafka has its invoice
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// Bootstrap servers; without them, a broker runs in this process
    #[arg(long)]
    brokers: Option<String>,
    /// The topic of the invoices
    #[arg(long, default_value = "invoices")]
    output: String,
    /// The service is not ready while more invoices than this wait to be read back
    #[arg(long, default_value_t = 10_000)]
    lag_at_most: u64,
}

/// The body of a posted order.
#[derive(Clone, Debug, Deserialize)]
struct Order {
    id: u64,
    customer: u64,
    cents: i64,
}

#[derive(Debug, Deserialize, Serialize)]
struct Invoice {
    id: u64,
    customer: u64,
    amount: f64,
}

/// The state that the handlers share.
#[derive(Debug)]
struct Service {
    orders: Sender<Order>,
    /// The sales in cents, as read back from Kafka.
    sold: AtomicU64,
    reports: OnceLock<[JobHandle; 2]>,
    limits: HealthLimits,
    metrics: PrometheusHandle,
}

/// A request that takes longer is answered with 503.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long the jobs may drain when the service stops.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(10);
/// The memory for the records of each job.
pub(crate) const MEMORY: ByteSize = ByteSize::mebibytes(64);

async fn post_order(
    State(service): State<Arc<Service>>,
    body: Result<Json<Order>, JsonRejection>,
) -> Result<StatusCode, (StatusCode, String)> {
    let unavailable = |cause: String| (StatusCode::SERVICE_UNAVAILABLE, cause);
    let Json(order) = body.map_err(|cause| (StatusCode::BAD_REQUEST, cause.body_text()))?;
    if order.cents <= 0 {
        return Err((
            StatusCode::BAD_REQUEST,
            "`cents` must be greater than zero: otherwise there is no invoice".to_owned(),
        ));
    }
    let answered = tokio::time::timeout(ANSWER_WITHIN, async {
        let receipt = service.orders.send(order).await.map_err(|error| unavailable(error.to_string()))?;
        receipt.await.map_err(|cause| match cause {
            Undelivered::Refused => (StatusCode::BAD_REQUEST, cause.to_string()),
            _ => unavailable(cause.to_string()),
        })
    });
    let late = || unavailable("Kafka has not acknowledged the invoice in time; it may still do so".to_owned());
    answered.await.map_err(|_| late())?.map(|()| StatusCode::OK)
}

async fn get_report(State(service): State<Arc<Service>>) -> Response {
    let sold = service.sold.load(SeqCst) as f64 / 100.0;
    let jobs = service.reports.get().map(|reports| reports.each_ref().map(JobHandle::report));
    Json(serde_json::json!({ "sold": sold, "jobs": jobs })).into_response()
}

async fn get_metrics(State(service): State<Arc<Service>>) -> String {
    service.metrics.render() + &histograms()
}

/// The health of both jobs, a line each, for an orchestrator's probe.
fn probe(service: &Service, is_well: fn(&Health) -> bool) -> (StatusCode, String) {
    let Some(reports) = service.reports.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the jobs are starting\n".to_owned());
    };
    let health = reports.each_ref().map(|report| (report.report().job, report.health(&service.limits)));
    let status =
        if health.iter().all(|(_, health)| is_well(health)) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, health.map(|(job, health)| format!("{job}: {health}\n")).concat())
}

async fn get_livez(State(service): State<Arc<Service>>) -> (StatusCode, String) {
    probe(&service, Health::is_alive)
}

async fn get_readyz(State(service): State<Arc<Service>>) -> (StatusCode, String) {
    probe(&service, Health::is_ready)
}

/// Logs the events that an operator wants to see.
fn log(event: &JobEvent) {
    let job = &event.report().job;
    match event {
        JobEvent::Started(_) => eprintln!("{job}: started"),
        JobEvent::Restarted { reason, report } => eprintln!("{job}: restart {} after: {reason:#}", report.restarts),
        JobEvent::Ended { outcome: Ok(()), .. } => eprintln!("{job}: ended"),
        JobEvent::Ended { outcome: Err(error), .. } => eprintln!("{job}: failed: {error:#}"),
        _ => {}
    }
}

const AGAIN: Restart = Restart::Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

fn start_jobs(kafka: &Kafka, output: &str, limits: HealthLimits) -> Result<(Arc<Service>, [Running; 2])> {
    let metrics = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|cause| Error::new(ErrorKind::Config, "cannot install the metrics exporter").caused_by(cause))?;
    let (orders, source) = channel::<Order>(1_024);
    let service = Arc::new(Service { orders, sold: AtomicU64::new(0), reports: OnceLock::new(), limits, metrics });
    let start = |job: Job| job.memory(MEMORY).restart(AGAIN).on_progress(Duration::from_secs(60), log).start();
    let (to, topic) = (kafka.clone(), output.to_owned());
    let invoices = Job::new("invoices", move |flow| {
        let invoice = |Order { id, customer, cents }| Invoice { id, customer, amount: cents as f64 / 100.0 };
        flow.source(&source)?.map(invoice).sink_by(|invoice| invoice.customer.to_string(), to.topic(&topic).json())
    });
    let invoices = start(invoices)?;
    let (from, topic, shared) = (kafka.clone(), output.to_owned(), Arc::clone(&service));
    // Each process uses a group of its own, because this job only watches.
    let life = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let sold = Job::new("sold", move |flow| {
        let service = Arc::clone(&shared);
        let add = move |invoice: &Invoice| {
            service.sold.fetch_add((invoice.amount * 100.0).round() as u64, SeqCst);
        };
        let written = from.topic(&topic).group(format!("sold-{life}")).start_at(StartAt::Latest);
        flow.source(written.json::<Invoice>())?.or_skip().inspect(add).sink(discard())
    });
    let jobs = [invoices, start(sold)?];
    drop(service.reports.set(jobs.each_ref().map(Running::handle)));
    Ok((service, jobs))
}

async fn serve(options: Options, kafka: Kafka) -> Result<()> {
    let cannot = |doing: String| move |cause: std::io::Error| Error::new(ErrorKind::Config, doing).caused_by(cause);
    let listener = TcpListener::bind(&options.listen).await;
    let listener = listener.map_err(cannot(format!("cannot listen on {}", options.listen)))?;
    // Connecting can block for long, which an async thread must not do.
    let limits = HealthLimits::new().lag_at_most(options.lag_at_most);
    let started = tokio::task::spawn_blocking(move || start_jobs(&kafka, &options.output, limits)).await;
    let (service, jobs) = started.map_err(|cause| Error::new(ErrorKind::Panic, "cannot start").caused_by(cause))??;
    let routes = Router::new().route("/orders", post(post_order)).route("/report", get(get_report));
    let routes = routes.route("/metrics", get(get_metrics)).route("/livez", get(get_livez));
    let app = routes.route("/readyz", get(get_readyz)).with_state(Arc::clone(&service));
    let mut term = signal(SignalKind::terminate()).map_err(cannot("cannot listen for signals".to_owned()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot("cannot listen for signals".to_owned()))?;
    let asked = async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
    };
    println!("listening on {}", options.listen);
    let [mut invoices, mut sold] = jobs;
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(asked) => {
            served.map_err(cannot("cannot serve".to_owned()))?;
        }
        // A job that ends by itself ends the service.
        ended = &mut invoices => return ended.map(drop),
        ended = &mut sold => return ended.map(drop),
    }
    // All requests have been answered.
    for running in [&invoices, &sold] {
        running.stop_within(STOP_WITHIN);
    }
    invoices.await?;
    sold.await.map(drop)
}

pub(crate) fn run(options: Options) -> Result<()> {
    let embedded = match options.brokers {
        Some(_) => None,
        None => Some(Embedded::start("orders", &options.output, Some(0))?),
    };
    let runtime = tokio::runtime::Runtime::new();
    let runtime = runtime.map_err(|cause| Error::new(ErrorKind::Config, "cannot start tokio").caused_by(cause))?;
    let kafka = Kafka::new(brokers(embedded.as_ref(), options.brokers.as_ref()));
    runtime.block_on(serve(options, kafka))
}

fn main() -> Result<()> {
    run(Options::parse())
}
