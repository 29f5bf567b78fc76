//! `docker-compose.yml`: what it says is what the daemon understands.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::path::Path;

use serde_json::Value;
use shoal::config::Config;

fn service() -> (Value, Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker-compose.yml");
    let file: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let services = file["services"].as_object().unwrap();
    assert_eq!(services.keys().collect::<Vec<_>>(), ["shoal"]);
    (services["shoal"].clone(), file)
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn its_environment_is_a_config_whose_ports_and_folder_are_published() {
    let (service, file) = service();
    let environment = service["environment"].as_object().unwrap();
    let environment =
        environment.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
    let (config, warnings) = Config::load(None, environment).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.http.addr, "0.0.0.0:5000");
    assert!(!config.pull_through.is_off());
    assert_eq!(words(&service["ports"]), ["127.0.0.1:5000:5000", "4001:4001/tcp", "4001:4001/udp"]);
    let listens: Vec<String> = config.p2p.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listens, ["/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"]);

    let folder = config.store.root_directory.display().to_string();
    let [volume] = words(&service["volumes"])[..] else { panic!("{}", service["volumes"]) };
    let (name, place) = volume.split_once(':').unwrap();
    assert_eq!(place, folder);
    assert!(file["volumes"].as_object().unwrap().contains_key(name));
    assert_eq!(words(&service["healthcheck"]["test"]), ["CMD", "shoal", "status"]);
}

#[test]
fn its_image_is_built_from_what_a_build_needs() {
    let (service, _) = service();
    let recipe = service["build"]["dockerfile_inline"].as_str().unwrap();
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copied = recipe.lines().filter_map(|line| line.strip_prefix("COPY "));
    let copied: Vec<&str> = copied
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| line.rsplit_once(' ').unwrap().0.split(' '))
        .collect();
    assert_eq!(copied, ["Cargo.toml", "Cargo.lock", "benches", "config", "src"]);
    assert!(copied.iter().all(|path| checkout.join(path).exists()));
    let version = env!("CARGO_PKG_RUST_VERSION");
    let image = recipe.lines().find_map(|line| line.strip_prefix("FROM docker.io/library/rust:")).unwrap();
    let numbers =
        |text: &str| -> Vec<u32> { text.split('.').map_while(|number| number.parse().ok()).collect() };
    assert!(numbers(image.split('-').next().unwrap()) >= numbers(version), "{image} is older than {version}");
}
