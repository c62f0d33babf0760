#!/usr/bin/env bash
# Two hosts, as two network namespaces joined by a virtual cable, train together; then one process
# alone; their losses are printed side by side. Needs root and iproute2.
#
#     sudo bench/two_hosts.sh [OPTIONS of medcot train]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=$(mktemp -d)
options=(--preset demo --samples 12 --steps 4 --batch 2 "$@")
export OMP_NUM_THREADS=1

leave() {
  ip netns delete medcot-a 2>/dev/null || true
  ip netns delete medcot-b 2>/dev/null || true
  rm -rf "$folder"
}
trap leave EXIT

ip netns add medcot-a
ip netns add medcot-b
ip link add medcot-veth-a type veth peer name medcot-veth-b
for host in a b; do
  ip link set "medcot-veth-$host" netns "medcot-$host"
  ip -n "medcot-$host" link set lo up
  ip -n "medcot-$host" link set "medcot-veth-$host" up
done
ip -n medcot-a address add 10.77.0.1/24 dev medcot-veth-a
ip -n medcot-b address add 10.77.0.2/24 dev medcot-veth-b

on_host() { # letter, node rank, run directory
  GLOO_SOCKET_IFNAME="medcot-veth-$1" ip netns exec "medcot-$1" "$python" -m torch.distributed.run \
    --nnodes 2 --node-rank "$2" --nproc-per-node 1 --master-addr 10.77.0.1 --master-port 29400 \
    -m medcot train "${options[@]}" --out "$3"
}

on_host b 1 "$folder/host-b" >"$folder/b.log" 2>&1 &
second=$!
on_host a 0 "$folder/two" >"$folder/a.log" 2>&1 || { cat "$folder/a.log" "$folder/b.log"; exit 1; }
wait "$second"
test ! -e "$folder/host-b" && echo "host b wrote no run directory and printed $(wc -c <"$folder/b.log") bytes"
"$python" -m medcot train "${options[@]}" --out "$folder/one" >"$folder/one.log" 2>&1

"$python" - "$folder" <<'END'
import json, sys
from pathlib import Path

folder = Path(sys.argv[1])
one, two = (
    [json.loads(line) for line in (folder / name / "events.jsonl").read_text().splitlines()]
    for name in ("one", "two")
)
print("| step | tokens, one process | two hosts | loss, one process | two hosts |")
print("| ---: | ---: | ---: | ---: | ---: |")
for a, b in zip(one, two, strict=True):
    print(f"| {a['step']} | {a['tokens']} | {b['tokens']} | {a['loss']:.6f} | {b['loss']:.6f} |")
worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True))
print(f"\nlargest difference of a step's loss: {worst:.1e}")
END
