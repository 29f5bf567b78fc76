#!/usr/bin/env python3
"""token-server.py KEY CERTIFICATE USER PASSWORD ISSUER - a token server on a free port of loopback, which it prints.

USER gets every scope that is asked for, nobody gets a token without any, a wrong password gets 401. Tokens are signed
with RS256 by openssl, the certificate in their header (distribution, "Token authentication specification").
"""
import base64, http.server, json, subprocess, sys, time, urllib.parse

key, certificate, user, password, issuer = sys.argv[1:]
der = subprocess.run(["openssl", "x509", "-in", certificate, "-outform", "DER"], check=True, capture_output=True).stdout
users = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
nobodys = "Basic " + base64.b64encode(b":").decode()


def part(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def token(service, scopes):
    access = []
    for scope in scopes:
        kind, name, actions = scope.split(":")
        access.append({"type": kind, "name": name, "actions": actions.split(",")})
    header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
    now = int(time.time())
    claims = {"iss": issuer, "aud": service, "nbf": now, "iat": now, "exp": now + 300, "access": access}
    message = ".".join(part(json.dumps(half).encode()) for half in (header, claims))
    sign = ["openssl", "dgst", "-sha256", "-sign", key]
    return message + "." + part(subprocess.run(sign, input=message.encode(), check=True, capture_output=True).stdout)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        shown = self.headers.get("Authorization", nobodys)
        if shown not in (users, nobodys):
            return self.answer(401, {"details": "wrong password"})
        scopes = [scope for value in query.get("scope", []) for scope in value.split()] if shown == users else []
        self.answer(200, {"token": token(query["service"][0], scopes), "expires_in": 300})

    def do_POST(self):
        self.answer(405, {"details": "clients that know OAuth 2 fall back to GET"})

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
