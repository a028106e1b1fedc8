#!/usr/bin/env bash
# The test command of the README: unit, integration and doc tests of the library and its macro.
# Then the fuzz package's own tests: past crashes, and a fixed run of random operations.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

cargo test
cargo test -p alru-fuzz
