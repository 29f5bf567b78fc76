#!/usr/bin/env python3
"""kubo-0.22.py - Kubo 0.22, which the PyPI wheel kubo-python carries as a C library, driven over stdin.

  python kubo-0.22.py --repo DIR [--port N] [--connect ADDR]...

Loopback only: no bootstrap peers, no mDNS, no NAT mapping, no relay, no AutoNAT.
First line out: {"ready":true,"id":...,"addrs":[...]}; then a command a line in, a JSON answer out:
  connect MULTIADDR/p2p/ID | peers | find PEERID | add PATH | get CID DEST | pin CID | unpin CID | rm CID | pins | quit
The library has no IPNS, no RPC API and no gateway; files are added as CIDv0 (dag-pb, 256 KiB leaves).
Commands run one at a time and cannot be cancelled; SIGTERM is ignored: it is ended by SIGKILL.
"""
import argparse, json, os, socket, sys, time

def load():
    import sysconfig
    from cffi import FFI
    name = "libkubo_linux_arm64" if os.uname().machine == "aarch64" else "libkubo_linux_x86_64"
    for sub in ("libkubo", "ipfs_node/libkubo"):
        base = os.path.join(sysconfig.get_paths()["purelib"], sub, name)
        if os.path.exists(base + ".so"):
            ffi = FFI()
            with open(base + ".h") as f:
                ffi.cdef("\n".join(l for l in f.read().splitlines() if l.startswith("extern ") and l.endswith(";")))
            return ffi, ffi.dlopen(base + ".so")
    sys.exit("no libkubo here: pip install --no-deps kubo-python==0.1.5")


real = os.dup(1)
os.dup2(2, 1)                       # the Go side prints on stdout
ffi, libkubo = load()
OUT = os.fdopen(real, "w", buffering=1)


def c_str(x):
    return ffi.new("char[]", x.encode())


def from_c_str(p):
    return ffi.string(p).decode()


def put(o):
    OUT.write(json.dumps(o) + "\n")


ap = argparse.ArgumentParser()
ap.add_argument("--repo", required=True)
ap.add_argument("--port", type=int, default=0)
ap.add_argument("--routing", default="dhtserver")
ap.add_argument("--connect", action="append", default=[])
a = ap.parse_args()
if not a.port:                      # Kubo would take port 0, but its repo wants a fixed one
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    a.port = s.getsockname()[1]
    s.close()
os.makedirs(a.repo, exist_ok=True)
R = c_str(a.repo)
cfg = os.path.join(a.repo, "config")
if not os.path.exists(cfg) and libkubo.CreateRepo(R) < 0:
    sys.exit("CreateRepo failed")
c = json.load(open(cfg))
c["Bootstrap"] = []
c["Addresses"].update(Swarm=[f"/ip4/127.0.0.1/tcp/{a.port}", f"/ip4/127.0.0.1/udp/{a.port}/quic-v1"],
                      API=[], Gateway=[])
c["Discovery"]["MDNS"]["Enabled"] = False
c["Swarm"].update(DisableNatPortMap=True, RelayClient={"Enabled": False}, RelayService={"Enabled": False},
                  AddrFilters=[])
c["AutoNAT"] = {"ServiceMode": "disabled"}
c["Routing"]["Type"] = a.routing
json.dump(c, open(cfg, "w"), indent=1)
if libkubo.RunNode(R) < 0:
    sys.exit("RunNode failed")
me = from_c_str(libkubo.GetNodeID(R)).replace("ID:", "")
for p in a.connect:
    libkubo.ConnectToPeer(R, c_str(p))
put({"ready": True, "id": me,
     "addrs": [x + "/p2p/" + me for x in json.loads(from_c_str(libkubo.GetNodeMultiAddrs(R)))]})


def js(ptr):
    t = from_c_str(ptr)
    return json.loads(t) if t else None


OPS = {
    "connect": lambda x: {"rc": libkubo.ConnectToPeer(R, c_str(x))},
    "peers": lambda: {"peers": js(libkubo.ListPeers(R))},
    "find": lambda p: {"addrs": js(libkubo.FindPeer(R, c_str(p), 10))},
    "add": lambda p: {"cid": from_c_str(libkubo.AddFile(R, c_str(os.path.abspath(p)), False))},
    "get": lambda cid, dest: {"rc": libkubo.Download(R, c_str(cid), c_str(os.path.abspath(dest)))},
    "pin": lambda cid: {"rc": libkubo.PinCID(R, c_str(cid))},
    "unpin": lambda cid: {"rc": libkubo.UnpinCID(R, c_str(cid))},
    "rm": lambda cid: {"rc": libkubo.RemoveCID(R, c_str(cid))},
    "pins": lambda: {"pins": js(libkubo.ListPins(R))},
}
for line in sys.stdin:
    w = line.split()
    if not w:
        continue
    if w[0] == "quit":
        break
    t = time.monotonic()
    try:
        r = OPS[w[0]](*w[1:])
        r = {"op": w[0], "ok": r.get("rc", 0) >= 0, **r}
    except Exception as e:
        r = {"op": w[0], "ok": False, "error": repr(e)}
    r["ms"] = round((time.monotonic() - t) * 1000)
    put(r)
OUT.flush()
os._exit(0)
