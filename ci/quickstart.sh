#!/usr/bin/env bash
# The main job, with short waits. The example checks what it prints.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

cargo run --release --example quickstart -- --fast
