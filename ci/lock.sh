#!/usr/bin/env bash
# Cargo.lock is committed and fits the manifests.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

cargo metadata --locked --format-version 1 >/dev/null
