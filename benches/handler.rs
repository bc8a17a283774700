//! The service of the example `embed` by hand: axum, rdkafka's own async producer, and nothing in
//! between. `http.rs` compares the example with it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use clap::Parser;
use millstream_benches::topics::client;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

#[derive(Debug, Parser)]
struct Options {
    /// The address to listen on
    #[arg(long)]
    listen: String,
    /// Bootstrap servers
    #[arg(long)]
    brokers: String,
    /// The topic of the invoices
    #[arg(long)]
    output: String,
}

#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    customer: u64,
    cents: i64,
}

#[derive(Debug, Serialize)]
struct Invoice {
    id: u64,
    customer: u64,
    amount: f64,
}

struct Service {
    producer: FutureProducer,
    output: String,
}

async fn post_order(
    State(service): State<Arc<Service>>,
    body: Result<Json<Order>, JsonRejection>,
) -> Result<StatusCode, (StatusCode, String)> {
    let Json(order) = body.map_err(|cause| (StatusCode::BAD_REQUEST, cause.body_text()))?;
    let invoice = Invoice { id: order.id, customer: order.customer, amount: order.cents as f64 / 100.0 };
    let (key, payload) = (invoice.customer.to_string(), serde_json::to_vec(&invoice).expect("an invoice is JSON"));
    let record = FutureRecord::to(&service.output).key(&key).payload(&payload);
    let sent = service.producer.send(record, Duration::from_secs(5)).await;
    sent.map(|_| StatusCode::OK).map_err(|(cause, _)| (StatusCode::SERVICE_UNAVAILABLE, cause.to_string()))
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let producer: FutureProducer = client(&options.brokers)
        .set("linger.ms", "0")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .create()
        .expect("the settings are constants");
    let service = Arc::new(Service { producer, output: options.output });
    let listener = TcpListener::bind(&options.listen).await.expect("the address is free");
    let app = Router::new().route("/orders", post(post_order)).with_state(service);
    axum::serve(listener, app).await.expect("it serves until it is killed");
}
