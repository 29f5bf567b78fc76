#!/usr/bin/env python3
"""run.py [--fill] [PATTERN] - the daemon against other implementations of IPFS, cell by cell. It fails if a cell is not what the
table of README.md says; with --fill it writes what came of it there instead. With a pattern only the cells whose name has it are run.
Needs `../clients/install.sh interop`, and root for a network of its own. SHOAL is the daemon, target/release/shoal else.
"""
import base64, hashlib, json, os, re, shutil, subprocess, sys, tempfile, time, traceback, urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(HERE))
CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
TOOLS = os.environ.get("SHOAL_TEST_TOOLS") or os.path.join(CACHE, "shoal-tests")
SHOAL = os.environ.get("SHOAL") or os.path.join(REPO, "target/release/shoal")
KUBO = os.path.join(TOOLS, "ipfs")
HELIA = os.path.join(TOOLS, "helia")
PYTHON, NODE = (os.path.join(TOOLS, "interop/bin", name) for name in ("python", "node"))
KEYS = os.path.join(REPO, "tests/fixtures/keys")
PATIENCE = 40
BEGIN, END = "<!-- filled by run.py -->", "<!-- end -->"

if not os.environ.get("SHOAL_OFFLINE"):
    os.execvpe("unshare", ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "-", sys.executable, *sys.argv],
               {**os.environ, "SHOAL_OFFLINE": "1", "IPFS_TELEMETRY": "off"})

W = tempfile.mkdtemp(prefix="shoal-interop.")
running = []


def until(what, reached, patience=PATIENCE):
    end, last = time.monotonic() + patience, None
    while time.monotonic() < end:
        try:
            found = reached()
            if found:
                return found
        except Exception as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"not within {patience} s: {what}" + (f" ({last})" if last else ""))


def check(output, what):
    assert output, what
    return output


class Process:
    def spawn(self, command, **options):
        self.log = open(tempfile.mkstemp(dir=W)[1], "w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, **options)
        running.append(self)

    def stop(self):
        self.process.kill()
        self.process.wait()
        if self in running:
            running.remove(self)


class Spoken(Process):
    """A peer that takes a command a line and answers with a line of JSON."""

    def __init__(self, command, **options):
        self.spawn(command, **options)
        ready = self.read()
        self.id, self.addrs = ready["id"], ready["addrs"]

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise AssertionError("the peer ended: " + self.log.read()[-300:])
        return json.loads(line)

    def __call__(self, *words):
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        answer = self.read()
        assert answer["ok"], f"{words[0]}: {answer}"
        return answer

    def address(self, kind):
        part = "/quic-v1" if kind == "quic" else "/tcp/"
        found = next(a for a in self.addrs if part in a and "127.0.0.1" in a and "webtransport" not in a)
        return found if "/p2p/" in found else f"{found}/p2p/{self.id}"


class Helia(Spoken):
    def __init__(self, *options, **_):
        super().__init__([NODE, "helia-node.mjs", *options], cwd=HELIA)

    def add(self, folder):
        cid = self("add", folder)["cid"]
        self("provide", cid)
        return cid

    def reads(self, cid, path):
        return self("cat", f"{cid}/{path}")["sha256"]

    def knows_provider(self, cid, shoal):
        return self("providers", cid)["providers"]

    def is_in_the_dht(self):
        """Whom it has just met it may not know as one of the DHT yet, and then it puts to nobody and calls that done."""
        until("it knows somebody of the DHT", lambda: self("table")["size"])

    def publish(self, cid):
        self.is_in_the_dht()
        return self("publish", "name", cid)["name"]

    def resolve(self, name):
        return self("resolve", name)["value"]


class Kubo022(Spoken):
    def __init__(self, **_):
        super().__init__([PYTHON, os.path.join(HERE, "peers/kubo-0.22.py"), "--repo", tempfile.mkdtemp(dir=W)], cwd=W)

    def add(self, folder):
        return in_base32(self("add", folder)["cid"])

    def reads(self, cid, path):
        to = tempfile.mkdtemp(dir=W) + "/got"
        self("get", cid, to)
        return sha256(os.path.join(to, path))


class PyLibp2p(Spoken):
    def __init__(self, **_):
        super().__init__([PYTHON, os.path.join(HERE, "peers/py-libp2p.py")])

    def add(self, folder):
        raise AssertionError("it has no UnixFS")

    def knows_provider(self, cid, shoal):
        return shoal.id in self("providers", cid)["providers"]


class Kubo(Process):
    def __init__(self, key=None, routing_api=False):
        self.repo = tempfile.mkdtemp(dir=W)
        self.env = {**os.environ, "IPFS_PATH": self.repo}
        self("init", "-e", *(["--algorithm", key] if key else []))
        for name, value in {
            "AutoConf.Enabled": False, "Bootstrap": [], "DNS.Resolvers": {}, "Routing.DelegatedRouters": [],
            "Ipns.DelegatedPublishers": [], "Routing.Type": "dhtserver", "Addresses.API": "/ip4/127.0.0.1/tcp/0",
            "Addresses.Gateway": "/ip4/127.0.0.1/tcp/0", "Addresses.NoAnnounce": [], "Swarm.AddrFilters": [],
            "Addresses.Swarm": ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"],
            "Swarm.DisableNatPortMap": True, "Swarm.RelayClient.Enabled": False, "Swarm.EnableHolePunching": False,
            "Swarm.Transports.Network.Websocket": False, "Discovery.MDNS.Enabled": False, "AutoTLS.Enabled": False,
            "AutoNAT.ServiceMode": "disabled", "Gateway.ExposeRoutingAPI": routing_api,
        }.items():
            self("config", "--json", name, json.dumps(value))
        self.spawn([KUBO, "daemon", "--enable-gc=false"], env=self.env)
        while "Daemon is ready" not in check(self.process.stdout.readline(), "Kubo ended"):
            pass
        self.id, *self.addrs = self("id", "-f", "<id> <addrs>").split()
        self.gateway = open(os.path.join(self.repo, "gateway")).read().strip()

    def __call__(self, *words):
        done = subprocess.run([KUBO, *words], env=self.env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"ipfs {words[0]}: {done.stderr.strip()[-300:]}"
        return done.stdout.strip()

    address = Spoken.address

    def add(self, folder):
        return self("add", "-Q", "-r", "--cid-version", "1", folder)

    def reads(self, cid, path):
        done = subprocess.run([KUBO, "cat", f"/ipfs/{cid}/{path}"], env=self.env, capture_output=True, timeout=PATIENCE)
        return hashlib.sha256(done.stdout).hexdigest()

    def knows_provider(self, cid, shoal):
        return shoal.id in self("routing", "findprovs", "-n", "20", "--timeout", "5s", cid)

    def publish(self, cid, key="self"):
        printed = self("name", "publish", "--ipns-base", "base36", "-Q", "--key", key, f"/ipfs/{cid}")
        return printed.split()[0]

    def resolve(self, name):
        return self("name", "resolve", "--nocache", "--timeout", "5s", name)


class Shoal(Process):
    def __init__(self, bootstrap=(), readonly=(), transport="both", **p2p):
        self.folder = tempfile.mkdtemp(dir=W)
        listen = {"tcp": ["/ip4/127.0.0.1/tcp/0"], "quic": ["/ip4/127.0.0.1/udp/0/quic-v1"]}
        listen["both"] = listen["tcp"] + listen["quic"]
        self.config = os.path.join(self.folder, "config.yaml")
        with open(self.config, "w") as file:
            json.dump({
                "version": 0.1, "http": {"addr": "127.0.0.1:0", "debug": {"addr": ""}},
                "storage": {"ipfs": {"rootdirectory": self.folder + "/data", "readonlyipnskeys": list(readonly)}},
                "p2p": {"listen": listen[transport], "bootstrap": list(bootstrap), "mdns": False, **p2p},
            }, file)
        self.spawn([SHOAL, "serve", self.config])
        ready = check(self.process.stdout.readline(), "the daemon ended")
        fields = dict(field.split("=", 1) for field in ready.split()[1:])
        self.registry, self.p2p, self.ipns = fields["registry"], fields["p2p"].split(","), fields["ipns"]
        self.id = self.p2p[0].rsplit("/", 1)[1]

    def __call__(self, *words):
        done = subprocess.run([SHOAL, *words, "--config", self.config], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"shoal {words[0]}: {done.stderr.strip()[-300:]}"
        return done.stdout.strip()

    def address(self, kind):
        return next(a for a in self.p2p if ("quic" in a) == (kind == "quic"))

    def status(self):
        return json.loads(self("status", "--json"))

    def peers(self):
        return self.status()["node"]["peers"]

    def add(self, folder):
        return re.search(r"baf\w+", self("layout", "add", folder)).group(0)

    def pulls(self, repository, image):
        """Whole, each blob by its digest."""
        def get(path):
            with urllib.request.urlopen(f"{self.registry}/v2/{repository}/{path}", timeout=PATIENCE) as answer:
                return answer.read()

        def whole():
            manifest = json.loads(get("manifests/1"))
            for blob in [manifest["config"], *manifest["layers"]]:
                got = "sha256:" + hashlib.sha256(get("blobs/" + blob["digest"])).hexdigest()
                assert got == blob["digest"]
            return True

        until(f"{repository} is pulled", whole)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def in_base32(cid):
    """Version 0 as version 1."""
    if not cid.startswith("Qm"):
        return cid
    number = 0
    for letter in cid:
        number = number * 58 + "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz".index(letter)
    return "b" + base64.b32encode(b"\x01\x70" + number.to_bytes(34, "big")).decode().lower().rstrip("=")


def layout(seed):
    folder = os.path.join(W, f"layout-{seed}")
    if not os.path.exists(folder):
        subprocess.run([sys.executable, os.path.join(REPO, "tests/clients/image.py"), folder, "1", "--seed", seed],
                       check=True, capture_output=True)
    return folder


def largest(folder):
    blobs = os.path.join(folder, "blobs/sha256")
    return "blobs/sha256/" + max(os.listdir(blobs), key=lambda name: os.path.getsize(os.path.join(blobs, name)))


# --- the cells: each makes what it needs, and raises when it fails ---

def we_fetch(peer, kind):
    there = peer()
    cid = there.add(layout("fetch"))
    Shoal([there.address(kind)], transport=kind).pulls(f"ipfs/{cid}", None)


def it_fetches(peer, kind):
    ours, there, folder = Shoal(transport=kind), peer(), layout("serve")
    cid = ours.add(folder)
    connect(there, ours.address(kind))
    path = largest(folder)
    until("it reads a layer", lambda: there.reads(cid, path) == sha256(os.path.join(folder, path)))


def connect(there, address):
    there("swarm", "connect", address) if isinstance(there, Kubo) else there("connect", address)
    if isinstance(there, Helia):
        there.is_in_the_dht()


def bitswap_1_1_from(peer, _):
    there = Helia("--bitswap", "1.1.0")
    Shoal([there.address("tcp")]).pulls(f"ipfs/{there.add(layout('fetch'))}", None)


def bitswap_1_1_to(peer, _):
    ours, there, folder = Shoal(), Helia("--bitswap", "1.1.0"), layout("serve")
    cid, path = ours.add(folder), largest(folder)
    there("connect", ours.address("tcp"))
    until("it reads a layer", lambda: there.reads(cid, path) == sha256(os.path.join(folder, path)))


def one_block(peer, _):
    ours, there = Shoal(), peer()
    ours.add(layout("serve"))
    push(ours)
    there("connect", ours.address("tcp"))
    there("block", until("a root", lambda: ours.status()["own"]["root"]))


def gateway(peer, _):
    there = peer()
    Shoal(gateways=[there.gateway]).pulls(f"ipfs/{there.add(layout('http'))}", None)


def routing_api(peer, _):
    there, other = peer(routing_api=True), Kubo()
    there("swarm", "connect", other.address("tcp"))
    name = there.publish(there.add(layout("http")))
    ours = Shoal(delegatedrouters=[there.gateway])
    ours.pulls(f"ipns/{name}", None)
    push(ours)
    until("it has our record", lambda: other.resolve(ours.ipns))


def its_name(peer, _):
    there = peer()
    ours = Shoal([there.address("tcp")])
    until("they are connected", ours.peers)
    cid = there.add(layout("name"))
    name = until("it publishes", lambda: there.publish(cid)).removeprefix("/ipns/")
    assert f"/ipfs/{cid}" == until("it is resolved", lambda: ours("name", "resolve", name))
    ours.pulls(f"ipns/{name}", None)


def push(shoal):
    folder = layout("push")
    subprocess.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{folder}:1",
                    f"docker://{shoal.registry.split('//')[1]}/library/app:1"], check=True, capture_output=True)


def our_name(peer, _):
    there = peer()
    ours = Shoal([there.address("tcp")])
    until("they are connected", ours.peers)
    push(ours)
    root = ours.status()["own"]["root"]
    until("it resolves our name", lambda: root in str(there.resolve(ours.ipns)))


def its_provider_record(peer, _):
    middle = Shoal()
    there = peer()
    connect(there, middle.address("tcp"))
    cid = there.add(layout("provide"))
    if isinstance(there, Kubo):
        until("it provides", lambda: there("routing", "provide", cid) is not None)
    Shoal([middle.address("tcp")]).pulls(f"ipfs/{cid}", None)


def its_record_is_kept(peer, _):
    ours, there, other = Shoal(), peer(), Kubo()
    there("connect", ours.address("tcp"))
    connect(other, ours.address("tcp"))
    cid = other.add(layout("provide"))
    # Whom it has just met it may not know as one of the DHT yet.
    until("another finds it by us", lambda: there("provide", cid) and
          there.id in other("routing", "findprovs", "-n", "20", "--timeout", "5s", cid))


def our_provider_record(peer, _):
    there = peer()
    ours = Shoal([there.address("tcp")] if not isinstance(there, PyLibp2p) else [])
    if isinstance(there, PyLibp2p):
        there("connect", ours.address("tcp"))
    push(ours)
    root = ours.status()["own"]["root"]
    until("it finds us", lambda: there.knows_provider(root, ours))


def identity(peer, kind):
    there = peer(kind) if peer is Kubo else peer("--key", kind)
    Shoal([there.address("tcp")]).pulls(f"ipfs/{there.add(layout('fetch'))}", None)


def name_of_kind(peer, kind):
    there = Kubo()
    key = ecdsa_key() if kind == "ECDSA" else os.path.join(KEYS, f"{kind.lower()}.key")
    there("key", "import", "--allow-any-key-type", "-f", "libp2p-protobuf-cleartext", "other", key)
    ours = Shoal([there.address("tcp")])
    until("they are connected", ours.peers)
    cid = there.add(layout("name"))
    name = there.publish(cid, "other")
    assert f"/ipfs/{cid}" == until("it is resolved", lambda: ours("name", "resolve", name))


def ecdsa_key():
    """A throw-away key in libp2p's protobuf: type 3 and the DER of an EC private key."""
    der = subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-outform", "DER"],
                         check=True, capture_output=True).stdout
    path = os.path.join(W, "ecdsa.key")
    with open(path, "wb") as file:
        file.write(b"\x08\x03\x12" + bytes([len(der)]) + der)
    return path


PEERS = {"Kubo 0.43": Kubo, "Kubo 0.22": Kubo022, "Helia 7": Helia, "py-libp2p 0.8": PyLibp2p}
WHOLE, LIKE_KUBO, TCP_ALONE = (Kubo, Kubo022, Helia), (Kubo, Kubo022), (Kubo, Kubo022, Helia)
ROWS = [
    ("we fetch from it, TCP", we_fetch, "tcp", TCP_ALONE),
    ("we fetch from it, QUIC", we_fetch, "quic", LIKE_KUBO),
    ("it fetches from us, TCP", it_fetches, "tcp", TCP_ALONE),
    ("it fetches from us, QUIC", it_fetches, "quic", LIKE_KUBO),
    ("it fetches one block from us", one_block, None, (PyLibp2p,)),
    ("we fetch by Bitswap 1.1", bitswap_1_1_from, None, (Helia,)),
    ("it fetches by Bitswap 1.1", bitswap_1_1_to, None, (Helia,)),
    ("we fetch from its gateway alone", gateway, None, (Kubo,)),
    ("names and providers by its routing API alone", routing_api, None, (Kubo,)),
    ("we resolve its name", its_name, None, (Kubo, Helia)),
    ("it resolves our name", our_name, None, (Kubo, Helia)),
    ("we find it by its provider record", its_provider_record, None, (Kubo, Kubo022, Helia)),
    ("others find it by us", its_record_is_kept, None, (PyLibp2p,)),
    ("it finds us by our provider record", our_provider_record, None, (Kubo, Helia, PyLibp2p)),
    ("its identity is Ed25519", identity, {Kubo: "ed25519", Helia: "Ed25519"}, (Kubo, Helia)),
    ("its identity is RSA", identity, {Kubo: "rsa", Helia: "RSA"}, (Kubo, Helia)),
    ("its identity is secp256k1", identity, {Helia: "secp256k1"}, (Helia,)),
    ("we resolve a name of Ed25519", name_of_kind, "Ed25519", (Kubo,)),
    ("we resolve a name of RSA", name_of_kind, "RSA", (Kubo,)),
    ("we resolve a name of secp256k1", name_of_kind, "secp256k1", (Kubo,)),
    ("we resolve a name of ECDSA", name_of_kind, "ECDSA", (Kubo,)),
]


def run_cell(title, name, peer, cell, kind):
    begun = time.monotonic()
    try:
        cell(peer, kind.get(peer) if isinstance(kind, dict) else kind)
        said = "yes"
    except Exception as error:
        said = "no"
        if os.environ.get("VERBOSE"):
            traceback.print_exc()
        print(f"  {str(error).splitlines()[0][:300] if str(error) else repr(error)}", flush=True)
    finally:
        for process in list(running):
            process.stop()
    print(f"{said:4} {title}: {name} ({time.monotonic() - begun:.0f} s)", flush=True)
    return said


def main():
    words = [word for word in sys.argv[1:] if word != "--fill"]
    pattern, fill, wrong = (words or [""])[0], "--fill" in sys.argv, []
    readme = os.path.join(HERE, "README.md")
    with open(readme) as file:
        text = file.read()
    known = {row[1]: row[2:-1] for row in (re.split(r" *\| *", line) for line in text.splitlines()) if len(row) > 3}
    lines = ["| | " + " | ".join(PEERS) + " |", "| --- |" + " --- |" * len(PEERS)]
    for title, cell, kind, able in ROWS:
        cells = []
        for name, peer in PEERS.items():
            expected = known.get(title, ["?"] * len(PEERS))[len(cells)]
            if peer not in able:
                cells.append("–")
            elif pattern in f"{title}: {name}":
                cells.append(run_cell(title, name, peer, cell, kind))
            else:
                cells.append(expected)
            if cells[-1] != expected:
                wrong.append(f"{title}: {name} is {cells[-1]}, and the table says {expected}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    if fill:
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        with open(readme, "w") as file:
            file.write(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + tail)
    print("\n".join(wrong) or "all as the table says")
    return wrong and not fill


try:
    code = main()
finally:
    for process in list(running):
        process.stop()
    shutil.rmtree(W, ignore_errors=True)
sys.exit(1 if code else 0)
