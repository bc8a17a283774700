//! A proxy in front of a real broker that can hold back requests of one kind, such as those of
//! producers. It passes on whole requests. Those of the held kind wait, except for those of the
//! tests' own clients.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI16, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

/// The api key of Produce in Kafka's protocol.
const PRODUCE: i16 = 0;
/// The api key of ListOffsets, which finds the ends of logs.
pub const LIST_OFFSETS: i16 = 2;
/// The api key of OffsetFetch, which reads the committed offsets of a group.
pub const OFFSET_FETCH: i16 = 9;
/// The api key of no request.
const NONE: i16 = -1;

/// A proxy, as the module says.
pub struct Proxy(Arc<State>);

struct State {
    /// The api key of the requests that wait.
    key: AtomicI16,
    /// How many of them have arrived.
    held: AtomicUsize,
}

impl Proxy {
    /// Listens on loopback at `port`, which the broker advertises, and passes on to the broker at
    /// `to`.
    pub fn start(port: u16, to: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let state = Arc::new(State { key: AtomicI16::new(NONE), held: AtomicUsize::new(0) });
        let of_thread = Arc::clone(&state);
        // The thread ends with the test process, and its connections with their clients.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let (back, to_client) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
                let (requests, passed_on) = mpsc::channel();
                let (reading, writing) = (Arc::clone(&of_thread), Arc::clone(&of_thread));
                thread::spawn(move || drop(read(client, &requests, &reading)));
                thread::spawn(move || drop(pass_on(&passed_on, broker, &writing)));
                thread::spawn(move || drop(io::copy(&mut &back, &mut &to_client)));
            }
        });
        Proxy(state)
    }

    /// Holds back the requests of producers, or lets them pass.
    pub fn stall(&self, stalled: bool) {
        self.hold(stalled.then_some(PRODUCE));
    }

    /// Holds back the requests with this api key, and lets all others pass.
    pub fn hold(&self, key: Option<i16>) {
        self.0.held.store(0, SeqCst);
        self.0.key.store(key.unwrap_or(NONE), SeqCst);
    }

    /// How many requests have been held back since `hold`.
    pub fn held(&self) -> usize {
        self.0.held.load(SeqCst)
    }
}

/// Reads one request after the other: a length, then that many bytes, which begin with the api key.
fn read(mut client: TcpStream, requests: &Sender<Vec<u8>>, state: &State) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let mut request = length.to_vec();
        request.resize(4 + u32::from_be_bytes(length) as usize, 0);
        client.read_exact(&mut request[4..])?;
        if state.holds(&request) {
            state.held.fetch_add(1, SeqCst);
        }
        requests.send(request).map_err(io::Error::other)?;
    }
}

/// Passes on one request after the other; those behind one that is held wait as well.
fn pass_on(requests: &Receiver<Vec<u8>>, mut broker: TcpStream, state: &State) -> io::Result<()> {
    for request in requests {
        while state.holds(&request) {
            thread::sleep(Duration::from_millis(1));
        }
        broker.write_all(&request)?;
    }
    Ok(())
}

impl State {
    /// Behind its length, a request begins with api key, version and correlation id. The length of
    /// the client id and the client id follow.
    fn holds(&self, request: &[u8]) -> bool {
        let request = &request[4..];
        let length = usize::from(u16::from_be_bytes([request[8], request[9]]));
        let client = request.get(10..10 + length).unwrap_or_default();
        i16::from_be_bytes([request[0], request[1]]) == self.key.load(SeqCst) && client != super::CLIENT.as_bytes()
    }
}
