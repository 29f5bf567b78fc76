// helia-node.mjs - an independent IPFS peer (Helia / js-libp2p) for tests, driven over stdin.
//
//   node helia-node.mjs [--listen /ip4/127.0.0.1/tcp/0] [--repo DIR] [--kad /ipfs/lan/kad/1.0.0]
//                       [--dht server|client|off] [--connect MULTIADDR]... [--key Ed25519|secp256k1|RSA|ECDSA]
//                       [--bitswap 1.2.0|1.1.0]
//
// Loopback only: no bootstrap peers, no mDNS, no HTTP gateways, no delegated routing, no relay.
// Prints one JSON object a line. The first is {"ready":true,"id":...,"addrs":[...]}.
// Then one command a line on stdin, one JSON answer a line on stdout (with "ms"):
//   connect MULTIADDR            peers                    protocols PEERID
//   add PATH [chunk=N]           (file or directory; CIDv1, raw leaves)  -> {"cid"}
//   cat CID[/PATH] [OUTFILE]     -> {"bytes","sha256"}    ls CID
//   block CID                    -> {"bytes"}             put-raw FILE -> {"cid"} (one raw block)
//   provide CID                  providers CID            closest PEERID|CID
//   publish KEYNAME CID|PATH     -> {"name"}              resolve NAME  -> {"value"}
//   dht-get KEYHEX               table (routing table size)
//   quit
// Any command may end in " timeout=MS" (default 20000).
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { readFile, readdir, stat } from 'node:fs/promises'
import { join, relative, basename } from 'node:path'
import readline from 'node:readline'
import { withBitswap } from '@helia/bitswap'
import { ipns, ipnsSelector, ipnsValidator } from '@helia/ipns'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs, globSource } from '@helia/unixfs'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { identify, identifyPush } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { keychain } from '@libp2p/keychain'
import { noise } from '@libp2p/noise'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { FsBlockstore } from 'blockstore-fs'
import { FsDatastore } from 'datastore-fs'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'

const opt = { listen: [], connect: [], dht: 'server', kad: '/ipfs/lan/kad/1.0.0', key: 'Ed25519', bitswap: '1.2.0' }
for (let i = 2; i < process.argv.length; i += 2) {
  const k = process.argv[i].replace(/^--/, '')
  if (Array.isArray(opt[k])) opt[k].push(process.argv[i + 1])
  else opt[k] = process.argv[i + 1]
}
if (opt.listen.length === 0) opt.listen = ['/ip4/127.0.0.1/tcp/0']

const init = {}
if (opt.repo) {
  init.blockstore = new FsBlockstore(join(opt.repo, 'blocks'))
  init.datastore = new FsDatastore(join(opt.repo, 'data'))
}
const services = { identify: identify(), identifyPush: identifyPush(), ping: ping(), keychain: keychain() }
if (opt.dht !== 'off') {
  services.dht = kadDHT({
    protocol: opt.kad,
    clientMode: opt.dht === 'client',
    peerInfoMapper: passthroughMapper,        // the default drops loopback and private addresses
    allowQueryWithZeroPeers: true,            // else a lone node waits for its first peer
    validators: { ipns: ipnsValidator },
    selectors: { ipns: ipnsSelector }
  })
}
const helia = await withBitswap(withLibp2pLight(createHeliaLight(init), {
  privateKey: await generateKeyPair(opt.key),
  addresses: { listen: opt.listen },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services
}), { protocols: [`/ipfs/bitswap/${opt.bitswap}`] }).start()
const node = helia.libp2p
const fs = unixfs(helia)
const names = ipns(helia)
const out = (o) => process.stdout.write(JSON.stringify(o, (k, v) => typeof v === 'bigint' ? v.toString() : v) + '\n')

for (const a of opt.connect) await node.dial(multiaddr(a))
out({ ready: true, id: node.peerId.toString(), addrs: node.getMultiaddrs().map(String) })

const text = (v) => v instanceof Uint8Array ? Buffer.from(v).toString() : v
const split = (s) => {
  const p = s.replace(/^\/ipfs\//, '')
  const i = p.indexOf('/')
  return i < 0 ? [CID.parse(p), undefined] : [CID.parse(p.slice(0, i)), p.slice(i + 1)]
}
const importOpts = (kw) => kw.chunk
  ? { chunker: fixedSize({ chunkSize: Number(kw.chunk) }), rawLeaves: true, cidVersion: 1 }
  : { rawLeaves: true, cidVersion: 1 }
const ops = {
  connect: async ([a], s) => ({ peer: (await node.dial(multiaddr(a), { signal: s })).remotePeer.toString() }),
  peers: async () => ({ peers: node.getConnections().map(c => c.remoteAddr.toString()) }),
  protocols: async ([p]) => ({ protocols: (await node.peerStore.get(peerIdFromString(p))).protocols }),
  table: async () => ({ size: services.dht ? node.services.dht.routingTable?.size : 0, mode: services.dht ? node.services.dht.getMode() : 'off' }),
  add: async ([p], s, kw) => {
    if ((await stat(p)).isFile()) {
      return { cid: (await fs.addByteStream(createReadStream(p), { ...importOpts(kw), signal: s })).toString() }
    }
    let last
    for await (const e of fs.addAll(globSource(p, '**/*'), { ...importOpts(kw), wrapWithDirectory: true, signal: s })) last = e
    return { cid: last.cid.toString() }
  },
  'put-raw': async ([p], s) => {
    const b = await readFile(p)
    const cid = CID.createV1(raw.code, await sha256.digest(b))
    await helia.blockstore.put(cid, b, { signal: s })
    return { cid: cid.toString() }
  },
  cat: async ([c, file], s) => {
    const [cid, path] = split(c)
    const h = createHash('sha256')
    const w = file ? createWriteStream(file) : null
    let n = 0
    for await (const b of fs.cat(cid, { path, signal: s })) {
      n += b.byteLength
      h.update(b)
      if (w && !w.write(b)) await new Promise(resolve => w.once('drain', resolve))
    }
    if (w) await new Promise(resolve => w.end(resolve))
    return { bytes: n, sha256: h.digest('hex') }
  },
  ls: async ([c], s) => {
    const [cid, path] = split(c)
    const entries = []
    for await (const e of fs.ls(cid, { path, signal: s })) entries.push({ name: e.name, cid: e.cid.toString(), size: e.size })
    return { entries }
  },
  block: async ([c], s) => {
    let n = 0
    const b = helia.blockstore.get(CID.parse(c), { signal: s })
    if (b[Symbol.asyncIterator] || b[Symbol.iterator]) for await (const x of b) n += x.byteLength
    else n = (await b).byteLength
    return { bytes: n }
  },
  provide: async ([c], s) => { await helia.routing.provide(CID.parse(c), { signal: s }); return {} },
  providers: async ([c], s) => {
    const r = []
    for await (const p of helia.routing.findProviders(CID.parse(c), { signal: s })) r.push({ id: p.id.toString(), addrs: p.multiaddrs.map(String) })
    return { providers: r }
  },
  closest: async ([k], s) => {
    const key = k.startsWith('12D3') || k.startsWith('Qm') ? peerIdFromString(k).toMultihash().bytes : CID.parse(k).multihash.bytes
    const r = []
    for await (const p of node.peerRouting.getClosestPeers(key, { signal: s })) r.push(p.id.toString())
    return { closest: r }
  },
  publish: async ([key, v], s) => {
    const r = await names.publish(key, v.startsWith('/') ? v : CID.parse(v), { signal: s })
    return { name: r.name ?? r.publicKey?.toCID?.().toString(), value: text(r.record.value), sequence: r.record.sequence }
  },
  resolve: async ([n], s) => {
    let last
    for await (const r of names.resolve(n, { signal: s, nocache: true })) last = r
    return { value: last?.value ?? text(last?.record?.value), sequence: last?.record?.sequence }
  },
  'dht-get': async ([hex], s) => ({ value: Buffer.from(await node.contentRouting.get(Buffer.from(hex, 'hex'), { signal: s })).toString('hex') })
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const words = line.trim().split(/\s+/).filter(Boolean)
  if (words.length === 0) continue
  const [op, ...rest] = words
  if (op === 'quit') break
  const kw = {}
  const args = rest.filter(w => {
    const m = /^(timeout|chunk)=(.*)$/.exec(w)
    if (m) kw[m[1]] = m[2]
    return !m
  })
  const t0 = performance.now()
  try {
    const r = await ops[op](args, AbortSignal.timeout(Number(kw.timeout ?? 20000)), kw)
    out({ op, ok: true, ...r, ms: Math.round(performance.now() - t0) })
  } catch (e) {
    out({ op, ok: false, error: `${e?.name}: ${e?.message}`, ms: Math.round(performance.now() - t0) })
  }
}
await helia.stop()
process.exit(0)
