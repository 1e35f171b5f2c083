#!/usr/bin/env bash
# Builds the image of docker/Dockerfile without a docker engine, and starts the service in it as the image's user, with a
# root file system that is read-only. Run as root:  docker/prove.sh BUNDLE
# Needs buildah, and mmdebstrap where the base image cannot be pulled (Debian: apt install buildah mmdebstrap).
#   BUILD_FLAGS='--build-arg TORCH_INDEX=...'   options for buildah        BASE_TAR=FILE   a base that is made already
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bundle=$(realpath "$1")
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
base=docker.io/library/python:3.11-slim-bookworm
work=$(mktemp -d)
container=
server=
finish() {
    if [ -n "$server" ]; then kill -9 "$server" 2>/dev/null || true; fi
    if [ -n "$container" ]; then buildah umount "$container" >/dev/null || true; buildah rm "$container" >/dev/null; fi
    rm -rf "$work"
}
trap finish EXIT

# 1. The base: Debian bookworm with its Python 3.11, under the name that the Dockerfile takes.
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    tar=${BASE_TAR:-$work/base.tar}
    if [ ! -e "$tar" ]; then
        mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$tar" \
            http://deb.debian.org/debian
    fi
    made=$(buildah from scratch)
    buildah add -q "$made" "$tar" / >/dev/null
    buildah run "$made" -- ln -sf /usr/bin/python3 /usr/local/bin/python
    buildah commit -q "$made" "$base" >/dev/null
    buildah rm "$made" >/dev/null
fi

# 2. The image, from the Dockerfile as it is.
# shellcheck disable=SC2086
buildah bud --pull=never --layers -q ${BUILD_FLAGS:-} -f "$here/docker/Dockerfile" -t localhost/automr "$here" >/dev/null
[ "$(buildah inspect --format '{{.OCIv1.Config.User}}' --type image localhost/automr)" = 10001:10001 ]

# 3. The service in it: user 10001, everything read-only except /tmp and /data, no capabilities that a user lacks.
container=$(buildah from localhost/automr)
root=$(buildah mount "$container")
mkdir -p "$root/bundle" "$work/data"
chown 10001:10001 "$work/data"
buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' --type image localhost/automr > "$work/environment"
port=$((20000 + RANDOM % 20000))
cat > "$work/start" <<START
mount --bind "$root" "$root"
mount --bind "$bundle" "$root/bundle"
mount --bind "$work/data" "$root/data"
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -o remount,bind,ro "$root"
mount -o remount,bind,ro "$root/bundle"
cd "$root"
exec env -i $(grep . "$work/environment" | tr '\n' ' ') AUTOMR_HOST=127.0.0.1 AUTOMR_PORT=$port OMP_NUM_THREADS=1 \
    chroot --userspec=10001:10001 --groups=10001 "$root" /bin/sh -c 'cd /app
        if touch /app/written 2>/dev/null; then echo "the root file system can be written" >&2; exit 1; fi
        exec python -m service serve'
START
unshare --mount --propagation private bash -e "$work/start" > "$work/log" 2>&1 &
server=$!
for _ in $(seq 120); do
    if curl -sf "http://127.0.0.1:$port/readyz" >/dev/null; then break; fi
    if ! kill -0 "$server" 2>/dev/null; then cat "$work/log" >&2; exit 1; fi
    sleep 1
done
curl -sf -H 'Content-Type: application/json' "http://127.0.0.1:$port/recommend" -d '{"k": 1}' | grep -q '"items":\[{'
curl -sf "http://127.0.0.1:$port/" | grep -q '<title>AutoMR</title>'
[ "$(awk '/^Uid:/ {print $2}' "/proc/$server/status")" = 10001 ]
kill -TERM "$server"
wait "$server"
server=
echo "The image starts as user 10001 on a read-only root file system, answers, and ends with exit code 0."
