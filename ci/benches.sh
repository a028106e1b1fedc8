#!/usr/bin/env bash
# The benches and the comparison with the peers compile.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

cargo check --release -p alru-benches --benches --bins
