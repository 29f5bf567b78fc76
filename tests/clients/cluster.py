#!/usr/bin/env python3
"""cluster.py SHOAL FOLDER - a small cluster in network namespaces: nodes with a daemon and a containerd each, before a
docker-registry whose uplink is limited. Each scene pulls, and holds what it cost to what was promised. Four nodes pull
100 MB over 100 Mbit/s; where more is going on, 50 MB over 50 Mbit/s: two cores are to wait for the uplink, as a cluster's do.

The nodes are 10.97.0.1 …, a stranger outside of the mesh is 10.97.0.100, the registry is 10.97.0.200:5000. Nothing
leaves the namespaces, and everything is stopped by pid at the end. Needs root, iproute2, containerd, docker-registry and
skopeo. Scenes may be chosen by name: cluster.py SHOAL FOLDER cold dead …
"""
import json, os, re, signal, subprocess, sys, threading, time

SHOAL, W = sys.argv[1:3]
HERE = os.path.dirname(os.path.abspath(__file__))
NET, UP, STRANGER, NODES = "10.97.0", 200, 100, 8
REGISTRY = "registry.example"
WIDEST_MBIT, WIDE_MBIT, NARROW_MBIT = 200, 100, 50
# An image of ten layers that takes 8 s over the uplink.
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
    # By the mirror alone: a way around it would hide what the mirror does not do.
    for name, host, server in (("mirrored", "127.0.0.1:5000", "127.0.0.1:1"), ("direct", *[f"{NET}.{UP}:5000"] * 2)):
        os.makedirs(f"{folder}/{name}/{REGISTRY}")
        with open(f"{folder}/{name}/{REGISTRY}/hosts.toml", "w") as file:
            file.write(f'server = "http://{server}"\n[host."http://{host}"]\n  capabilities = ["pull", "resolve"]\n')
    with open(f"{folder}/containerd.toml", "w") as file:
        file.write(f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n[grpc]\naddress = "{folder}/sock"\n'
                   f'[ttrpc]\naddress = "{folder}/ttrpc"\n')
    spawn(f"containerd{n}", f"n{n}", ["containerd", "--config", f"{folder}/containerd.toml", "--log-level", "warn"], f"{folder}/containerd.log")
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


def fetch_all(nodes, tag, meanwhile=None):
    """All at once: seconds by node, and what went over the uplink."""
    before, seconds = uplink_bytes(), {}
    threads = [threading.Thread(target=lambda n=n: seconds.update({n: fetch(n, tag)})) for n in nodes]
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


def cost(label, seconds, sent, size, time_max, ratio_max):
    done = [s for s in seconds.values() if s is not None]
    check(len(done) == len(seconds), f"{label}: {len(done)} of {len(seconds)} nodes have it")
    if done and time_max:
        check(max(done) <= time_max, f"{label}: the last node had it after {max(done):.1f} s (at most {time_max:.1f})")
    check(sent <= ratio_max * size, f"{label}: {sent / size:.2f} times its bytes over the uplink (at most {ratio_max})")


def fetcher(nodes):
    """The node that has received most from upstream just now."""
    def received(n):
        status = json.loads(run(SHOAL, "status", "--json", "--config", f"{W}/n{n}/config.yaml"))
        from_upstream = [fill for fill in status["fills"] if (fill["from"] or "").startswith("upstream")]
        return sum(fill["received_bytes"] for fill in from_upstream), n
    return max(received(n) for n in nodes)[1]


def when_sent(bytes_, then):
    """Does something as soon as so much has gone over the uplink."""
    goal = uplink_bytes() + bytes_

    def wait():
        wait_for(f"{bytes_} bytes over the uplink", lambda: uplink_bytes() >= goal, 60)
        then()
    return wait


# --- the scenes ---

class Uplink:
    """The registry's uplink at one width, and images that take 8 s over it."""

    def __init__(self, mbit):
        self.mbit, self.kib = mbit, 100 * mbit
        limit("up", mbit)
        size, _ = self.push(f"direct{mbit}")
        self.direct_s = fetch(1, f"direct{mbit}", "direct")
        if self.direct_s is None:
            raise SystemExit("the registry itself cannot be pulled from")
        forget([1])
        print(f"  one direct pull of {size >> 20} MiB takes {self.direct_s:.1f} s")

    def push(self, tag):
        return push(tag, kib=self.kib)


class Scenes:
    """In the order in which they run; each leaves the cluster whole."""

    def widest(self):
        """By name only: two cores are busy with it, and its bound on time is not kept in every run."""
        self.cold(WIDEST_MBIT)

    def cold(self, mbit=WIDE_MBIT):
        uplink = Uplink(mbit)
        size, _ = uplink.push("cold")
        seconds, sent = fetch_all([1, 2, 3, 4], "cold")
        time_max, ratio_max = (1.3, 1.1) if mbit == WIDEST_MBIT else (1.6, 1.3)
        cost("four cold nodes", seconds, sent, size, time_max * uplink.direct_s, ratio_max)
        blobs = asked("GET .*/blobs/")
        seconds, _ = fetch_all([5], "cold")
        check(seconds[5] is not None, "a fifth node has it later")
        check(asked("GET .*/blobs/") == blobs, "the fifth node costs upstream no blob")
        forget(range(1, 6))

    def eight(self):
        uplink = Uplink(NARROW_MBIT)
        size, _ = uplink.push("eight")
        seconds, sent = fetch_all(range(1, 9), "eight")
        # Eight daemons and containerds on two cores: some answer late, and are not waited for.
        cost("eight cold nodes", seconds, sent, size, 2 * uplink.direct_s, 1.4)
        forget(range(1, 9))

    def killed(self):
        uplink = Uplink(NARROW_MBIT)
        size, _ = uplink.push("killed")
        gone = []

        def kill_fetcher():
            gone.append(fetcher([1, 2, 3, 4]))
            kill(f"shoal{gone[0]}")
        seconds, sent = fetch_all([1, 2, 3, 4], "killed", when_sent(size // 2, kill_fetcher))
        left = {n: s for n, s in seconds.items() if n != gone[0]}
        # What the dead node alone had received must come again.
        cost("the fetcher is killed", left, sent, size, 2 * uplink.direct_s, 1.4)
        shoal_start(gone[0], [n for n in range(1, NODES + 1) if n != gone[0]])
        forget([1, 2, 3, 4])

    def slow(self):
        uplink = Uplink(NARROW_MBIT)
        size, _ = push("slow", layers=4, kib=uplink.kib)
        limit("n4", NARROW_MBIT / 5)
        limit_to("n4", NARROW_MBIT / 5)
        seconds, sent = fetch_all([1, 2, 3, 4], "slow")
        limit("n4", 0)
        limit_to("n4", 0)
        # What the slow node was to fetch, and is taken from it, comes again.
        cost("one slow node", seconds, sent, size, None, 1.4)
        fast = [seconds[n] for n in (1, 2, 3) if seconds[n] is not None]
        bound_s = 0.75 * (seconds[4] or 0)
        check(fast and max(fast) <= bound_s, f"one slow node: the others had it after {max(fast, default=0):.1f} s (at most three quarters of its time, {bound_s:.1f})")
        forget([1, 2, 3, 4])

    def dead(self):
        uplink = Uplink(NARROW_MBIT)
        size, _ = uplink.push("dead")
        begun = time.monotonic()
        seconds, first = fetch_all([1, 2, 3, 4], "dead", when_sent(size // 2, lambda: kill("registry")))
        told_s = time.monotonic() - begun
        check(not any(seconds.values()), "nobody claims to have what upstream has not sent")
        check(told_s < 60, f"all are told so within {told_s:.0f} s")
        registry_start()
        limit_s = time.monotonic() + 60
        while True:
            seconds, more = fetch_all([1, 2, 3, 4], "dead")
            first += more
            if None not in seconds.values() or time.monotonic() > limit_s:
                break
            time.sleep(1)
        # The first to be told that upstream is back may be one that had less before.
        cost("upstream dies and comes back", seconds, first, size, None, 1.4)
        forget([1, 2, 3, 4])

    def outage(self):
        limit("up", WIDE_MBIT)
        size, _ = push("outage", layers=5, kib=20000)
        fetch_all([1, 2], "outage")
        forget([1, 2])
        usual, _ = fetch_all([3], "outage")
        forget([3])
        kill("registry")
        for n in range(1, 5):
            seconds = fetch(n, "outage")
            # Who waited for the registry to answer would take longer.
            bound = 1.5 * usual[3] + 4
            check(seconds is not None and seconds <= bound, f"upstream down: node {n} has it after {seconds or 0:.1f} s (at most {bound:.1f})")
        registry_start()
        forget([1, 2, 3, 4])

    def rolling(self):
        def seen(n):
            url = f"http://127.0.0.1:5000/v2/library/app/manifests/rolling?ns={REGISTRY}"
            head = inside(f"n{n}", "curl", "-sI", "--max-time", "5", url)
            found = re.search(r"docker-content-digest: (\S+)", head, re.I)
            return found and found[1]
        _, old = push("rolling", layers=1, seed="old")
        wait_for("the first tag is seen", lambda: all(seen(n) == old for n in range(1, 5)))
        heads, begun = asked('"HEAD .*/manifests/rolling'), time.monotonic()
        _, new = push("rolling", layers=1, seed="new")
        pushed = time.monotonic()
        late = {}
        while time.monotonic() - begun < 4 * TTL_S:
            for n in range(1, 5):
                if seen(n) == new:
                    late.setdefault(n, time.monotonic() - pushed)
        intervals = (time.monotonic() - begun) / TTL_S
        heads = asked('"HEAD .*/manifests/rolling') - heads
        check(len(late) == 4 and max(late.values()) <= 2 * TTL_S, f"a tag that moved is seen within {max(late.values(), default=0):.1f} s by {len(late)} of 4")
        check(heads <= intervals + 2, f"it costs {heads} HEAD in {intervals:.1f} intervals, for all nodes")

    def stranger(self):
        _, digest = push("private", layers=1)
        check(fetch(1, "private") is not None, "a node has the private image")
        identity = run(SHOAL, "id", "--json", "--config", f"{W}/n1/config.yaml")
        peer = json.loads(identity)["peer_id"]
        shoal_start(STRANGER, [1], [f"/ip4/{NET}.1/tcp/4001/p2p/{peer}"])
        wait_for("the stranger is connected", lambda: node_of(STRANGER)["peers"] == 1)
        paths = (f"library/app/manifests/private?ns={REGISTRY}", f"{REGISTRY}/library/app/manifests/{digest}",
                 f"library/app/manifests/{digest}", f"library/app/blobs/{digest}")
        for path in paths:
            status = inside(f"n{STRANGER}", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "30",
                            f"http://127.0.0.1:5000/v2/{path}")
            check(status != "200", f"a stranger gets {status} for {path.split('?')[0][:60]}")
        kill(f"shoal{STRANGER}")


def main():
    os.makedirs(f"{W}/registry", exist_ok=True)
    add_space("switch")
    inside("switch", "ip", "link", "add", "bridge", "type", "bridge")
    inside("switch", "ip", "link", "set", "bridge", "up")
    add_space("up", UP)
    limit("up", WIDE_MBIT)
    registry_start()
    nodes = range(1, NODES + 1)
    for n in [*nodes, STRANGER]:
        add_space(f"n{n}", n)
    for n in nodes:
        shoal_start(n, [other for other in nodes if other != n])
        containerd_start(n)
    wait_for("the mesh is whole", lambda: all(node_of(n)["mesh_peers"] == NODES - 1 for n in nodes))
    push("base", layers=0)
    seconds, _ = fetch_all(nodes, "base")
    check(None not in seconds.values(), "all nodes have what the images have in common")
    forget(nodes)
    scenes = Scenes()
    for name in sys.argv[3:] or ["cold", "eight", "killed", "slow", "dead", "outage", "rolling", "stranger"]:
        begun = time.monotonic()
        getattr(scenes, name)()
        print(f"  {name}: {time.monotonic() - begun:.0f} s", flush=True)


try:
    main()
finally:
    for process in processes.values():
        process.send_signal(signal.SIGKILL)
    for process in processes.values():
        process.wait()
    for name in spaces:
        subprocess.run(["ip", "netns", "del", name])
sys.exit(1 if failures else 0)
