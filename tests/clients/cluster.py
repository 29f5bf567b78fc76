#!/usr/bin/env python3
"""cluster.py SHOAL FOLDER - a small cluster in network namespaces: nodes with a daemon and a containerd each, before a
docker-registry whose uplink is limited. Each scene pulls, and holds what it cost to what was promised. Four nodes pull
100 MB over 100 Mbit/s; where more is going on, 50 MB over 50 Mbit/s: two cores are to wait for the uplink, as a cluster's do.

Where all is and what it needs: nodes.py. Scenes may be chosen by name: cluster.py SHOAL FOLDER cold dead …
"""
import json, re, sys, time

from nodes import (NET, REGISTRY, SHOAL, STRANGER, TTL_S, W, add_space, asked, check, containerd_start, failures, fetch, fetch_all,
                   forget, inside, kill, limit, limit_to, network_start, node_of, push, registry_start, run, shoal_start,
                   stop_all, uplink_bytes, wait_for)

NODES = 8
# An image of ten layers takes 8 s over the uplink of any of these.
WIDEST_MBIT, WIDE_MBIT, NARROW_MBIT = 200, 100, 50


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
            bound = 1.2 * usual[3] + 1
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
        check(len(late) == 4 and max(late.values()) <= TTL_S + 1, f"a tag that moved is seen within {max(late.values(), default=0):.1f} s by {len(late)} of 4")
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
    network_start(WIDE_MBIT)
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
    stop_all()
sys.exit(1 if failures else 0)
