#!/usr/bin/env bash
# Proves the Dockerfile where there is no Docker: see scripts/prove_image.py, which this starts in namespaces of its own.
# Needs Linux, root, and a package index; all that it starts and mounts ends with it.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $(id -u) != 0 ]]; then
    echo "prove_image: needs root, to mount and to become another user (try: sudo scripts/prove_image.sh)" >&2
    exit 2
fi
python=$(scripts/find-python)
scratch=$(mktemp -d /var/tmp/headgate-image.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
unshare --mount --pid --fork --kill-child --mount-proc "$python" scripts/prove_image.py "$scratch"
