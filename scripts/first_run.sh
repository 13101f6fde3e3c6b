#!/usr/bin/env bash
# What a newcomer sees: a clean clone, `make serve`, and the README's first request until it is answered. Prints the
# seconds from typing to the answer, which must be fewer than $LIMIT_S (120). Downloads count, but pip's cache is used.
set -euo pipefail
cd "$(dirname "$0")/.."

limit_s=${LIMIT_S:-120} port=${PORT:-8080} admin_port=${ADMIN_PORT:-8081}
scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/headgate-first-run.XXXXXX")
server=
finish() {
    [[ -z $server ]] || { kill -TERM -- "-$server" && wait "$server"; } 2>/dev/null || true
    rm -rf "$scratch"
}
trap finish EXIT

git clone --quiet . "$scratch/headgate"
cd "$scratch/headgate"
request=$(sed -n '/<!-- test: the-flights-example -->/,/^```$/p' README.md | sed '1,2d;$d')
request=${request//localhost:8080/localhost:$port}

set -m # the server gets a process group, which ends as one
make serve ARGS="--port $port --admin-port $admin_port" &
server=$!
set +m
SECONDS=0
until answer=$(sh -c "$request") && [[ $answer == *'"model_name":"flights"'* ]]; do
    kill -0 "$server" 2>/dev/null || { echo "first_run: make serve ended" >&2; exit 1; }
    ((SECONDS < limit_s)) || { echo "first_run: no answer after $limit_s s, the last one was: $answer" >&2; exit 1; }
    sleep 0.2
done
echo "first_run: answered after $SECONDS s (limit $limit_s s)"
