#!/usr/bin/env bash
# No warning from rustc or clippy, in any target of any package.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

cargo clippy --workspace --all-targets -- -D warnings
