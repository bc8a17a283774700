//! Looks up the price of each order in another service: many requests at once, answers in the order
//! of the orders, and late answers as values.
//!
//! ```text
//! cargo run --release --example lookup
//! cargo run --release --example lookup -- \
//!     --service http://localhost:9000 --at-once 64 --within 200ms
//! ```
//!
//! Without `--service`, a small service runs in this process. It answers after 5 ms, and for a few
//! products after one second.
//!
//! On SIGINT or SIGTERM the job drains, commits and ends; a second signal aborts it. Exit status: 0
//! if the job ended or was stopped, 1 if it could not start, failed or was aborted (the reason is
//! on standard error), 2 for a wrong flag.

mod support;

use std::num::NonZeroUsize;
use std::time::Duration;

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use clap::Parser;
use millstream::{Calls, Error, ErrorKind, Job, Result, TimedOut, generate};
use millstream_connectors::console;
use serde::{Deserialize, Serialize};
use support::run_job;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Looks up the price of each order in another service, many at once
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// A service that answers `GET /price/<product>` with `{"cents": 123}`; without it, one runs in
    /// this process
    #[arg(long)]
    service: Option<String>,
    /// Orders per second
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// The total number of orders
    #[arg(long, default_value_t = 1_000)]
    orders: u64,
    /// The maximum number of requests in flight
    #[arg(long, default_value = "32")]
    at_once: NonZeroUsize,
    /// The maximum time to wait for an answer
    #[arg(long, default_value = "100ms", value_parser = humantime::parse_duration)]
    within: Duration,
    /// The number of orders to show
    #[arg(long, default_value_t = 10)]
    show: u64,
}

#[derive(Debug, Deserialize, Serialize)]
struct Price {
    cents: u64,
}

/// An order and its price, or why the price is unknown.
type Answer = (u64, Result<Price, String>);

async fn price(Path(product): Path<u64>) -> Json<Price> {
    let pause = if product % 100 == 99 { Duration::from_secs(1) } else { Duration::from_millis(5) };
    tokio::time::sleep(pause).await;
    Json(Price { cents: 100 + product })
}

/// Starts the small service and returns its address.
fn start_service(runtime: &Runtime) -> Result<String> {
    let failed = |cause| Error::new(ErrorKind::Config, "cannot start the service").caused_by(cause);
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let app = Router::new().route("/price/{product}", get(price));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(format!("http://{address}"))
    })
}

fn show((order, price): Answer) -> String {
    match price {
        Ok(price) => format!("order {order}: {:.2}", price.cents as f64 / 100.0),
        Err(cause) => format!("order {order}: {cause}"),
    }
}

pub(crate) fn run(options: Options) -> Result<()> {
    let runtime = Runtime::new();
    let runtime = runtime.map_err(|cause| Error::new(ErrorKind::Config, "cannot start tokio").caused_by(cause))?;
    let service = options.service.clone().map_or_else(|| start_service(&runtime), Ok)?;
    let Options { rate, orders, at_once, within, show: first, .. } = options;
    let client = reqwest::Client::new();
    let job = Job::new("lookup", move |flow| {
        let (client, service) = (client.clone(), service.clone());
        let ask = move |order: u64| {
            let request = client.get(format!("{service}/price/{}", order % 1_000));
            async move {
                let answer = async { request.send().await?.error_for_status()?.json::<Price>().await };
                let price: Result<Price, reqwest::Error> = answer.await;
                (order, price.map_err(|error| error.to_string()))
            }
        };
        flow.source(generate(|order| order).rate(rate).count(orders))?
            .map_async(Calls::ordered(at_once.get()).within(within), ask)
            .map(|answer: Result<Answer, TimedOut>| answer.map_or_else(|late| late.to_string(), show))
            .sink(console().first(first))
    });
    println!("{}", run_job(job, None, None, |_| {})?);
    Ok(())
}

fn main() -> Result<()> {
    run(Options::parse())
}
