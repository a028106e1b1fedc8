#!/usr/bin/env bash
# Every fuzz target for a while, under the address sanitizer, from its seeds.
# A crash leaves its input in fuzz/artifacts/; keep it as a test in fuzz/tests/regressions.rs.
#
# usage: ci/fuzz.sh [seconds a target]      default: 45
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

seconds=${1:-45}
# Fewer runs than this and the target was not fuzzed, whatever it says.
floor=1000

if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --locked cargo-fuzz
fi

# Sanitizers need -Z flags, which stable takes with this.
export RUSTC_BOOTSTRAP=1
log=$(mktemp)
trap 'rm -f "$log"' EXIT

for target in $(cargo fuzz list); do
    echo "fuzz: $target, $seconds s"
    cargo fuzz build "$target"
    status=0
    cargo fuzz run "$target" -- -max_total_time="$seconds" -max_len=4096 -timeout=20 -print_final_stats=1 \
        >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        # What went wrong, where, and the command that repeats it.
        grep -nE -A 2 "panicked at|ERROR: |^SUMMARY" "$log" | head -n 40 || true
        grep -E "cargo fuzz (run|tmin) |^error" "$log" || tail -n 20 "$log"
        echo "fuzz: $target failed" >&2
        exit 1
    fi
    grep -E "cov:" "$log" | tail -n 1
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    if ((${runs:-0} < floor)); then
        echo "fuzz: $target ran ${runs:-0} inputs, expected $floor or more" >&2
        exit 1
    fi
    echo "fuzz: $target ran $runs inputs"
done
