//! A proxy in front of a real broker that can hold back requests of one kind, such as those of
//! producers. It passes on whole requests. Those of the held kind wait, except for those of the
//! tests' own clients.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI16, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// The api key of Produce in Kafka's protocol.
const PRODUCE: i16 = 0;
/// The api key of OffsetFetch, which reads the committed offsets of a group.
pub const OFFSET_FETCH: i16 = 9;
/// The api key of no request.
const NONE: i16 = -1;

/// A proxy, as the module says.
pub struct Proxy {
    held: Arc<AtomicI16>,
}

impl Proxy {
    /// Listens on loopback at `port`, which the broker advertises, and passes on to the broker at
    /// `to`.
    pub fn start(port: u16, to: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let held = Arc::new(AtomicI16::new(NONE));
        let holds = Arc::clone(&held);
        // The thread ends with the test process, and its connections with their clients.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let (back, to_client) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
                let holds = Arc::clone(&holds);
                thread::spawn(move || drop(requests(client, broker, &holds)));
                thread::spawn(move || drop(io::copy(&mut &back, &mut &to_client)));
            }
        });
        Proxy { held }
    }

    /// Holds back the requests of producers, or lets them pass.
    pub fn stall(&self, stalled: bool) {
        self.hold(stalled.then_some(PRODUCE));
    }

    /// Holds back the requests with this api key, and lets all others pass.
    pub fn hold(&self, key: Option<i16>) {
        self.held.store(key.unwrap_or(NONE), SeqCst);
    }
}

/// Passes on one request after the other: a length, then that many bytes, which begin with the api
/// key.
fn requests(mut client: TcpStream, mut broker: TcpStream, held: &AtomicI16) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        client.read_exact(&mut request)?;
        while is_held(&request, held.load(SeqCst)) {
            thread::sleep(Duration::from_millis(1));
        }
        broker.write_all(&length)?;
        broker.write_all(&request)?;
    }
}

/// A request begins with api key, version and correlation id. The length of the client id and the
/// client id follow.
fn is_held(request: &[u8], key: i16) -> bool {
    let length = usize::from(u16::from_be_bytes([request[8], request[9]]));
    let client = request.get(10..10 + length).unwrap_or_default();
    i16::from_be_bytes([request[0], request[1]]) == key && client != super::CLIENT.as_bytes()
}
