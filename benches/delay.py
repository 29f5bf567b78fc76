#!/usr/bin/env python3
"""delay.py MS NAMESPACE ADDRESS NAMESPACE ADDRESS - joins two network namespaces by a line that takes MS milliseconds each way.

Each gets an interface `wan` with its address (A.B.C.D/N). How many bits a second pass is up to a queue of the caller's on
that interface. Says "ready"; ends by a signal. For kernels without netem.
"""
import collections, ctypes, fcntl, os, select, struct, subprocess, sys, time

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000
PACKETS_MAX = 20_000
libc = ctypes.CDLL(None, use_errno=True)


def end_in(namespace, address):
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    for inside in (there, here):
        if libc.setns(inside, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        if inside == there:
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"wan", IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "-n", namespace, "addr", "add", address, "dev", "wan"], check=True)
    subprocess.run(["ip", "-n", namespace, "link", "set", "wan", "up"], check=True)
    return end


delay = float(sys.argv[1]) / 1000
ends = [end_in(*sys.argv[2:4]), end_in(*sys.argv[4:6])]
under_way = {end: collections.deque() for end in ends}  # of packets to an end: when they arrive, and they
print("ready", flush=True)
while True:
    due = [queue[0][0] for queue in under_way.values() if queue]
    wait = max(0, min(due) - time.monotonic()) if due else None
    for end in select.select(ends, [], [], wait)[0]:
        queue = under_way[ends[1 - ends.index(end)]]
        try:
            while len(queue) < PACKETS_MAX:
                queue.append((time.monotonic() + delay, os.read(end, 65536)))
        except BlockingIOError:
            pass
    now = time.monotonic()
    for end, queue in under_way.items():
        while queue and queue[0][0] <= now:
            try:
                os.write(end, queue.popleft()[1])
            except OSError:
                pass  # the other end is going down
