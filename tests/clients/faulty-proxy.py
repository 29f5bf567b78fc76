#!/usr/bin/env python3
"""faulty-proxy.py REGISTRY FILE - a proxy before REGISTRY (HOST:PORT) on a free port of loopback, which it prints.

FILE has a fault and, behind it, what a path must have in it; it is read for each request, and may be missing or empty:
  status-CODE       that status, with Retry-After: 30
  hang-header       nothing at all
  hang-body         nothing behind the first half of a blob
  reset             a reset behind the first half of a blob
  cut               an orderly end behind the first half of a blob
  wrong-bytes       another byte in the middle of a blob
  wrong-length      a Content-Length that is 10 larger
  no-digest         no Docker-Content-Digest
  no-type           no Content-Type
  loop              a redirect to the same place
  gzip              a compressed body, though none was asked for
  chunked           a chunked body
  http10            an answer in HTTP/1.0, without a length
"""
import gzip, http.client, http.server, socket, struct, sys, time

registry, fault_file = sys.argv[1:3]
HANG_S = 60


def fault_for(path):
    try:
        with open(fault_file) as file:
            words = file.read().split()
    except FileNotFoundError:
        return None
    return words[0] if words and (len(words) == 1 or words[1] in path) else None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self):
        fault = fault_for(self.path) or ""
        if fault.startswith("status-"):
            return self.answer(int(fault.split("-")[1]), [("Retry-After", "30")], b"", fault)
        if fault == "loop":
            return self.answer(307, [("Location", self.path)], b"", fault)
        if fault == "hang-header":
            time.sleep(HANG_S)
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection(registry)
        upstream.request(self.command, self.path, headers={**self.headers, "Connection": "close"})
        answer = upstream.getresponse()
        dropped = {"connection", "keep-alive", "transfer-encoding", "content-length"}
        dropped |= {"no-digest": {"docker-content-digest"}, "no-type": {"content-type"}}.get(fault, set())
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
        body = answer.read()
        length = int(answer.headers.get("Content-Length", len(body)))
        upstream.close()
        middle = length // 2
        if answer.status == 206:
            part, size = answer.headers["Content-Range"].removeprefix("bytes ").split("/")
            middle = max(0, int(size) // 2 - int(part.split("-")[0]))
        self.answer(answer.status, headers, body, fault, length, middle)

    def answer(self, status, headers, body, fault, length=0, middle=0):
        if fault == "wrong-bytes" and middle < len(body):
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1:]
        if fault == "gzip" and body:
            body = gzip.compress(body)
            length = len(body)
            headers = headers + [("Content-Encoding", "gzip")]
        if fault == "chunked":
            headers = headers + [("Transfer-Encoding", "chunked")]
        elif fault == "http10":
            self.close_connection = True
        else:
            headers = headers + [("Content-Length", str(length + 10 if fault == "wrong-length" else length))]
        version = "HTTP/1.0" if fault == "http10" else "HTTP/1.1"
        head = f"{version} {status} {http.client.responses.get(status, 'Unknown')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.wfile.write(head.encode() + b"\r\n")
        if self.command != "HEAD":
            self.send_body(body, fault, middle)

    def send_body(self, body, fault, middle):
        if fault == "chunked":
            for at in range(0, len(body), 65536):
                chunk = body[at:at + 65536]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")
        elif fault in ("hang-body", "reset", "cut"):
            self.wfile.write(body[:middle])
            if fault == "hang-body":
                time.sleep(HANG_S)
            elif fault == "reset":
                time.sleep(0.1)  # A reset takes with it what was not read yet.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        else:
            self.wfile.write(body)
            self.close_connection = self.close_connection or fault == "wrong-length"

    do_GET = do_HEAD = forward

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request):
        # Without the orderly end that socketserver adds, which would come before a reset.
        self.close_request(request)

    def handle_error(self, request, client_address):
        pass  # A client that hung up.


server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
