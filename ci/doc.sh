#!/usr/bin/env bash
# The docs build without a warning.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

RUSTDOCFLAGS="-D warnings" cargo doc --no-deps -p alru -p alru-macros
