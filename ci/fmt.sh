#!/usr/bin/env bash
# Everything is formatted.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

cargo fmt --all -- --check
