#!/usr/bin/env python3
"""image.py FOLDER TAG [--seed N] [--layers N] [--kib N] [--arch A,B] [--plain] - an OCI image layout with one more image in it.

The same arguments give the same bytes. The first layer holds a static busybox, so that the image runs and says
"hello from the image"; the others hold random bytes. With several architectures the tag is an index.
Prints the digest that the tag points to.
"""
import argparse, gzip, hashlib, io, json, os, random, tarfile

args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument("folder")
args.add_argument("tag")
args.add_argument("--seed", default="1")
args.add_argument("--layers", type=int, default=2, help="layers of random bytes")
args.add_argument("--kib", type=int, default=2500, help="size of each")
args.add_argument("--arch", default="amd64")
args.add_argument("--plain", action="store_true", help="layers that are not compressed")
args = args.parse_args()

IMAGE = "application/vnd.oci.image"
blobs = os.path.join(args.folder, "blobs", "sha256")
os.makedirs(blobs, exist_ok=True)


def put(content, media_type):
    digest = hashlib.sha256(content).hexdigest()
    with open(os.path.join(blobs, digest), "wb") as file:
        file.write(content)
    return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(content)}


def put_json(value, media_type):
    return put(json.dumps(value, separators=(",", ":")).encode(), media_type)


def tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content, mode in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), mode, 1700000000
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def put_layer(layer):
    if args.plain:
        return put(layer, IMAGE + ".layer.v1.tar")
    return put(gzip.compress(layer, 1, mtime=0), IMAGE + ".layer.v1.tar+gzip")


def image(arch):
    rng = random.Random(f"{args.seed}/{arch}")
    with open("/bin/busybox", "rb") as file:
        layers = [tar([("bin/busybox", file.read(), 0o755)])]
    layers += [tar([(f"data/{n}.bin", rng.randbytes(args.kib * 1024), 0o644)]) for n in range(args.layers)]
    config = {
        "architecture": arch, "os": "linux", "created": "2023-11-14T22:13:20Z",
        "config": {"Cmd": ["/bin/busybox", "echo", "hello from the image"], "Labels": {"seed": args.seed}},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE + ".manifest.v1+json",
        "config": put_json(config, IMAGE + ".config.v1+json"),
        "layers": [put_layer(layer) for layer in layers],
    }
    return put_json(manifest, manifest["mediaType"]) | {"platform": {"architecture": arch, "os": "linux"}}


images = [image(arch) for arch in args.arch.split(",")]
top = {key: value for key, value in images[0].items() if key != "platform"}
if len(images) > 1:
    index_type = IMAGE + ".index.v1+json"
    top = put_json({"schemaVersion": 2, "mediaType": index_type, "manifests": images}, index_type)

with open(os.path.join(args.folder, "oci-layout"), "w") as file:
    file.write('{"imageLayoutVersion":"1.0.0"}')
index_path = os.path.join(args.folder, "index.json")
index = {"schemaVersion": 2, "manifests": []}
if os.path.exists(index_path):
    with open(index_path) as file:
        index = json.load(file)
name = "org.opencontainers.image.ref.name"
index["manifests"] = [entry for entry in index["manifests"] if entry["annotations"][name] != args.tag]
index["manifests"].append(top | {"annotations": {name: args.tag}})
with open(index_path, "w") as file:
    json.dump(index, file)
print(top["digest"])
