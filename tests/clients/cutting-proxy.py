#!/usr/bin/env python3
"""cutting-proxy.py REGISTRY BYTES - a proxy before REGISTRY (HOST:PORT) on a free port of loopback, which it prints.

The first body of a blob that is longer than BYTES ends after BYTES with a FIN, short of its Content-Length; everything
else passes. Prints "cut PATH" when it did so, and "resumed PATH" when that blob's rest has been asked for and sent.
"""
import http.client, http.server, socket, sys, threading

registry, cut_after = sys.argv[1], int(sys.argv[2])
lock = threading.Lock()
cut = None


def is_cut(path, length):
    """Whether this answer is the one to be cut; says yes once."""
    global cut
    with lock:
        if cut is not None or "/blobs/" not in path or length <= cut_after:
            return False
        cut = path
        return True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self):
        # Clients try TLS first. Some go on with plain HTTP only after an answer in it.
        if self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
            self.connection.recv(65536)
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        else:
            super().handle()

    def forward(self):
        upstream = http.client.HTTPConnection(registry)
        upstream.request(self.command, self.path, headers={**self.headers, "Connection": "close"})
        answer = upstream.getresponse()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "keep-alive", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        length = int(answer.headers.get("Content-Length", 0))
        if self.command == "HEAD":
            pass
        elif is_cut(self.path, length):
            self.wfile.write(answer.read(cut_after))
            self.close_connection = True
            print("cut", self.path, flush=True)
        else:
            self.wfile.write(answer.read())
            if answer.status == 206 and self.path == cut:
                print("resumed", self.path, flush=True)
        upstream.close()

    do_GET = do_HEAD = forward

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # A client that hung up.


server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
