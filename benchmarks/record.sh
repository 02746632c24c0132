#!/bin/sh
# Record every figure of docs/performance.md in benchmarks/results, on this machine.
#
#   benchmarks/record.sh DIR [NAME…]      with results named (andrew, counter, …), only those
#
# DIR is an empty directory on the disk to measure; a cluster and its mount live in it meanwhile.
# About an hour and three quarters on two idle cores. Run it as root, which may drop the kernel's caches.
set -eu

[ $# -ge 1 ] || { echo "usage: $0 DIR [NAME…]" >&2; exit 2; }
work=$(realpath "$1")
shift
chosen=" ${*:-all} "
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
results=benchmarks/results
data=$work/data
mount=$work/mount
well_data=$work/well-data
well_mount=$work/well-mount
liar=
mkdir -p "$work/local" "$mount" "$well_mount"

up() { "$python" -m bftfs up --data "$data" --mount "$mount" "$@" >&2; }
down() { "$python" -m bftfs down --data "${1:-$data}" --destroy >&2; }
finish() {
    [ -z "$liar" ] || kill "$liar" 2>/dev/null || true
    for cluster in "$data" "$well_data"; do
        [ ! -e "$cluster/cluster.toml" ] || down "$cluster"
    done
}
trap finish EXIT
trap 'exit 1' INT TERM

# wanted NAME: true if it is to be recorded
wanted() {
    case $chosen in *" all "* | *" $1 "*) ;; *) return 1 ;; esac
}

# record NAME SCENARIO ARGUMENT…: the result goes to $results/NAME.json, with DIR for this DIR.
record() {
    name=$1
    shift
    wanted "$name" || return 0
    echo "--- $name" >&2
    "$python" -m benchmarks "$@" --json "$results/$name.json"
    sed -i "s|$work|DIR|g" "$results/$name.json"
}

# drawn NAME: the picture of that result goes beside it, if it was recorded.
drawn() {
    ! wanted "$1" || "$python" -m benchmarks plot "$results/$1.json" "$results/$1.svg"
}

# The protocols, on nodes of their own.
for durability in sync interval; do
    record "counter-$durability" counter --durability "$durability" --operations 1000
    record "metadata-$durability" metadata --durability "$durability"
    record "blocks-$durability" blocks --durability "$durability"
done
record postmark postmark
record many many
drawn many
record contention contention
record directory directory --durability interval
record history history --durability interval
record profile profile
record channel channel
record fragility fragility
record verification-latency verification --seconds 0
record verification-throughput verification --operations 0
drawn verification-latency
drawn verification-throughput

# The mount, beside the local disk.
for durability in sync interval; do
    up --durability "$durability"
    record "files-$durability" files "$mount" --against "$work/local" --cluster "$data"
    record "files-four-$durability" files "$mount" --count 1000 --threads 4 --cluster "$data"
    drawn "files-$durability"
    record "stream-$durability" stream "$mount" --against "$work/local" --cluster "$data"
    record "memory-$durability" stream "$mount" --size 4GiB --repeat 1 --random-writes 100 \
        --cluster "$data"
    record "andrew-$durability" andrew "$mount" --against "$work/local" --cluster "$data"
    drawn "andrew-$durability"
    down
done

# Node 0 loses its store, of 1 GiB and 20,000 files, and Andrew runs beside its healing.
if wanted healing; then
    up --durability interval
    record healing healing "$mount" --cluster "$data"
    drawn healing
    down
fi

# Andrew on a cluster with a faulty node, in turns with another cluster that is well.
up
"$python" -m bftfs up --data "$well_data" --mount "$well_mount" >&2
# Node 0 is killed in the middle of each round's copy, and is back when the next one begins.
record andrew-killed andrew "$mount" --against "$well_mount" \
    --during "directories:$python -m bftfs up --data $data" \
    --during "copy@0.5:kill -9 \$(cat $data/nodes/0/pid)"
# Node 0 lies: about objects, then about blocks.
for adversary in history-forger wrong-answers fragment-corrupter; do
    wanted "andrew-$adversary" || continue
    "$python" -m bftfs up --data "$data" >&2
    kill "$(cat "$data/nodes/0/pid")"
    while [ -e "$data/nodes/0/pid" ]; do sleep 0.1; done
    "$python" -m tests.lying_node "$adversary" \
        --data "$data/nodes/0" --cluster "$data/cluster.toml" >>"$data/nodes/0/log" 2>&1 &
    liar=$!
    while ! [ -e "$data/nodes/0/pid" ]; do sleep 0.1; done
    record "andrew-$adversary" andrew "$mount" --against "$well_mount"
    kill "$liar"
    wait "$liar" || true
    liar=
done
