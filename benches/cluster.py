#!/usr/bin/env python3
"""cluster.py PROGRAM FOLDER KIND - what nodes with a mirror each cost a registry behind an uplink of 100 Mbit/s, and how long
they take. KIND is what PROGRAM is: `shoal`, `spegel`, or `none` for nodes that ask the registry themselves. Each node has a
containerd, which asks its mirror and then the registry, as Spegel needs it. Prints a line `name value` for each figure; `-`: it
did not succeed. Where all is and what it needs: tests/clients/nodes.py.
"""
import os, re, sys, time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "clients"))
from nodes import (NET, REGISTRY, SHOAL as PROGRAM, W, add_space, containerd_start, fetch, fetch_all, forget, inside, kill,
                   network_start, node_of, push, shoal_start, spawn, stop_all, wait_for)

KIND = sys.argv[3]
EARLY, LATER, NEW = [1, 2, 3, 4], 5, 6
NODES = range(1, 7)
UPLINK_MBIT, KIB = 100, 10_000
MOVED_LIMIT_S, TRIED_S = 20, 30
HOSTS = "direct" if KIND == "none" else "either"


def spegel_start(n):
    folder = f"{W}/n{n}"
    bootstrap = ["--http-bootstrap-addr", f"{NET}.{n}:5002", "--http-bootstrap-peer", f"http://{NET}.1:5002"]
    spawn(f"spegel{n}", f"n{n}", [PROGRAM, "registry", "--log-level", "WARN", "--registry-addr", ":5000",
                                  "--router-addr", f"{NET}.{n}:5001", "--metrics-addr", "127.0.0.1:9090",
                                  "--containerd-sock", f"{folder}/sock", "--containerd-namespace", "default",
                                  "--containerd-content-path", f"{folder}/root/io.containerd.content.v1.content",
                                  "--mirrored-registries", f"http://{REGISTRY}", "--data-dir", f"{folder}/data",
                                  "--bootstrap-kind", "http", *bootstrap], f"{folder}/log")


def mirrors_start():
    if KIND == "shoal":
        for n in NODES:
            shoal_start(n, [other for other in NODES if other != n])
        wait_for("the mesh is whole", lambda: all(node_of(n)["mesh_peers"] == len(NODES) - 1 for n in NODES))
    elif KIND == "spegel":
        for n in NODES:
            spegel_start(n)
        for n in NODES:
            ready = ["curl", "-sf", "--max-time", "5", "http://127.0.0.1:5000/readyz"]
            wait_for(f"Spegel {n} has peers", lambda: inside(f"n{n}", *ready) is not None, 60)


def say(name, value, digits=2):
    print(name, "-" if value is None else f"{value:.{digits}f}", flush=True)


def last(seconds):
    return None if None in seconds.values() else max(seconds.values())


def moved():
    """Seconds until a tag that moved is pulled as it is now, by a node that has it as it was; None: it is not."""
    push("moving", layers=1, seed="old")
    fetch_all(EARLY, "moving", hosts=HOSTS)
    _, new = push("moving", layers=1, seed="new")
    begun = time.monotonic()
    while time.monotonic() - begun < MOVED_LIMIT_S:
        fetch(4, "moving", HOSTS)
        listed = inside("n4", "ctr", "-a", f"{W}/n4/sock", "images", "ls")
        if re.search(rf"app:moving\s.*{new}", listed):
            return time.monotonic() - begun
        time.sleep(0.2)
    return None


def fetched(n, tag):
    """Seconds until a node has an image; it asks again and again, as a kubelet does. None: it does not get it."""
    begun = time.monotonic()
    while time.monotonic() - begun < TRIED_S:
        if fetch(n, tag, HOSTS) is not None:
            return time.monotonic() - begun
        time.sleep(1)
    return None


def main():
    network_start(UPLINK_MBIT)
    for n in NODES:
        add_space(f"n{n}", n)
        containerd_start(n)
    mirrors_start()
    size, _ = push("cold", kib=KIB)
    seconds, sent = fetch_all(EARLY, "cold", hosts=HOSTS)
    say("cold_s", last(seconds))
    say("cold_uplink", sent / size)
    # What the nodes have is told by then.
    time.sleep(5)
    seconds, sent = fetch_all([LATER], "cold", hosts=HOSTS)
    say("later_s", last(seconds))
    say("later_uplink", sent / size)
    say("moved_s", moved())
    kill("registry")
    say("outage_s", fetched(NEW, "cold"))
    # As when images are no longer run.
    forget(NODES)
    time.sleep(5)
    say("forgotten_s", fetched(1, "cold"))


try:
    main()
finally:
    stop_all()
