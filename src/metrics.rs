//! Every metric, declared once. Who counts holds a clone; the page at `/metrics` reads them all.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

type Amount = Gauge<u64, AtomicU64>;
type Labels<const N: usize> = [(&'static str, String); N];

/// The metrics of a daemon. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Requests to the registry API.
    pub http_requests: Counter,
    /// Manifests and blobs that were asked for, and not found or not to be had.
    pub misses: Counter,
    blob_sent_bytes: Family<Labels<1>, Counter>,
    pulled_bytes: Family<Labels<2>, Counter>,
    pub peers: Amount,
    pub mesh_peers: Amount,
    /// 1 if strangers reach the node without a relay.
    pub reachable: Amount,
    pub relay_reservations: Amount,
    pub direct_peers: Amount,
    pub relayed_peers: Amount,
    pub relayed_circuits: Amount,
    pub fills: Amount,
    pub cache_live_bytes: Amount,
    pub cache_disk_bytes: Amount,
    pub blocks: Amount,
    pub store_live_bytes: Amount,
    pub store_disk_bytes: Amount,
    pub uploads: Amount,
    pub downloads: Amount,
    pub fetches: Amount,
    pub bitswap_received_bytes: Amount,
    pub bitswap_sent_bytes: Amount,
    pub tasks: Amount,
    /// 1 while a newer record of somebody else keeps us from publishing.
    pub publish_blocked: Amount,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("shoal");
        let http_requests = Counter::default();
        registry.register("http_requests", "requests to the registry API", http_requests.clone());
        let misses = Counter::default();
        registry.register("misses", "manifests and blobs asked for and not had", misses.clone());
        let pulled_bytes = Family::default();
        let help = "bytes of blobs of other registries received, by registry and by who sent them";
        registry.register_with_unit("pulled", help, Unit::Bytes, pulled_bytes.clone());
        let blob_sent_bytes = Family::default();
        let help = "bytes of blobs sent to clients, by where they were found";
        registry.register_with_unit("blob_sent", help, Unit::Bytes, blob_sent_bytes.clone());
        let mut amount = |name: &str, help: &str| {
            let amount = Amount::default();
            registry.register(name, help, amount.clone());
            amount
        };
        Self {
            http_requests,
            misses,
            blob_sent_bytes,
            pulled_bytes,
            peers: amount("peers", "connected peers"),
            mesh_peers: amount("mesh_peers", "connected peers that share pulled-through images"),
            reachable: amount("reachable", "1 if peers reach this node without a relay"),
            relay_reservations: amount("relay_reservations", "relays that pass connections on to this node"),
            direct_peers: amount("direct_peers", "peers with a direct connection"),
            relayed_peers: amount("relayed_peers", "peers that are reached by a relay alone"),
            relayed_circuits: amount("relayed_circuits", "connections that this node passes on as a relay"),
            fills: amount("fills", "blobs being pulled through"),
            cache_live_bytes: amount("cache_live_bytes", "bytes of blocks in the cache of other registries"),
            cache_disk_bytes: amount("cache_disk_bytes", "bytes that the cache takes on disk"),
            blocks: amount("store_blocks", "blocks in the store"),
            store_live_bytes: amount("store_live_bytes", "bytes of blocks in the store"),
            store_disk_bytes: amount("store_disk_bytes", "bytes that the packs take on disk"),
            uploads: amount("uploads", "open uploads"),
            downloads: amount("downloads", "blobs being sent to clients"),
            fetches: amount("fetches", "blocks being fetched from peers"),
            bitswap_received_bytes: amount("bitswap_received_bytes", "bytes of blocks received from peers"),
            bitswap_sent_bytes: amount("bitswap_sent_bytes", "bytes of blocks sent to peers"),
            tasks: amount("tasks", "tasks alive"),
            publish_blocked: amount(
                "publish_blocked",
                "1 while another writer keeps this daemon from publishing",
            ),
            registry: Arc::new(registry),
        }
    }
}

impl Metrics {
    /// Bytes of blobs sent to clients that were found at `source`, which is a kind of place, not a name.
    pub fn blob_sent_bytes(&self, source: &'static str) -> Counter {
        self.blob_sent_bytes.get_or_create_owned(&[("source", source.to_owned())])
    }

    /// Bytes of blobs of a mirrored registry that came from `source`, a kind of place. There are as many counters as
    /// registries.
    pub fn pulled_bytes(&self, registry: &str, source: &'static str) -> Counter {
        let labels = [("registry", registry.to_owned()), ("source", source.to_owned())];
        self.pulled_bytes.get_or_create_owned(&labels)
    }

    /// All metrics in the OpenMetrics text format.
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut page, &self.registry);
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_on_the_page() {
        let metrics = Metrics::default();
        metrics.http_requests.inc_by(3);
        metrics.peers.set(2);
        metrics.blob_sent_bytes("cache").inc_by(5);
        metrics.pulled_bytes("docker.io", "upstream").inc_by(7);
        let page = metrics.page();
        assert!(page.contains("shoal_http_requests_total 3\n"), "{page}");
        assert!(page.contains("shoal_peers 2\n"), "{page}");
        assert!(page.contains("shoal_blob_sent_bytes_total{source=\"cache\"} 5\n"), "{page}");
        let pulled = "shoal_pulled_bytes_total{registry=\"docker.io\",source=\"upstream\"} 7\n";
        assert!(page.contains(pulled), "{page}");
    }
}
