//! Registries that are known by `"*"` alone: what only we can reach is not asked for them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::super::client::connector;
use super::super::public::{PublicOnly, is_public};
use super::super::registry::Registry;
use super::*;

/// Takes the place of an address of the public network.
const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// And this that of one which is not.
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

#[tokio::test]
async fn a_public_name_with_an_address_that_is_not_is_refused() {
    for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:192.168.0.1"] {
        let resolved: IpAddr = address.parse().unwrap();
        let config = PullThrough { any: Some(RegistryConfig::default()), ..PullThrough::default() };
        let guard = PublicOnly::by(move |_| Some(resolved), is_public);
        let upstreams = Upstreams::with_guard(config, "me", guard).unwrap();
        let upstream = upstreams.get(&"registry.example.com".parse().unwrap()).unwrap();
        let error = upstream.head_manifest(&repo(), &latest()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::NotPublic { .. }), "{address}: {error}");
        let text = error.to_string();
        assert!(text.contains(address) && text.contains("name it in mirror.registries"), "{text}");
        assert!(upstream.is_asked(), "it is no failure of the registry");
    }
}

/// A registry by its name alone, at `PUBLIC`; `inside.example.com` is at `PRIVATE`.
fn by_name(fake: &Fake) -> Upstream {
    let look_up = |name: &str| match name {
        "front.example.com" => Some(PUBLIC),
        "inside.example.com" => Some(PRIVATE),
        _ => None,
    };
    let guard = PublicOnly::by(look_up, |address| address == PUBLIC);
    let port = fake.url.rsplit_once(':').unwrap().1;
    let config = config(&[&format!("http://front.example.com:{port}")]);
    let connector = connector("*", &config, Some(guard)).unwrap();
    let host = "front.example.com".parse().unwrap();
    Upstream::new(Arc::new(Registry::new(host, config, &connector)), String::new())
}

#[tokio::test]
async fn a_redirect_leads_to_no_address_that_is_not_public() {
    let fake = Fake::start(|_| manifest_reply()).await;
    assert!(by_name(&fake).manifest(&repo(), &latest()).await.unwrap().is_some());

    let inside = Fake::start(|_| manifest_reply()).await;
    let port = inside.url.rsplit_once(':').unwrap().1;
    for target in [
        format!("http://inside.example.com:{port}/"),
        format!("http://127.0.0.2:{port}/"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://[::1]:80/".to_owned(),
        "http://0x7f000002/".to_owned(),
    ] {
        let location = target.clone();
        let fake = Fake::start(move |_| Reply::new(307, &[("Location", &location)], b"")).await;
        let error = by_name(&fake).manifest(&repo(), &latest()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::NotPublic { .. }), "{target}: {error}");
        assert_eq!(fake.asked().len(), 1, "another try would be no better");
    }
    assert!(inside.seen().is_empty());
}

#[tokio::test]
async fn a_token_server_is_at_a_public_address_too() {
    let realm = ("WWW-Authenticate", "Bearer realm=\"http://inside.example.com/token\"");
    let fake = Fake::start(move |_| Reply::new(401, &[realm], b"")).await;
    let error = by_name(&fake).manifest(&repo(), &latest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::NotPublic { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_the_config_names_may_be_private() {
    let fake = Fake::start(|_| manifest_reply()).await;
    assert!(of(&fake).manifest(&repo(), &latest()).await.unwrap().is_some());
}
