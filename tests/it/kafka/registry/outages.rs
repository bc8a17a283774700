//! A registry that is down or answers unlike a registry: no record becomes malformed because of it,
//! none is skipped, and a known schema is not looked up again.

use std::thread;
use std::time::{Duration, Instant};

use millstream::ErrorKind;
use millstream_connectors::{Avro, Decode, Registry};

use super::{ORDER, Order, behind, failed, malformed, order, registry};
use crate::support::registry::{Fault, TestRegistry};

/// The fault makes the format fail with an error that names the registry and the id, for as long as
/// the fault lasts.
#[track_caller]
fn check(fault: Fault, kind: ErrorKind, says: &str) {
    let served = TestRegistry::start();
    let id = served.add_avro(ORDER);
    let format = Avro::<Order>::new(&registry(&served));
    served.fault(fault.clone());
    let asked = Instant::now();
    let error = failed(&format, &behind(id, &[14, 0]));
    assert!(asked.elapsed() < Duration::from_secs(5), "{fault:?} takes {:?}", asked.elapsed());
    let told = format!("{error:#}");
    assert_eq!(error.kind(), kind, "{fault:?}: {told}");
    assert!(told.contains(&served.address) && told.contains("schema 1") && told.contains(says), "{fault:?}: {told}");
    let requests = served.asked("/schemas/ids/1");
    assert_eq!(requests > 1, kind == ErrorKind::Unreachable, "{fault:?}: {requests} requests");
    served.fault(None);
    assert_eq!(format.decode(Some(&behind(id, &[14, 0]))).unwrap(), order(7), "{fault:?}: it is not malformed");
}

#[test]
fn that_may_pass_are_retried_and_then_end_the_run() {
    check(Fault::Says(500, "{\"error_code\": 50001, \"message\": \"no store\"}"), ErrorKind::Unreachable, "no store");
    check(Fault::Says(503, "<html>down</html>"), ErrorKind::Unreachable, "503");
    check(Fault::Says(429, ""), ErrorKind::Unreachable, "429");
    // This answer comes from a proxy in front of the registry.
    check(Fault::Says(404, "<html>no backend</html>"), ErrorKind::Unreachable, "no backend");
    check(Fault::Says(404, "{\"error_code\": 404, \"message\": \"no path\"}"), ErrorKind::Unreachable, "no path");
    check(Fault::Says(200, "<html>sign in</html>"), ErrorKind::Unreachable, "sign in");
    check(Fault::Hangs, ErrorKind::Unreachable, "timeout");
    check(Fault::Closes, ErrorKind::Unreachable, "");
}

#[test]
fn that_are_refusals_end_the_run_at_once() {
    check(
        Fault::Says(401, "{\"error_code\": 40101, \"message\": \"who are you?\"}"),
        ErrorKind::Refused,
        "who are you?",
    );
    check(Fault::Says(403, ""), ErrorKind::Refused, "403");
    check(Fault::Says(302, "elsewhere"), ErrorKind::Refused, "302");
    check(Fault::Says(400, "{\"error_code\": 400, \"message\": \"what?\"}"), ErrorKind::Refused, "what?");
}

#[test]
fn that_pass_in_time_are_not_noticed() {
    let served = TestRegistry::start();
    let id = served.add_avro(ORDER);
    let format = Avro::<Order>::new(&Registry::new(&served.address));
    served.fault(Fault::Closes);
    let mends = served.clone();
    let mending = thread::spawn(move || {
        crate::support::eventually("the request is retried", || mends.asked("/schemas/ids/1") >= 2);
        mends.fault(None);
    });
    assert_eq!(format.decode(Some(&behind(id, &[14, 0]))).unwrap(), order(7));
    mending.join().unwrap();
}

#[test]
fn of_one_address_do_not_matter_if_the_next_answers() {
    let (broken, served) = (TestRegistry::start(), TestRegistry::start());
    let id = served.add_avro(ORDER);
    broken.fault(Fault::Hangs);
    let both = format!("http://127.0.0.1:9, {}/, {}", broken.address, served.address);
    let format = Avro::<Order>::new(&Registry::new(both).within(Duration::from_secs(3)));
    assert_eq!(format.decode(Some(&behind(id, &[14, 0]))).unwrap(), order(7));
}

#[test]
fn concern_new_schemas_only() {
    let served = TestRegistry::start();
    let id = served.add_avro(ORDER);
    let registry = registry(&served);
    let format = Avro::<Order>::new(&registry);
    let payload = behind(id, &[14, 0]);
    assert_eq!(format.decode(Some(&payload)).unwrap(), order(7));
    served.fault(Fault::Closes);
    let others = [format.clone(), Avro::new(&registry), Avro::new(&registry.clone()).schema(ORDER).unwrap()];
    thread::scope(|scope| {
        for format in others {
            let payload = &payload;
            scope.spawn(move || assert_eq!(format.decode(Some(payload)).unwrap(), order(7)));
        }
    });
    assert_eq!(served.asked("/schemas/ids"), 1);
}

#[test]
fn cause_few_requests_for_unknown_ids() {
    let served = TestRegistry::start();
    let format = Avro::<Order>::new(&registry(&served));
    let asked = Instant::now();
    for _ in 0..1_000 {
        assert!(malformed(&format, &behind(5, &[14, 0])).contains("schema 5"));
    }
    // A look-up waits up to a second for the id, with four requests, and then not for five seconds.
    let most = 4 * (1 + asked.elapsed().as_secs() as usize / 5);
    assert!(served.asked("/schemas/ids/5") <= most);
}
