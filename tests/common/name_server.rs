//! A double of the domain name system, for DNSLink.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The record of a domain that leads to a path.
pub fn link(name: &str, path: String) -> (String, String) {
    (name.to_owned(), format!("dnslink={path}"))
}

type Records = Arc<Mutex<HashMap<String, String>>>;

/// A name server that knows some TXT records; of `broken.example` it says that it failed.
pub struct NameServer {
    pub address: String,
    records: Records,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NameServer {
    pub fn start(records: impl IntoIterator<Item = (String, String)>) -> Self {
        let records: Records = Arc::new(Mutex::new(records.into_iter().collect()));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (address, stop) = (socket.local_addr().unwrap().to_string(), Arc::<AtomicBool>::default());
        let (stopped, known) = (stop.clone(), records.clone());
        let thread = std::thread::spawn(move || {
            let mut query = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut query) {
                    let answer = dns_answer(&query[..length], &known.lock().unwrap());
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        Self { address, records, stop, thread: Some(thread) }
    }

    /// Replaces what is known of a name.
    pub fn set(&self, (name, text): (String, String)) {
        self.records.lock().unwrap().insert(name, text);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// RFC 1035, section 4.
fn dns_answer(query: &[u8], records: &HashMap<String, String>) -> Vec<u8> {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..end].to_ascii_lowercase()).unwrap());
        at = end;
    }
    let name = labels.join(".");
    let (text, code) = match records.get(&name) {
        Some(text) => (Some(text), 0),
        None if name.ends_with("broken.example") => (None, 2),
        None => (None, 3),
    };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(text.is_some()), 0, 0, 0, 0]);
    answer.extend(&query[12..at + 5]);
    if let Some(text) = text {
        answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60]);
        answer.extend(u16::try_from(text.len() + 1).unwrap().to_be_bytes());
        answer.push(u8::try_from(text.len()).unwrap());
        answer.extend(text.as_bytes());
    }
    answer
}
