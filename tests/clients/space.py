#!/usr/bin/env python3
"""space.py REGISTRY PACKS GIB LIVE MIB - pushes images of MIB mebibytes until GIB gibibytes went in, deletes the oldest
whenever there are more than LIVE, and holds the disk use of PACKS to 1.5 times what is live and a segment of 256 MiB.
"""
import hashlib, http.client, json, os, sys, urllib.parse

registry, packs, gib, live_images, mib = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
MIB = 1 << 20
SEGMENT_BYTES = 256 * MIB
LIMIT_BYTES = live_images * mib * MIB * 3 // 2 + SEGMENT_BYTES
REPO = "space/app"
TYPE = "application/vnd.oci.image.manifest.v1+json"
connection = http.client.HTTPConnection(urllib.parse.urlparse(registry).netloc, timeout=120)


def request(method, path, body=None, headers={}):
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.getheader("Location"), response.read()


def push_blob(content):
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    status, location, _ = request("POST", f"/v2/{REPO}/blobs/uploads/")
    assert status == 202, status
    status, *_ = request("PUT", f"{location}?digest={digest}", content)
    assert status == 201, status
    return {"mediaType": "application/octet-stream", "digest": digest, "size": len(content)}


def push(number):
    noise = os.urandom(MIB)
    # Every mebibyte differs, without a mebibyte of randomness each.
    layer = b"".join(number.to_bytes(8, "big") + part.to_bytes(8, "big") + noise[16:] for part in range(mib))
    config = push_blob(json.dumps({"number": number}).encode())
    manifest = json.dumps({"schemaVersion": 2, "mediaType": TYPE, "config": config, "layers": [push_blob(layer)]})
    status, *_ = request("PUT", f"/v2/{REPO}/manifests/t{number}", manifest, {"Content-Type": TYPE})
    assert status == 201, status
    return "sha256:" + hashlib.sha256(manifest.encode()).hexdigest(), hashlib.sha256(layer).hexdigest()


def disk_bytes():
    return sum(os.stat(entry.path).st_blocks * 512 for entry in os.scandir(packs))


live, most = [], 0
for number in range(gib * 1024 // mib):
    live.append((number, *push(number)))
    if len(live) > live_images:
        _, digest, _ = live.pop(0)
        status, *_ = request("DELETE", f"/v2/{REPO}/manifests/{digest}")
        assert status == 202, status
    most = max(most, disk_bytes())
    assert most <= LIMIT_BYTES, f"{most // MIB} MiB on disk after {number + 1} images, more than {LIMIT_BYTES // MIB}"
    if number % 10 == 9:
        _, _, layer = live[0]
        status, _, content = request("GET", f"/v2/{REPO}/blobs/sha256:{layer}")
        assert status == 200 and hashlib.sha256(content).hexdigest() == layer, f"{status}, {len(content)} bytes"
print(f"  {gib} GiB went in; at most {most // MIB} MiB were on disk ({LIMIT_BYTES // MIB} allowed)")
