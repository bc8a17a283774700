//! Kafka to Kafka: what does the engine add to a hand-written loop?
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let b = "127.0.0.1:19092";
    let rate: u64 = a[2].parse().unwrap();
    for who in a[1].split(',') {
        let (i, o) = (format!("in-{}", fastrand::u32(..)), format!("out-{}", fastrand::u32(..)));
        millstream_benches::topics::create(b, &[&i, &o], 4);
        let exe = std::env::current_exe().unwrap();
        let dir = exe.parent().unwrap().parent().unwrap();
        let mut c = if who == "F" {
            let mut c = std::process::Command::new(dir.join("floor"));
            c.args([b, &i, &o, &i]);
            c
        } else {
            let mut c = std::process::Command::new(dir.join("examples/transform"));
            c.args(["--brokers", b, "--input", &i, "--output", &o, "--group", &i]);
            c
        };
        let mut child = c.stderr(std::process::Stdio::inherit()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_secs(1));
        let r = millstream_benches::driver::drive(
            b,
            &i,
            &o,
            child.id(),
            rate,
            std::time::Duration::from_secs(2),
            std::time::Duration::from_secs(a[3].parse().unwrap()),
        );
        println!(
            "{who}: p50 {:.3} p90 {:.3} p99 {:.3} p99.9 {:.3} cpu/M {:.0} late99 {:.2} {}/{} rss {:?}",
            r.milliseconds(0.5),
            r.milliseconds(0.9),
            r.milliseconds(0.99),
            r.milliseconds(0.999),
            r.cpu_per_million(),
            r.late.value_at_quantile(0.99) as f64 / 1e6,
            r.received,
            r.sent,
            millstream_benches::machine::memory(child.id())
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
