//! A double of Kubo's RPC API, for what the real one cannot be made to do: it lies, refuses, breaks off and forgets as it is
//! told to. Answers have the shape that Kubo 0.43 gave them; or 0.22, which names no pins and counts sequences by itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use futures::{StreamExt, stream};
use multibase::Base;
use serde_json::json;
use shoal::config::{KuboApi, KuboConfig, Secret};
use shoal::ipld::Cid;
use shoal::ipld::block::{Block, DAG_PB};
use shoal::ipld::dag_pb::Node;
use shoal::ipld::ipns::{IpnsName, IpnsRecord};
use tokio::task::JoinHandle;

/// What goes wrong with the next call of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    WrongBlock,
    Error,
    /// The connection goes after a part of the file.
    BreaksOff,
    /// What is not pinned is taken first.
    CollectsGarbage,
}

#[derive(Default)]
pub struct Inside {
    /// It is 0.22.
    pub is_old: bool,
    /// What an old one has signed itself: the sequences it counts on from.
    pub counted: HashMap<String, (u64, Cid)>,
    pub blocks: HashMap<Cid, Bytes>,
    pub records: HashMap<String, Bytes>,
    /// With their labels.
    pub pins: BTreeMap<String, String>,
    pub keys: Vec<(String, libp2p::identity::Keypair)>,
    pub peers: usize,
    /// Commands, with their arguments.
    pub calls: Vec<String>,
    pub faults: VecDeque<(&'static str, Fault)>,
    pub imported: usize,
}

pub struct Double {
    pub address: std::net::SocketAddr,
    inside: Arc<Mutex<Inside>>,
    servers: Vec<JoinHandle<()>>,
}

const TOKEN: &str = "Bearer t0ken";

impl Double {
    pub async fn start() -> Self {
        let inside = Arc::new(Mutex::new(Inside { peers: 1, ..Inside::default() }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut double = Self { address, inside, servers: Vec::new() };
        double.answers_at(listener);
        double
    }

    /// Answers here too, for as long as it lives.
    pub fn answers_at<L>(&mut self, listener: L)
    where
        L: Listener,
        L::Addr: std::fmt::Debug,
    {
        let app = Router::new().fallback(answer).layer(DefaultBodyLimit::disable());
        let app = app.with_state(self.inside.clone());
        #[expect(clippy::disallowed_methods, reason = "a test has no tasks")]
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        self.servers.push(server);
    }

    /// One that cannot do what came later.
    pub async fn old() -> Self {
        let double = Self::start().await;
        double.inside().is_old = true;
        double
    }

    /// Closes its ports; returns when they are closed. Who is connected stays so.
    pub async fn ends(mut self) {
        for server in std::mem::take(&mut self.servers) {
            server.abort();
            // It was aborted.
            let _ = server.await;
        }
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }

    pub fn fails(&self, command: &'static str, fault: Fault) {
        self.inside().faults.push_back((command, fault));
    }

    /// A key that it signs with.
    pub fn has_key(&self, name: &str) -> IpnsName {
        let key = libp2p::identity::Keypair::generate_ed25519();
        let id = IpnsName::from_peer_id(key.public().to_peer_id());
        self.inside().keys.push((name.to_owned(), key));
        id
    }

    pub fn config(&self) -> KuboConfig {
        let url = format!("http://{}/api/v0/", self.address).parse().unwrap();
        KuboConfig { api: KuboApi::Url(url), authorization: Some(Secret::new(TOKEN.to_owned())), ca: None }
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

type Shared = Arc<Mutex<Inside>>;

async fn answer(State(inside): State<Shared>, request: Request) -> Response {
    if request.headers().get("authorization").is_none_or(|given| given != TOKEN) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let uri = request.uri().clone();
    let command = uri.path().trim_start_matches("/api/v0/").to_owned();
    let query: Vec<(String, String)> =
        form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let fault = {
        let mut inside = inside.lock().unwrap();
        inside.calls.push(format!("{command} {}", values(&query, "arg").join(" ")));
        let next = inside.faults.front().copied().filter(|(name, _)| *name == command);
        next.map(|(_, fault)| {
            inside.faults.pop_front();
            fault
        })
    };
    match fault {
        Some(Fault::Error) => return refusal("the disk is full"),
        Some(Fault::BreaksOff) => {
            let _ = request.into_body().into_data_stream().next().await;
            let broken = stream::once(async { Err::<Bytes, _>(std::io::Error::other("restarted")) });
            return Body::from_stream(broken).into_response();
        }
        Some(Fault::CollectsGarbage) => inside.lock().unwrap().collect_garbage(),
        Some(Fault::WrongBlock) => return "not this one".into_response(),
        None => (),
    }
    let Ok(file) = axum::body::to_bytes(request.into_body(), 256 << 20).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut inside = inside.lock().unwrap();
    inside.obey(&command, &query, file)
}

fn values<'a>(query: &'a [(String, String)], key: &str) -> Vec<&'a str> {
    query.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect()
}

fn refusal(message: &str) -> Response {
    let body = json!({"Message": message, "Code": 0, "Type": "error"}).to_string();
    (StatusCode::INTERNAL_SERVER_ERROR, body).into_response()
}

impl Inside {
    fn obey(&mut self, command: &str, query: &[(String, String)], file: Bytes) -> Response {
        let argument = values(query, "arg").first().copied().unwrap_or_default().to_owned();
        let name = argument.trim_start_matches("/ipns/").to_owned();
        match command {
            "version" => {
                json!({"Version": if self.is_old { "0.22.0" } else { "0.43.0" }}).to_string().into_response()
            }
            "commands" => self.commands(),
            "id" => json!({"ID": "12D3KooWDouble", "Addresses": null}).to_string().into_response(),
            "swarm/peers" => json!({"Peers": vec![json!({}); self.peers]}).to_string().into_response(),
            "key/list" => {
                let row = |(name, key): &(String, libp2p::identity::Keypair)| {
                    let id = IpnsName::from_peer_id(key.public().to_peer_id());
                    json!({"Name": name, "Id": id.to_string()})
                };
                json!({"Keys": self.keys.iter().map(row).collect::<Vec<_>>()}).to_string().into_response()
            }
            "block/get" => match self.blocks.get(&argument.parse::<Cid>().unwrap()) {
                Some(bytes) => bytes.clone().into_response(),
                None => refusal(&format!(
                    "block was not found locally (offline): ipld: could not find {argument}"
                )),
            },
            "routing/get" => match self.records.get(&name) {
                Some(record) => {
                    json!({"ID": "", "Type": 5, "Responses": null, "Extra": Base::Base64Pad.encode(record)})
                        .to_string()
                        .into_response()
                }
                None => refusal("routing: not found"),
            },
            "routing/put" => {
                self.offer(&name, content(&file));
                String::new().into_response()
            }
            "routing/provide" => String::new().into_response(),
            "name/publish" => self.publish(query, &argument),
            "dag/import" => {
                let blocks = entries(&content(&file));
                let count = blocks.len();
                self.imported += count;
                self.blocks.extend(blocks);
                json!({"Stats": {"BlockCount": count}}).to_string().into_response()
            }
            "pin/ls" => self.list_pins(query, &argument),
            "pin/add" | "pin/update" => {
                let root = values(query, "arg").last().copied().unwrap_or_default().to_owned();
                if let Some(gap) = self.gap(&root.parse().unwrap()) {
                    return refusal(&format!(
                        "pin: block was not found locally (offline): ipld: could not find {gap}"
                    ));
                }
                let label = match command {
                    _ if self.is_old => String::new(),
                    "pin/update" => self.pins.get(&argument).cloned().unwrap_or_default(),
                    _ => values(query, "name").first().copied().unwrap_or_default().to_owned(),
                };
                self.pins.insert(root.clone(), label);
                json!({"Pins": [root]}).to_string().into_response()
            }
            "pin/rm" => match self.pins.remove(&argument) {
                Some(_) => json!({"Pins": [argument]}).to_string().into_response(),
                None => refusal("not pinned or pinned indirectly"),
            },
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    }

    /// Of its commands those that differ between releases.
    fn commands(&self) -> Response {
        let command = |name: &str, below: &str, new: &[&str]| {
            let new = new.iter().filter(|_| !self.is_old).map(|option| json!({"Names": [option]}));
            let options: Vec<_> = new.chain([json!({"Names": ["type", "t"]})]).collect();
            json!({"Name": name, "Subcommands": [{"Name": below, "Subcommands": null, "Options": options}]})
        };
        let all = [
            command("pin", "add", &["name"]),
            command("pin", "ls", &["names", "name"]),
            command("name", "publish", &["sequence"]),
        ];
        json!({"Name": "ipfs", "Subcommands": all, "Options": []}).to_string().into_response()
    }

    fn list_pins(&self, query: &[(String, String)], argument: &str) -> Response {
        let row =
            |(cid, label): (&String, &String)| (cid.clone(), json!({"Type": "recursive", "Name": label}));
        // What it does not know it passes over.
        let label = values(query, "name").first().copied().filter(|_| !self.is_old);
        let found: serde_json::Map<_, _> = self
            .pins
            .iter()
            .filter(|(cid, given)| match label {
                Some(label) => given.contains(label),
                None => argument.is_empty() || *cid == argument,
            })
            .map(row)
            .collect();
        match (label, found.is_empty()) {
            (None, true) => refusal(&format!("path '/ipfs/{argument}' is not pinned")),
            (_, true) => "{}".into_response(),
            _ => json!({ "Keys": found }).to_string().into_response(),
        }
    }

    fn publish(&mut self, query: &[(String, String)], value: &str) -> Response {
        let one = |key| values(query, key).first().copied().unwrap_or_default().to_owned();
        let Some((_, key)) = self.keys.iter().find(|(name, _)| *name == one("key")) else {
            return refusal("no key by the given name was found");
        };
        let name = IpnsName::from_peer_id(key.public().to_peer_id());
        let root: Cid = value.trim_start_matches("/ipfs/").parse().unwrap();
        let sequence: u64 = match self.counted.get(&name.to_string()) {
            _ if !self.is_old => one("sequence").parse().unwrap(),
            None => 0,
            Some((last, same)) => last + u64::from(*same != root),
        };
        let known = self.records.get(&name.to_string());
        if !self.is_old
            && known.is_some_and(|known| IpnsRecord::decode(&name, known).unwrap().sequence() >= sequence)
        {
            return refusal("sequence number must be greater than the current record sequence");
        }
        let seconds = |text: String| text.trim_end_matches('s').parse::<u64>().unwrap();
        let until = jiff::Timestamp::now() + std::time::Duration::from_secs(seconds(one("lifetime")));
        let ttl = std::time::Duration::from_secs(seconds(one("ttl")));
        let record = IpnsRecord::sign(key, &root, sequence, until, ttl).unwrap();
        self.counted.insert(name.to_string(), (sequence, root));
        self.offer(&name.to_string(), record.bytes().clone());
        json!({"Name": name.to_string(), "Value": value}).to_string().into_response()
    }

    /// Takes a record if it is better, as a node of the DHT would.
    fn offer(&mut self, name: &str, bytes: Bytes) {
        let id: IpnsName = name.parse().unwrap();
        let Ok(offered) = IpnsRecord::decode(&id, &bytes) else { return };
        let known = self.records.get(name).map(|known| IpnsRecord::decode(&id, known).unwrap());
        if known.is_none_or(|known| offered.is_better_than(&known)) {
            self.records.insert(name.to_owned(), bytes);
        }
    }

    /// What is missing below a root.
    pub fn gap(&self, root: &Cid) -> Option<Cid> {
        let mut waiting = vec![*root];
        while let Some(cid) = waiting.pop() {
            let Some(bytes) = self.blocks.get(&cid) else { return Some(cid) };
            if cid.codec() == DAG_PB {
                let node = Node::decode(&Block::verify(cid, bytes.clone()).unwrap()).unwrap();
                waiting.extend(node.links.into_iter().map(|link| link.cid));
            }
        }
        None
    }

    fn collect_garbage(&mut self) {
        let mut needed = std::collections::HashSet::new();
        let mut waiting: Vec<Cid> = self.pins.keys().map(|cid| cid.parse().unwrap()).collect();
        while let Some(cid) = waiting.pop() {
            if let (true, Some(bytes)) = (needed.insert(cid), self.blocks.get(&cid))
                && cid.codec() == DAG_PB
            {
                let node = Node::decode(&Block::verify(cid, bytes.clone()).unwrap()).unwrap();
                waiting.extend(node.links.into_iter().map(|link| link.cid));
            }
        }
        self.blocks.retain(|cid, _| needed.contains(cid));
    }
}

/// The one file of a multipart body.
fn content(body: &Bytes) -> Bytes {
    let find = |needle: &[u8]| body.windows(needle.len()).position(|window| window == needle);
    let (line, begin) = (find(b"\r\n").unwrap(), find(b"\r\n\r\n").unwrap() + 4);
    // Before it a line break; behind it `--` and a line break.
    body.slice(begin..body.len() - line - 6)
}

/// The blocks of an archive, each held to its CID.
fn entries(archive: &Bytes) -> Vec<(Cid, Bytes)> {
    let mut rest = archive.clone();
    let mut section = || {
        let (length, behind) = unsigned_varint::decode::usize(&rest).ok()?;
        let begin = rest.len() - behind.len();
        let found = rest.slice(begin..begin + length);
        rest = rest.slice(begin + length..);
        Some(found)
    };
    section().expect("a header");
    let blocks = std::iter::from_fn(section).map(|section| {
        let mut bytes = section.as_ref();
        let cid = Cid::read_bytes(&mut bytes).unwrap();
        let bytes = section.slice(section.len() - bytes.len()..);
        Block::verify(cid, bytes.clone()).unwrap();
        (cid, bytes)
    });
    blocks.collect()
}
