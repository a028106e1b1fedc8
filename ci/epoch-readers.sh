#!/usr/bin/env bash
# The library's tests once more, with readers that pin instead of using hazards: what other systems run, and kernels
# without `membarrier`.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

# The wrapper gives the cfg to this workspace's crates only: dependencies are built once.
wrapper="${CARGO_TARGET_DIR:-target}/epoch-readers"
mkdir -p "$(dirname "$wrapper")"
printf '#!/bin/sh\nexec "$@" --cfg alru_epoch_readers\n' >"$wrapper"
chmod +x "$wrapper"
RUSTC_WORKSPACE_WRAPPER=$(cd "$(dirname "$wrapper")" && pwd)/epoch-readers
export RUSTC_WORKSPACE_WRAPPER

cargo test -p alru --lib --tests
