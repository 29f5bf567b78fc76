//! Servers of AutoNAT for tests, honest and lying, played by hand.

use libp2p::identify;
use tokio::sync::mpsc;

use super::*;
use crate::node::bitswap::testing::{Bare, open};

/// What a server wants before it dials, in the end or again and again.
const DATA_BYTES: usize = 30_000;
const IDENTIFY_BYTES_MAX: usize = 64 * 1024;

/// What a server does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::node) enum Server {
    /// Comes in by a connection of its own, after it was given data; where it sees nobody it says that it cannot.
    Comes,
    /// Comes by the connection that it was asked over.
    StaysWhereItIs,
    /// Comes in, and brings a number that nobody gave it.
    BringsAnother,
    SaysThatItCame,
    SaysThatItCannot,
    WantsMuch,
    /// Wants data again when it was given some.
    WantsMore,
    SaysNothing,
    Refuses,
}

impl Server {
    fn answer(self) -> Option<Said> {
        let (status, dial_status) = match self {
            Self::SaysThatItCannot => (OK, DIAL_ERROR),
            Self::Refuses => (101, 0),
            _ => (OK, OK),
        };
        match self {
            Self::SaysNothing => None,
            Self::WantsMuch => Some(Said::DataRequest(DataRequest { index: 0, bytes: 1 << 40 })),
            _ => Some(Said::Response(DialResponse { status, index: 0, dial_status })),
        }
    }
}

/// A server that a node is to meet.
pub(in crate::node) struct Witness {
    pub(in crate::node) peer: PeerId,
    pub(in crate::node) address: Multiaddr,
    control: Control,
    tested: mpsc::Receiver<Multiaddr>,
}

/// What it goes by.
#[derive(Clone)]
struct Part {
    server: Server,
    /// Where it says that it sees the node.
    sees: Multiaddr,
    /// Where the node really is.
    client: Multiaddr,
    own: PeerId,
    control: Control,
    tested: mpsc::Sender<Multiaddr>,
}

impl Witness {
    pub(in crate::node) async fn start(server: Server, sees: Multiaddr, client: Multiaddr) -> Self {
        let bare = Bare::speaking(vec![DIAL_REQUEST, identify::PROTOCOL_NAME], 16).await;
        let (peer, address, control) = (bare.peer, bare.address.clone(), bare.control.clone());
        let (sender, tested) = mpsc::channel(16);
        let part = Part { server, sees, client, own: peer, control: control.clone(), tested: sender };
        let tasks = bare.tasks.clone();
        tasks.clone().spawn_short("server", |_| async move {
            // The whole of it: without its commands the swarm ends.
            let mut bare = bare;
            while let Some(came) = bare.incoming.recv().await {
                let part = part.clone();
                tasks.spawn_short("exchange", |_| async move {
                    // The node may have gone.
                    let _: io::Result<()> = match came.protocol == DIAL_REQUEST {
                        true => part.exchange(came).await,
                        false => part.introduce(came.stream).await,
                    };
                });
            }
        });
        Self { peer, address, control, tested }
    }

    /// The next address that it was asked to test, when the node has let go of the exchange; of one that says nothing, at
    /// once.
    pub(in crate::node) async fn tested(&mut self) -> Multiaddr {
        timeout(TEST_TIMEOUT, self.tested.recv()).await.unwrap().unwrap()
    }

    /// Whether a node connects to it within a second.
    pub(in crate::node) async fn is_met_by(&self, node: PeerId) -> bool {
        timeout(Duration::from_secs(1), self.control.connected(&node)).await.is_ok()
    }

    /// The addresses that a connected node tells of itself.
    pub(in crate::node) async fn told_by(&self, node: PeerId) -> Vec<Multiaddr> {
        let mut stream = open(&self.control, node, &[identify::PROTOCOL_NAME]).await;
        let told: Identify = read(&mut stream, IDENTIFY_BYTES_MAX).await.unwrap();
        told.listen_addresses.into_iter().map(|address| Multiaddr::try_from(address).unwrap()).collect()
    }
}

impl Part {
    async fn exchange(self, Incoming { peer, mut stream, .. }: Incoming) -> io::Result<()> {
        let asked: Envelope = read(&mut stream, MESSAGE_BYTES_MAX).await?;
        let Some(Said::Request(DialRequest { addresses, nonce })) = asked.said else { panic!("no request") };
        let address = Multiaddr::try_from(addresses[0].clone()).unwrap();
        let server = match self.server {
            Server::Comes if address != self.sees => Server::SaysThatItCannot,
            server => server,
        };
        match server {
            Server::Comes => {
                take_data(&mut stream).await?;
                come(&self.client, peer, nonce).await;
            }
            Server::BringsAnother => come(&self.client, peer, nonce.wrapping_add(1)).await,
            Server::StaysWhereItIs => dial_back(&self.control, peer, nonce).await,
            Server::WantsMore => while take_data(&mut stream).await.is_ok() {},
            Server::SaysNothing => _ = self.tested.send(address.clone()).await,
            _ => (),
        }
        if let Some(answer) = server.answer() {
            // Who was asked too much has gone.
            let _ = say(&mut stream, answer).await;
        }
        let _: io::Result<Envelope> = read(&mut stream, MESSAGE_BYTES_MAX).await;
        if server != Server::SaysNothing {
            // Whoever waits for it may have seen enough.
            let _ = self.tested.send(address).await;
        }
        Ok(())
    }

    async fn introduce(&self, mut stream: Stream) -> io::Result<()> {
        let multihash = self.own.as_ref();
        let told = Identify {
            // An id of this kind is the key itself.
            public_key: Some(multihash.digest().to_vec()),
            listen_addresses: Vec::new(),
            protocols: [DIAL_REQUEST, identify::PROTOCOL_NAME].map(|protocol| protocol.to_string()).to_vec(),
            observed: Some(self.sees.to_vec()),
        };
        stream.write_all(&told.encode_length_delimited_to_vec()).await?;
        stream.close().await
    }
}

/// Has the node send some data.
async fn take_data(stream: &mut Stream) -> io::Result<()> {
    say(stream, Said::DataRequest(DataRequest { index: 0, bytes: DATA_BYTES as u64 })).await?;
    let mut came = 0;
    while came < DATA_BYTES {
        let data: Envelope = read(stream, MESSAGE_BYTES_MAX).await?;
        let Some(Said::Data(Data { data })) = data.said else { panic!("no data") };
        came += data.len();
    }
    Ok(())
}

/// Comes in by a connection of its own.
async fn come(client: &Multiaddr, peer: PeerId, nonce: u64) {
    let other = Bare::speaking(Vec::new(), 1).await;
    other.dial(client).await;
    dial_back(&other.control, peer, nonce).await;
}

/// Brings a number. The node may reset the stream at any moment, which is an answer too.
async fn dial_back(control: &Control, to: PeerId, nonce: u64) {
    let (_, mut stream) = control.open(to, vec![DIAL_BACK]).await.unwrap();
    let bringing = async {
        stream.write_all(&DialBack { nonce }.encode_length_delimited_to_vec()).await?;
        stream.close().await?;
        read::<DialBackResponse>(&mut stream, MESSAGE_BYTES_MAX).await
    };
    let _: io::Result<DialBackResponse> = bringing.await;
}

/// What is said by identify, as far as it matters here.
#[derive(Clone, PartialEq, Message)]
struct Identify {
    #[prost(bytes = "vec", optional, tag = "1")]
    public_key: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    listen_addresses: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "3")]
    protocols: Vec<String>,
    #[prost(bytes = "vec", optional, tag = "4")]
    observed: Option<Vec<u8>>,
}
