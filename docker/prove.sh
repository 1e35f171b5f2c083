#!/usr/bin/env bash
# Builds the images of docker/Dockerfile and docker/training.Dockerfile without a docker engine. Trains a small bundle in
# the one and serves it in the other: both as the image's user, with a root file system that is read-only.
# Run as root:  docker/prove.sh
# Needs buildah, and mmdebstrap where the base image cannot be pulled (Debian: apt install buildah mmdebstrap).
#   BUILD_FLAGS='--build-arg TORCH_INDEX=...'   options for buildah        BASE_TAR=FILE   a base that is made already
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
base=docker.io/library/python:3.11-slim-bookworm
work=$(mktemp -d)
chmod 755 "$work"
touch "$work/containers"
server=
finish() {
    if [ -n "$server" ]; then kill -9 "$server" 2>/dev/null || true; fi
    while read -r container; do
        buildah umount "$container" >/dev/null || true
        buildah rm "$container" >/dev/null
    done < "$work/containers"
    rm -rf "$work"
}
trap finish EXIT

step() { printf '%4d s  %s\n' "$SECONDS" "$1"; }

# start IMAGE MOUNTS COMMAND: a shell of the image's user, read-only but for /tmp and the mounts.
# MOUNTS are words PATH:PLACE:ro or PATH:PLACE:rw.
start() {
    local image=$1 mounts=$2 command=$3 container root mount path place mode
    [ "$(buildah inspect --format '{{.OCIv1.Config.User}}' --type image "$image")" = 10001:10001 ]
    container=$(buildah from "$image")
    echo "$container" >> "$work/containers"
    root=$(buildah mount "$container")
    {
        echo "mount --bind '$root' '$root'"
        for mount in $mounts; do
            IFS=: read -r path place mode <<< "$mount"
            mkdir -p "$root$place"
            echo "mount --bind '$path' '$root$place'"
            if [ "$mode" = ro ]; then echo "mount -o remount,bind,ro '$root$place'"; fi
        done
        echo "mount -t tmpfs tmpfs '$root/tmp'; mount -t proc proc '$root/proc'; mount --bind /dev '$root/dev'"
        echo "mount -o remount,bind,ro '$root'"
        echo "cd '$root'"
        printf 'exec env -i'
        buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' --type image "$image" \
            | while read -r variable; do if [ -n "$variable" ]; then printf ' %q' "$variable"; fi; done
        printf ' OMP_NUM_THREADS=1 chroot --userspec=10001:10001 --groups=10001 %q /bin/sh -euc %q\n' "$root" \
            "cd /app; if touch /app/written 2>/dev/null; then echo 'the root can be written' >&2; exit 1; fi; $command"
    } > "$work/start"
    exec unshare --mount --propagation private bash -e "$work/start"
}

# 1. The base: Debian bookworm with its Python 3.11, under the name that the Dockerfiles take.
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

# 2. The images, from the Dockerfiles as they are.
build() {
    # shellcheck disable=SC2086
    buildah bud --pull=never --layers -q ${BUILD_FLAGS:-} -f "$here/docker/$1" -t "localhost/$2" "$here" >/dev/null
    step "The image $2 is built."
}
build training.Dockerfile automr-training
build Dockerfile automr

# 3. A training: 200 readers of 40 books, each of whom keeps to ten of them.
mkdir "$work/raw" "$work/data" "$work/bundles" "$work/store"
awk -v raw="$work/raw" 'BEGIN {
    srand(1)
    print "user_id,item_id,timestamp" > (raw "/interactions.csv")
    print "item_id,title" > (raw "/items.csv")
    for (item = 0; item < 40; item++) print item ",Book number " item > (raw "/items.csv")
    for (user = 0; user < 200; user++) {
        taste = int(rand() * 4)
        for (day = 0; day < 20; day++)
            print user "," taste * 10 + int(rand() * 10) "," 1600000000 + 86400 * day + user > (raw "/interactions.csv")
    }
}'
chown 10001:10001 "$work/data" "$work/bundles" "$work/store"
# The umask of a careful administrator: the files of the bundle must be readable by others nevertheless.
train='umask 077
    python -m training.prepare --format csv --source /raw --out /data/books
    python -m training.pipeline --recipe study --data /data/books --out /bundles/books'
(start localhost/automr-training "$work/raw:/raw:ro $work/data:/data:rw $work/bundles:/bundles:rw" "$train") \
    > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
chown -R 0:0 "$work/bundles/books"
step "A bundle is trained in it."

# 4. The service with this bundle, which another user owns now.
port=$((20000 + RANDOM % 20000))
serve="export AUTOMR_HOST=127.0.0.1 AUTOMR_PORT=$port; exec python -m service serve"
(start localhost/automr "$work/bundles/books:/bundle:ro $work/store:/data:rw" "$serve") > "$work/log" 2>&1 &
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
step "Both images work as user 10001 on a read-only root: one trained a bundle, the other served it and ended with code 0."
