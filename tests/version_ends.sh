#!/usr/bin/env bash
# The whole chain, in small, with the oldest and the newest versions that are supported:
# tests/version_ends.sh [PYTHON]. It needs a network, 20 GB and a quarter of an hour.
#
# tests/versions/ lists what Colab brings; the rest is pinned, as the setup cell of a notebook
# installs it. The shipped weights must load, and train and generate with both.
set -euo pipefail

cd "$(dirname "$0")/.."
python=${1:-python3}
work=$(mktemp -d "${TMPDIR:-/tmp}/versions.XXXXXX")
trap 'rm -rf "$work"' EXIT
export TF_CPP_MIN_LOG_LEVEL=3

needed=$(sed -n 's/^ *needed = "\(.*\)"$/\1/p' docs/address.py)  # what the setup cell installs
grep -E "^(${needed// /|}|papermill|ipykernel)==" requirements.txt >"$work/rest.txt"
for end in oldest newest; do
    "$python" -m venv "$work/$end"
    "$work/$end/bin/pip" install --quiet -r "tests/versions/$end.txt" -r "$work/rest.txt"
    "$work/$end/bin/python" chain.py --run-dir "$work/run_$end" \
        -p 02.train_steps 12 -p 03.train_steps 6 -p 03.mapping_pieces 8 -p 04.count 2
    "$work/$end/bin/python" chain.py --run-dir "$work/music_$end" --only 04 05 06 -p 04.count 2
    rm -r "$work/$end"
    echo "version_ends: the whole chain ran with the $end versions"
done
