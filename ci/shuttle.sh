#!/usr/bin/env bash
# Random schedules of ten tasks: every test under as many schedules as asked for; every control (something
# broken) caught. A failure prints its seed: `SHUTTLE_RANDOM_SEED=seed` with the command that is printed
# repeats it.
#
#   shuttle-tests/controls.txt   control: test_name mutation
#
# usage: ci/shuttle.sh [schedules a test]      default: 2000, and half as many of another kind
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

iterations=${1:-2000}
controls=shuttle-tests/controls.txt
log=$(mktemp)
trap 'rm -f "$log"' EXIT

export RUSTFLAGS="--cfg alru_loom --cfg alru_shuttle"
export ALRU_SHUTTLE_ITERATIONS=$iterations
export NO_COLOR=1
# It would repeat one schedule, and leave its mark on the others.
unset SHUTTLE_RANDOM_SEED

fail() {
    echo "shuttle: $*" >&2
    exit 1
}

# Comments and blank lines out.
lines() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1"; }

shuttle_tests() { timeout 600 cargo test --quiet --release -p alru-shuttle-tests --tests -- \
    --nocapture --test-threads=1 --format=pretty "$@"; }

if ! shuttle_tests >"$log" 2>&1; then
    cat "$log"
    echo "repeat: SHUTTLE_RANDOM_SEED=seed RUSTFLAGS='$RUSTFLAGS'" \
        "cargo test --release -p alru-shuttle-tests -- --exact test_name"
    fail "a test failed"
fi
# Each test says how many schedules it ran under.
floor=$((iterations + (iterations + 1) / 2))
awk -v floor="$floor" '
    /^test [^ ]+ \.\.\. / { test = $2; tests++ }
    match($0, /[0-9]+ schedules/) {
        split(substr($0, RSTART, RLENGTH), word, " ")
        schedules[test] = word[1] + 0
        printf "%-80s %6d schedules\n", test, word[1]
    }
    END {
        for (test in schedules) enough += schedules[test] >= floor
        if (tests == 0 || enough != tests) {
            print "shuttle: " enough " of " tests " tests ran under " floor " schedules"
            exit 1
        }
    }
' "$log" || fail "not enough was run"

# A build a mutation. The wrapper gives the cfg to this workspace's crates only, and cargo keeps the builds
# of different wrappers apart: shuttle is built once.
wrappers="${CARGO_TARGET_DIR:-target}/shuttle-controls"
mkdir -p "$wrappers"
while read -r _ test mutation; do
    wrapper=$(cd "$wrappers" && pwd)/$mutation
    printf '#!/bin/sh\nexec "$@" --cfg %s\n' "'alru_mutation=\"$mutation\"'" >"$wrapper"
    chmod +x "$wrapper"
    export RUSTC_WORKSPACE_WRAPPER=$wrapper
    cargo test --quiet --release -p alru-shuttle-tests --tests --no-run ||
        fail "mutation $mutation does not compile"
    status=0
    shuttle_tests --exact "$test" >"$log" 2>&1 || status=$?
    grep -qE "^test $test( |$)" "$log" || { cat "$log"; fail "control $test did not run"; }
    ((status != 124)) || fail "$test ran out of time under $mutation"
    ((status != 0)) || fail "$test passes although $mutation breaks it"
    printf '%-80s catches %s\n' "$test" "$mutation"
done < <(lines "$controls" | sort -k3)
