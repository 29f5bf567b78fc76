#!/usr/bin/env python3
"""py-libp2p.py [--connect ADDR]... - py-libp2p as a peer of the DHT of private addresses, driven over stdin.

First line out: {"ready":true,"id":...,"addrs":[...]}; then a command a line in, a JSON answer out:
  connect MULTIADDR/p2p/ID | provide CID | providers CID | block CID PEER | keep FILE | record NAMEHEX | quit
"""
import argparse, hashlib, json, sys
import multiaddr, trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.bitswap.client import BitswapClient
from libp2p.tools.anyio_service import background_trio_service

LAN = TProtocol("/ipfs/lan/kad/1.0.0")
for module in (common, kad_dht, peer_routing, provider_store, value_store):
    module.PROTOCOL_ID = LAN

args = argparse.ArgumentParser()
args.add_argument("--connect", action="append", default=[])
args = args.parse_args()


def put(answer):
    print(json.dumps(answer), flush=True)


async def main():
    host = new_host()
    listen = multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")
    async with host.run(listen_addrs=[listen]), trio.open_nursery() as nursery:
        nursery.start_soon(host.get_peerstore().start_cleanup_task, 60)
        dht = kad_dht.KadDHT(host, kad_dht.DHTMode.SERVER)
        bitswap = BitswapClient(host)
        bitswap.set_nursery(nursery)
        await bitswap.start()

        async def connect(address):
            info = info_from_p2p_addr(multiaddr.Multiaddr(address))
            await host.connect(info)
            await dht.add_peer(info.peer_id, skip_server_mode_check=True)
            return {"peer": str(info.peer_id)}

        async def provide(cid):
            return {"provided": bool(await dht.provide(cid))}

        async def providers(cid):
            return {"providers": [str(found.peer_id) for found in await dht.find_providers(cid)]}

        async def block(cid):
            session = bitswap.new_session()
            return {"sha256": hashlib.sha256(await session.get_block(cid)).hexdigest()}

        async def keep(cid, path):
            with open(path, "rb") as file:
                await bitswap.add_block(cid, file.read())
            return {}

        commands = {"connect": connect, "provide": provide, "providers": providers, "block": block, "keep": keep}
        async with background_trio_service(dht):
            for address in args.connect:
                await connect(address)
            put({"ready": True, "id": str(host.get_id()), "addrs": [str(a) for a in host.get_addrs()]})
            async for line in trio.wrap_file(sys.stdin):
                words = line.split()
                if words[:1] == ["quit"]:
                    break
                if not words:
                    continue
                try:
                    with trio.fail_after(20):
                        put({"ok": True, **(await commands[words[0]](*words[1:]))})
                except Exception as error:
                    put({"ok": False, "error": repr(error)})
        nursery.cancel_scope.cancel()


trio.run(main)
