"""python-oras.py push|push-chunked|pull TARGET FILE|FOLDER, or delete TARGET - PyPI's oras, which has no command line."""
import os, sys
import oras.client

operation, target = sys.argv[1:3]
client = oras.client.OrasClient(insecure=True)
if operation == "delete":
    repository, tag = target.rsplit(":", 1)
    if client.delete_tags(repository, tag) != [tag]:
        sys.exit("not deleted")
elif operation == "pull":
    print(*client.pull(target=target, outdir=sys.argv[3]))
else:
    folder, name = os.path.split(sys.argv[3])
    os.chdir(folder)
    chunked = operation == "push-chunked"
    client.push(target=target, files=[name], do_chunked=chunked, chunk_size=1 << 18).raise_for_status()
