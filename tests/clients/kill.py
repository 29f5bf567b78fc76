#!/usr/bin/env python3
"""kill.py SHOAL CONFIG TIMES - pushes to a daemon, deletes some of it and has the space freed all the while, kills it at
random moments, and checks after each start that every tag is whole: those that were acknowledged and not deleted, and
any other that is listed. More than half of the starts are ready within 2 s: a busy machine may delay one, or a few.

What a crash could lose is what was written last, so each round checks the tags of that round and a sample of the
older ones; the last round checks all.
"""
import hashlib, http.client, json, random, re, socket, subprocess, sys, threading, time

shoal, config, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
READY_SECONDS_MAX = 2.0
# What only hangs if it takes longer.
PATIENCE_SECONDS = 60
WRITERS = 3
REPO = "crash/app"
rng = random.Random(7)
acknowledged = {}       # tag -> manifest digest
deleted = rounds_of_gc = 0
control = re.search(r"rootdirectory: (\S+)", open(config).read()).group(1) + "/api.sock"
starts = []             # seconds


def start():
    """Starts the daemon; returns the process, its port, and the seconds until it was ready."""
    began = time.monotonic()
    daemon = subprocess.Popen([shoal, "serve", config], stdout=subprocess.PIPE, text=True)
    for line in daemon.stdout:
        if line.startswith("ready "):
            registry = dict(field.split("=", 1) for field in line.split()[1:])["registry"]
            return daemon, int(registry.rsplit(":", 1)[1]), time.monotonic() - began
    raise SystemExit(f"the daemon did not become ready: exit status {daemon.wait()}")


def connect(port):
    """A connection that sends header and body at once: waiting for each other they would take 40 ms a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request(connection, method, path, body=None, headers={}):
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.getheader("Docker-Content-Digest"), response.getheader("Location"), response.read()


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def push_blob(connection, content):
    status, _, location, _ = request(connection, "POST", f"/v2/{REPO}/blobs/uploads/")
    assert status == 202, status
    path = location.split("/v2/", 1)[1]
    joint = "&" if "?" in path else "?"
    status, *_ = request(connection, "PUT", f"/v2/{path}{joint}digest={digest(content)}", content)
    assert status == 201, status
    return {"mediaType": "application/octet-stream", "digest": digest(content), "size": len(content)}


def delete_one(connection, rng, tags):
    """Deletes an image of this writer. From here on it may be there or not, but not by half."""
    global deleted
    digest = acknowledged.pop(tags.pop(rng.randrange(len(tags))))
    status, *_ = request(connection, "DELETE", f"/v2/{REPO}/manifests/{digest}")
    assert status == 202, status
    deleted += 1


def free_space(stop):
    """Has what was deleted freed, again and again."""
    global rounds_of_gc
    while not stop.is_set():
        try:
            connection = http.client.HTTPConnection("shoal", timeout=PATIENCE_SECONDS)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(control)
            status, *_ = request(connection, "POST", "/v0/gc")
            assert status == 200, status
            rounds_of_gc += 1
        except (OSError, http.client.HTTPException):
            time.sleep(0.01)    # the daemon was killed


def push(port, stop, seed):
    """Pushes images, and deletes some, until the connection breaks or it is told to stop."""
    tags = []
    rng = random.Random(seed)
    try:
        connection = connect(port)
        while not stop.is_set():
            layers = [push_blob(connection, rng.randbytes(rng.choice([100, 70_000, 1_500_000]))) for _ in range(2)]
            config = push_blob(connection, rng.randbytes(50))
            config["mediaType"] = "application/vnd.oci.image.config.v1+json"
            media_type = "application/vnd.oci.image.manifest.v1+json"
            manifest = json.dumps({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers}).encode()
            tag = f"t{seed}-{rng.randrange(1 << 40)}"
            status, *_ = request(connection, "PUT", f"/v2/{REPO}/manifests/{tag}", manifest, {"Content-Type": media_type})
            assert status == 201, status
            acknowledged[tag] = digest(manifest)
            tags.append(tag)
            if len(tags) > 1 and rng.random() < 0.4:
                delete_one(connection, rng, tags)
    except (OSError, http.client.HTTPException):
        pass            # the daemon was killed


def check_tag(connection, tag, expected):
    status, _, _, manifest = request(connection, "GET", f"/v2/{REPO}/manifests/{tag}")
    assert status == 200, f"tag {tag} answers {status}"
    assert expected in (None, digest(manifest)), f"tag {tag} points to {digest(manifest)}, not {expected}"
    manifest = json.loads(manifest)
    for blob in [manifest["config"], *manifest["layers"]]:
        status, _, _, content = request(connection, "GET", f"/v2/{REPO}/blobs/{blob['digest']}")
        assert status == 200, f"blob {blob['digest']} of tag {tag} answers {status}"
        assert digest(content) == blob["digest"], f"blob {blob['digest']} of tag {tag} has other bytes"


def listed(connection):
    path, tags = f"/v2/{REPO}/tags/list?n=1000", []
    while path:
        connection.request("GET", path)
        response = connection.getresponse()
        link, body = response.getheader("Link"), json.loads(response.read())
        tags += body.get("tags") or []
        path = link[link.index("<") + 1:link.index(">")] if link else None
    return tags


checked = set()
for round_ in range(times + 1):
    daemon, port, seconds = start()
    starts.append(seconds)
    assert seconds < PATIENCE_SECONDS, f"ready after {seconds:.2f} s in round {round_}"
    connection = connect(port)
    tags = set(listed(connection)) if acknowledged else set()
    lost = set(acknowledged) - tags
    assert not lost, f"{len(lost)} acknowledged tags are gone: {sorted(lost)[:3]}"
    last = round_ == times
    checked &= tags
    sample = set(rng.sample(sorted(checked), min(5, len(checked))))
    for tag in tags if last else (tags - checked) | sample:
        check_tag(connection, tag, acknowledged.get(tag))
    checked |= tags
    if last:
        daemon.terminate()
        assert daemon.wait(PATIENCE_SECONDS) == 0
        break
    stop = threading.Event()
    writers = [threading.Thread(target=push, args=(port, stop, f"{round_}-{n}")) for n in range(WRITERS)]
    writers.append(threading.Thread(target=free_space, args=(stop,)))
    for writer in writers:
        writer.start()
    # However slow the machine is, the rounds until now have had something to lose.
    end = time.monotonic() + PATIENCE_SECONDS
    done = round_ + 1
    while len(acknowledged) <= done + WRITERS or deleted <= done / 10 or rounds_of_gc <= done / 2:
        assert time.monotonic() < end, f"{len(acknowledged)} acknowledged, {deleted} deleted, freed {rounds_of_gc} times"
        time.sleep(0.005)
    time.sleep(rng.uniform(0.005, 0.6))
    daemon.kill()
    daemon.wait()
    stop.set()
    for writer in writers:
        writer.join()

assert len(acknowledged) > times, f"only {len(acknowledged)} pushes were acknowledged: the test tested little"
assert deleted > times / 10 and rounds_of_gc > times / 2, f"{deleted} images were deleted in {rounds_of_gc} rounds: too few"
median = sorted(starts)[len(starts) // 2]
assert median < READY_SECONDS_MAX, f"half of the starts took more than {median:.2f} s"
unacknowledged = len(checked - set(acknowledged))
print(f"  {times} kills, {deleted} deletes, space freed {rounds_of_gc} times: {len(acknowledged)} acknowledged tags are all there,"
      f" {unacknowledged} others are whole; slowest start {max(starts):.2f} s")
