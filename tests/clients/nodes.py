"""A small cluster in network namespaces: nodes with a daemon and a containerd each, before a docker-registry whose uplink is
limited. For cluster.py and benches/spegel.py; the first two arguments are the program that is tested and a folder to work in.

The nodes are 10.97.0.1 …, a stranger outside of the mesh is 10.97.0.100, the registry is 10.97.0.200:5000. Nothing leaves the
namespaces. Needs root, iproute2, containerd, docker-registry and skopeo.
"""
import json, os, re, signal, subprocess, sys, threading, time

SHOAL, W = sys.argv[1:3]
HERE = os.path.dirname(os.path.abspath(__file__))
NET, UP, STRANGER = "10.97.0", 200, 100
REGISTRY = "registry.example"
CONTAINERD = os.environ.get("CONTAINERD", "containerd")
LAYERS = 10
TTL_S = 3
LIMIT_S = 120
prefix = f"sh{os.getpid()}"
processes, spaces, failures = {}, [], []


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, capture_output=True, **options).stdout


def space(who):
    return f"{prefix}-{who}"


def inside(who, *command, **options):
    return run("ip", "netns", "exec", space(who), *command, **options)


def spawn(name, who, command, log):
    with open(log, "ab") as file:
        processes[name] = subprocess.Popen(["ip", "netns", "exec", space(who), *command], stdin=subprocess.DEVNULL,
                                           stdout=file, stderr=file, start_new_session=True)


def kill(name):
    process = processes.pop(name)
    process.kill()
    process.wait()


def wait_for(what, test, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if test():
                return
        except (OSError, subprocess.CalledProcessError):
            pass
        time.sleep(0.05)
    raise SystemExit(f"not within {seconds} s: {what}")


def check(holds, what):
    print(f"  {'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        failures.append(what)


# --- the network ---

def add_space(who, address=None):
    run("ip", "netns", "add", space(who))
    spaces.append(space(who))
    inside(who, "ip", "link", "set", "lo", "up")
    if address:
        run("ip", "link", "add", "eth0", "netns", space(who), "type", "veth", "peer", "name", f"p{who}", "netns", space("switch"))
        inside("switch", "ip", "link", "set", f"p{who}", "master", "bridge", "up")
        inside(who, "ip", "addr", "add", f"{NET}.{address}/24", "dev", "eth0")
        inside(who, "ip", "link", "set", "eth0", "up")


def network_start(mbit):
    """The switch, and the registry behind an uplink of this width."""
    os.makedirs(f"{W}/registry", exist_ok=True)
    add_space("switch")
    inside("switch", "ip", "link", "add", "bridge", "type", "bridge")
    inside("switch", "ip", "link", "set", "bridge", "up")
    add_space("up", UP)
    limit("up", mbit)
    registry_start()


def stop_all():
    for process in processes.values():
        process.send_signal(signal.SIGKILL)
    for process in processes.values():
        process.wait()
    processes.clear()
    for name in spaces:
        subprocess.run(["ip", "netns", "del", name])
    spaces.clear()


def limit(who, mbit):
    """What leaves `who`; 0: no limit."""
    if mbit:
        shape = ["tbf", "rate", f"{mbit}mbit", "burst", "256k", "latency", "50ms"]
        inside(who, "tc", "qdisc", "replace", "dev", "eth0", "root", *shape)
    else:
        inside(who, "tc", "qdisc", "del", "dev", "eth0", "root")


def limit_to(who, mbit):
    """What goes to `who`."""
    shape = ["tbf", "rate", f"{mbit}mbit", "burst", "64k", "latency", "100ms"] if mbit else ["pfifo"]
    inside("switch", "tc", "qdisc", "replace", "dev", f"p{who}", "root", *shape)


def uplink_bytes():
    return int(inside("up", "cat", "/sys/class/net/eth0/statistics/tx_bytes"))


# --- the registry ---

def registry_start():
    with open(f"{W}/registry.yml", "w") as file:
        file.write(f'version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: "{W}/registry"}}}}\n'
                   f'http: {{addr: "{NET}.{UP}:5000", secret: test}}\n')
    spawn("registry", "up", ["docker-registry", "serve", f"{W}/registry.yml"], f"{W}/registry.log")
    wait_for("the registry starts", lambda: inside("up", "curl", "-sf", f"http://{NET}.{UP}:5000/v2/") is not None)


def asked(pattern):
    """Lines of the registry's access log with this in them."""
    with open(f"{W}/registry.log", errors="replace") as file:
        return sum(bool(re.search(pattern, line)) for line in file)


def push(tag, layers=LAYERS, kib=100, seed=None, repo="library/app"):
    """Returns the bytes of the image's own layers, and its digest. The first layer is that of all images."""
    seed = seed or tag
    folder = f"{W}/image"
    digest = run("python3", f"{HERE}/image.py", folder, seed, "--seed", seed, "--layers", str(layers), "--kib", str(kib),
                 "--plain").strip()
    # Over the loopback of its namespace, which has no limit.
    inside("up", "skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{folder}:{seed}",
           f"docker://{NET}.{UP}:5000/{repo}:{tag}")
    with open(f"{folder}/blobs/sha256/{digest.split(':')[1]}") as file:
        manifest = json.load(file)
    run("rm", "-rf", folder)
    return sum(layer["size"] for layer in manifest["layers"][1:]), digest


# --- the nodes ---

def shoal_start(n, peers, bootstrap=()):
    folder = f"{W}/n{n}"
    os.makedirs(folder, exist_ok=True)
    peers = ", ".join(f"/ip4/{NET}.{peer}/tcp/4001" for peer in peers)
    mirrored = "" if n == STRANGER else f'{REGISTRY}: {{upstream: "http://{NET}.{UP}:5000", tagttl: {TTL_S}s}}'
    with open(f"{folder}/config.yaml", "w") as file:
        file.write(f'version: 0.1\nlog: {{level: info}}\nhttp: {{addr: "127.0.0.1:5000", debug: {{addr: ""}}}}\n'
                   f'storage: {{ipfs: {{rootdirectory: {folder}/data}}}}\n'
                   f'p2p: {{listen: [/ip4/{NET}.{n}/tcp/4001], bootstrap: [{", ".join(bootstrap)}], peers: [{peers}], mdns: false}}\n'
                   f'mirror: {{registries: {{{mirrored}}}}}\n')
    spawn(f"shoal{n}", f"n{n}", [SHOAL, "serve", f"{folder}/config.yaml"], f"{folder}/log")
    wait_for(f"daemon {n} starts", lambda: inside(f"n{n}", "curl", "-sf", "http://127.0.0.1:5000/v2/") is not None)


def containerd_start(n):
    folder = f"{W}/n{n}"
    mirror, registry = "127.0.0.1:5000", f"{NET}.{UP}:5000"
    # By the mirror alone: a way around it would hide what the mirror does not do.
    for name, host, server in (("mirrored", mirror, "127.0.0.1:1"), ("direct", registry, registry), ("either", mirror, registry)):
        os.makedirs(f"{folder}/{name}/{REGISTRY}")
        with open(f"{folder}/{name}/{REGISTRY}/hosts.toml", "w") as file:
            file.write(f'server = "http://{server}"\n[host."http://{host}"]\n  capabilities = ["pull", "resolve"]\n')
    with open(f"{folder}/containerd.toml", "w") as file:
        file.write(f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n[grpc]\naddress = "{folder}/sock"\n'
                   f'[ttrpc]\naddress = "{folder}/ttrpc"\n')
    spawn(f"containerd{n}", f"n{n}", [CONTAINERD, "--config", f"{folder}/containerd.toml", "--log-level", "warn"], f"{folder}/containerd.log")
    wait_for(f"containerd {n} starts", lambda: inside(f"n{n}", "ctr", "-a", f"{folder}/sock", "version") is not None)


def node_of(n):
    status = run(SHOAL, "status", "--json", "--config", f"{W}/n{n}/config.yaml")
    return json.loads(status)["node"]


def fetch(n, tag, hosts="mirrored"):
    """Seconds that one node's containerd takes; None: it failed."""
    begun = time.monotonic()
    command = ["ip", "netns", "exec", space(f"n{n}"), "timeout", str(LIMIT_S), "ctr", "-a", f"{W}/n{n}/sock", "content", "fetch",
               "--hosts-dir", f"{W}/n{n}/{hosts}", f"{REGISTRY}/library/app:{tag}"]
    with open(f"{W}/n{n}/fetch.log", "ab") as log:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log).returncode
    return None if status else time.monotonic() - begun


def fetch_all(nodes, tag, meanwhile=None, hosts="mirrored"):
    """All at once: seconds by node, and what went over the uplink."""
    before, seconds = uplink_bytes(), {}
    threads = [threading.Thread(target=lambda n=n: seconds.update({n: fetch(n, tag, hosts)})) for n in nodes]
    for thread in threads:
        thread.start()
    if meanwhile:
        meanwhile()
    for thread in threads:
        thread.join()
    return seconds, uplink_bytes() - before


def forget(nodes):
    """Empties the containerds, so that the next pull asks the mirror again."""
    for n in nodes:
        ctr = ["ctr", "-a", f"{W}/n{n}/sock"]
        for name in inside(f"n{n}", *ctr, "images", "ls", "-q").split():
            inside(f"n{n}", *ctr, "images", "rm", "--sync", name)
        for digest in inside(f"n{n}", *ctr, "content", "ls", "-q").split():
            inside(f"n{n}", *ctr, "content", "rm", digest)
