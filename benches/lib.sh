# Functions of the benches beside peers; sourced. The caller sets MB and RUNS.

median() { sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
# seconds COMMAND... - the wall time of a command.
seconds() { local from=$EPOCHREALTIME; "$@" >/dev/null; awk -v a="$from" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.4f\n", b - a}'; }
# row NAME OURS THEIRS UNIT higher|lower BAR - what is better; the ratio is to be BAR or above.
row() {
  awk -v n="$1" -v a="$2" -v b="$3" -v u="$4" -v dir="$5" -v bar="$6" 'BEGIN {
    ratio = dir == "lower" ? b / a : a / b
    printf "%-52s %10.4g %10.4g %-6s %6.2fx >= %-5s %s\n", n, a, b, u, ratio, bar "x", (ratio >= bar ? "met" : "MISSED") }'
}
# limit NAME OURS UNIT BAR - is to be below BAR.
limit() {
  awk -v n="$1" -v a="$2" -v u="$3" -v bar="$4" 'BEGIN {
    printf "%-52s %10.4g %10s %-6s %7s <  %-5s %s\n", n, a, "", u, "", bar, (a < bar ? "met" : "MISSED") }'
}
in_turn() { # in_turn OURS THEIRS - runs two functions in turn, RUNS times; sets A and B to the medians of what they print.
  local n a=() b=()
  for n in $(seq "$RUNS"); do a+=("$($1 "$n")"); b+=("$($2 "$n")"); done
  A=$(printf '%s\n' "${a[@]}" | median); B=$(printf '%s\n' "${b[@]}" | median)
}

fresh_blob() { head -c $((MB * 1000000)) /dev/urandom >"$1"; echo "sha256:$(sha256sum "$1" | cut -d' ' -f1)"; }
location() { curl -sf -X POST -D - -o /dev/null "http://$1/v2/$2/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p' | sed "s#^/#http://$1/#"; }
with_digest() { case $1 in *\?*) echo "$1&digest=$2" ;; *) echo "$1?digest=$2" ;; esac; }
# push_blob REGISTRY FILE DIGEST PATCH|PUT
push_blob() {
  local at; at=$(location "$1" bench/app)
  if [ "$4" = PATCH ]; then
    at=$(curl -sf -X PATCH -H 'Content-Type: application/octet-stream' -T "$2" -D - -o /dev/null "$at" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p' | sed "s#^/#http://$1/#")
    curl -sf -X PUT -H 'Content-Length: 0' -o /dev/null "$(with_digest "$at" "$3")"
  else
    curl -sf -X PUT -H 'Content-Type: application/octet-stream' -T "$2" -o /dev/null "$(with_digest "$at" "$3")"
  fi
}
# rate_of URL - requests a second that are answered, by wrk.
rate_of() { wrk -t1 -c32 -d3s "$@" | sed -n 's/^Requests\/sec: *//p'; }
get_blob() { curl -sf -o /dev/null "http://$1/v2/bench/app/blobs/$2"; }
# nginx_start NAME [PAIR] - serves $W/NAME/html, with TLS by the pair in the folder PAIR; sets NAME_registry, NAME_pid.
nginx_start() {
  local name=$1 dir=$W/$1 scheme=http tls="" port pid
  port=$(free_port)
  [ -z "${2:-}" ] || scheme=https tls="ssl_certificate $2/certificate.pem; ssl_certificate_key $2/key.pem;"
  mkdir -p "$dir/html"
  cat >"$dir/nginx.conf" <<N
daemon off; worker_processes auto; pid $dir/pid; error_log $dir/log; user root;
events {}
http {
  access_log $dir/access; sendfile on; default_type application/octet-stream;
  server {
    listen 127.0.0.1:$port${2:+ ssl http2}; root $dir/html; $tls
  }
}
N
  nginx -c "$dir/nginx.conf" 2>>"$dir/log" & pid=$!
  PIDS+=("$pid")
  declare -g "${name}_registry=127.0.0.1:$port" "${name}_pid=$pid"
  wait_for 10 "nginx starts" curl -sk -o /dev/null "$scheme://127.0.0.1:$port/"
}
