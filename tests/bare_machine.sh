#!/usr/bin/env bash
# The README's two commands on a bare machine: sudo tests/bare_machine.sh [--run-only]
#
# A fresh minimal Debian is made with debootstrap, with Python and make alone, and an ordinary user
# in it runs `make run` and `make test` in a copy of this tree. Then FluidSynth is installed, and
# `make run` runs once more. --run-only leaves out `make test` and the second run.
#
# It needs root, debootstrap, a network and 15 GB. `make run` must end within LIMIT_S seconds (600),
# installs included, and begin without alarming lines that mean nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
suite=${SUITE:-bookworm}
limit_s=${LIMIT_S:-600}
run_only=${1:-}
alarming='susceptible to eavesdropping|failed call to cuInit|Unable to parse line'

[ "$(id -u)" = 0 ] || { echo "bare_machine: start it as root, with sudo"; exit 2; }
command -v debootstrap >/dev/null || { echo "bare_machine: install debootstrap first"; exit 2; }
[ -z "$run_only" ] || [ "$run_only" = --run-only ] || { echo "bare_machine: unknown option $run_only"; exit 2; }

root=$(mktemp -d "${TMPDIR:-/tmp}/bare.XXXXXX")
chmod 755 "$root"  # the visitor must enter it
leave() {
    for place in dev/pts dev/shm proc; do
        if mountpoint -q "$root/$place"; then umount --lazy "$root/$place" || true; fi
    done
    rm -rf --one-file-system "$root"
}
trap leave EXIT

debootstrap --variant=minbase --include=python3,python3-venv,make,ca-certificates "$suite" "$root"
mount -t proc proc "$root/proc"
mkdir -p "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"  # processes share memory there
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -sf pts/ptmx "$root/dev/ptmx"  # a notebook's `!git` opens a terminal
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" useradd --create-home visitor
mkdir "$root/home/visitor/music"
tar -C "$here" --exclude=./.git --exclude=./.venv --exclude=./.venv-tf --exclude=./runs --exclude='*__pycache__' -cf - . |
    tar -C "$root/home/visitor/music" -xf -
chroot "$root" chown -R visitor: /home/visitor/music

# As the visitor, with nothing of this machine's environment but where packages come from.
as_visitor() {
    chroot --userspec=visitor:visitor "$root" env -i HOME=/home/visitor LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/bin ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
        ${https_proxy:+https_proxy="$https_proxy"} sh -c "cd ~/music && $1"
}

check_run() {  # what synthesizer it must say that it used
    local log="$root/home/visitor/run.log" start=$SECONDS took
    as_visitor "rm -rf runs && make run" >"$log" 2>&1 || { tail -30 "$log"; exit 1; }
    took=$((SECONDS - start))
    echo "bare_machine: make run took $took s"
    [ "$took" -le "$limit_s" ] || { echo "bare_machine: more than $limit_s s"; exit 1; }
    ! grep -E "$alarming" "$log" || { echo "bare_machine: lines that alarm"; exit 1; }
    grep -q "$1" "$log" || { echo "bare_machine: $1 did not play"; exit 1; }
    [ -s "$root/home/visitor/music/runs/default/gallery.html" ] || { echo "no gallery.html"; exit 1; }
}

check_run midirenderer
[ -n "$run_only" ] && exit 0
as_visitor "make test"
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends fluidsynth
check_run FluidSynth
