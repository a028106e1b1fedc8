#!/usr/bin/env bash
# The loom models of reclamation, over the real crossbeam-epoch: every model searched to the end, none with
# fewer executions than its floor; every control (something broken) caught.
#
#   loom-tests/floors-epoch.txt     test_name floor
#   loom-tests/controls-epoch.txt   control: test_name mutation
#
# usage: ci/loom-epoch.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

floors=loom-tests/floors-epoch.txt
controls=loom-tests/controls-epoch.txt
log=$(mktemp)
trap 'rm -f "$log"' EXIT

export RUSTFLAGS="--cfg alru_loom --cfg loom --cfg crossbeam_loom --cfg crossbeam_sanitize"
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-2}"
export NO_COLOR=1
# Either would end a search early and call it a success.
unset LOOM_MAX_DURATION LOOM_MAX_PERMUTATIONS

fail() {
    echo "loom-epoch: $*" >&2
    exit 1
}

# Comments and blank lines out.
lines() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1"; }

# A process a model: loom aborts on some failures. One thread: ids of threads are the process's.
run() { timeout 300 cargo test --quiet --release -p alru-loom-tests --test reclaim -- \
    --exact "$1" --nocapture --test-threads=1 --format=pretty >"$log" 2>&1; }

cargo test --quiet --release -p alru-loom-tests --test reclaim -- --list --format=terse |
    sed -n 's/: test$//p' | sort >"$log"
[[ -s $log ]] || fail "there are no models"
diff <(lines "$floors" | cut -d' ' -f1 | sort) "$log" || fail "$floors does not list the models there are"

while read -r test floor; do
    LOOM_LOG=info run "$test" || { cat "$log"; fail "$test failed"; }
    count=$(sed -nE 's/.*Completed in ([0-9]+) iterations.*/\1/p' "$log")
    [[ -n $count ]] || fail "$test was not searched to the end"
    ((count >= floor)) || fail "$test took $count executions, its floor is $floor"
    printf '%-56s %9d executions, floor %d\n' "$test" "$count" "$floor"
done < <(lines "$floors")

# The wrapper gives the cfg to this workspace's crates only, and cargo keeps the builds of different
# wrappers apart: loom and crossbeam are built once.
wrappers="${CARGO_TARGET_DIR:-target}/loom-epoch-controls"
mkdir -p "$wrappers"
while read -r _ test mutation; do
    wrapper=$(cd "$wrappers" && pwd)/$mutation
    printf '#!/bin/sh\nexec "$@" --cfg %s\n' "'alru_mutation=\"$mutation\"'" >"$wrapper"
    chmod +x "$wrapper"
    export RUSTC_WORKSPACE_WRAPPER=$wrapper
    cargo test --quiet --release -p alru-loom-tests --test reclaim --no-run ||
        fail "mutation $mutation does not compile"
    status=0
    run "$test" || status=$?
    grep -qE "^test $test( |$)" "$log" || { cat "$log"; fail "control $test did not run"; }
    ((status != 124)) || fail "$test ran out of time under $mutation"
    ((status != 0)) || fail "$test passes although $mutation breaks it"
    printf '%-56s catches %s\n' "$test" "$mutation"
done < <(lines "$controls")
