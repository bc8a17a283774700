//! A receipt is resolved when the broker has the record, and not before.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream::{Job, channel};

use super::kafka;
use crate::support::broker::{OwnBroker, real};
use crate::support::eventually;

#[test]
fn wait_for_the_broker_and_not_for_a_commit() {
    if real("the embedded broker has no proxy before it").is_none() {
        return;
    }
    let (own, proxy) = OwnBroker::behind_a_proxy();
    let (here, topic) = (kafka(&own.broker), own.broker.topic("receipts", 1));
    let (orders, source) = channel::<String>(100);
    let name = topic.clone();
    let job = Job::new("receipts", move |flow| flow.source(&source)?.sink(here.topic(&name).text()));
    // A commit is an hour away: a receipt has nothing to do with it.
    let running = job.checkpoint_every(Duration::from_secs(3_600)).start().unwrap();
    orders.try_send("first".to_owned()).unwrap().wait().unwrap();
    assert_eq!(own.broker.read(&topic).concat().len(), 1);
    proxy.stall(true);
    let resolved = Arc::new(AtomicUsize::new(0));
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let (receipt, resolved) = (orders.try_send(format!("{n}")).unwrap(), Arc::clone(&resolved));
            std::thread::spawn(move || {
                receipt.wait().unwrap();
                resolved.fetch_add(1, SeqCst);
            })
        })
        .collect();
    eventually("all of it is sent", || running.report().sinks[0].records == 21);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(resolved.load(SeqCst), 0, "the broker has none of them");
    proxy.stall(false);
    waiting.into_iter().for_each(|waiting| waiting.join().unwrap());
    assert_eq!(own.broker.read(&topic).concat().len(), 21);
    drop(orders);
    running.wait().unwrap();
}
