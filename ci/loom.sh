#!/usr/bin/env bash
# The loom models: every model searched to the end, none with fewer executions than its floor;
# every control (a model with one ordering broken) caught.
#
#   loom-tests/floors.txt     test_name floor
#   loom-tests/controls.txt   control: test_name mutation
#
# usage: ci/loom.sh [models|controls]      default: both
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTUP_DIST_SERVER=http://127.0.0.1:9

part=${1:-all}
floors=loom-tests/floors.txt
controls=loom-tests/controls.txt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

export RUSTFLAGS="--cfg alru_loom --cfg loom"
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-2}"
export NO_COLOR=1
# Either would end a search early and call it a success.
unset LOOM_MAX_DURATION LOOM_MAX_PERMUTATIONS

loom_tests() { cargo test --quiet --release -p alru-loom-tests --tests "$@"; }

# Comments and blank lines out.
lines() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1"; }

fail() {
    echo "loom: $*" >&2
    exit 1
}

models() {
    [[ -f $floors ]] || fail "$floors is missing"
    lines "$floors" >"$scratch/floors"
    [[ -s $scratch/floors ]] || fail "$floors lists no model"

    # Two processes, of one thread each, so that each completion line belongs to the test named before it. The
    # default format of libtest, which names a test before it starts.
    local half halves=(life:: loads:: compute::) pids=() failed=0
    loom_tests --no-run || fail "the models do not compile"
    search() { LOOM_LOG=info loom_tests -- --nocapture --test-threads=1 --format=pretty "$@"; }
    search "${halves[@]}" >"$scratch/log1" 2>&1 &
    pids+=($!)
    search "${halves[@]/#/--skip=}" >"$scratch/log2" 2>&1 &
    pids+=($!)
    for half in 1 2; do
        if ! wait "${pids[half - 1]}"; then
            cat "$scratch/log$half"
            failed=1
        fi
    done
    ((failed == 0)) || fail "a model failed"
    cat "$scratch"/log[12] >"$scratch/log"

    awk -v floors="$scratch/floors" '
        BEGIN {
            while ((getline line < floors) > 0) {
                n = split(line, field, " ")
                if (n != 2 || field[2] !~ /^[0-9]+$/ || field[2] < 2)
                    bad("not `test_name floor` with a floor of 2 or more: " line)
                else if (field[1] in floor)
                    bad(field[1] " is listed twice")
                floor[field[1]] = field[2] + 0
            }
        }
        function bad(what) { print "loom: " what; failed = 1 }
        { gsub(/\033\[[0-9;]*m/, "") }
        /^test [^ ]+ .*\.\.\. / && $2 != "result:" {
            test = $2
            if (test in ran) bad("two models are called " test)
            ran[test] = 1
        }
        match($0, /Completed in [0-9]+ iterations/) {
            split(substr($0, RSTART, RLENGTH), word, " ")
            # Several searches in one test: the smallest counts.
            if (!(test in count) || word[3] + 0 < count[test]) count[test] = word[3] + 0
        }
        END {
            for (test in ran) {
                if (!(test in floor)) bad(test " has no floor")
                else if (!(test in count)) bad(test " was not searched to the end")
                else if (count[test] < floor[test])
                    bad(test " took " count[test] " executions, its floor is " floor[test])
                else
                    printf "%-56s %9d executions, floor %d\n", test, count[test], floor[test]
            }
            for (test in floor) if (!(test in ran)) bad(test " has a floor and did not run")
            exit failed
        }
    ' "$scratch/log" >"$scratch/report" || {
        sort "$scratch/report"
        fail "the models are not as $floors lists them"
    }
    sort "$scratch/report"
}

negative_controls() {
    [[ -f $controls ]] || fail "$controls is missing"
    lines "$controls" >"$scratch/controls"
    [[ -s $scratch/controls ]] || fail "$controls lists no control"
    if grep -vE '^control: [^ ]+ [A-Za-z0-9_-]+ *$' "$scratch/controls"; then
        fail "not \`control: test_name mutation\`: the lines above"
    fi
    local log=$scratch/control.log missed=0 caught=0
    local mutation mutations wrapper test tests status
    local wrappers="${CARGO_TARGET_DIR:-target}/loom-controls"
    mkdir -p "$wrappers"

    # What is to fail soon is better built soon.
    export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
    # Grouped, one build a mutation. The wrapper gives the cfg to this workspace's crates only,
    # and cargo keeps the builds of different wrappers apart: loom itself is built once.
    mapfile -t mutations < <(awk '{ print $3 }' "$scratch/controls" | sort -u)
    for mutation in "${mutations[@]}"; do
        wrapper=$(cd "$wrappers" && pwd)/$mutation
        printf '#!/bin/sh\nexec "$@" --cfg %s\n' "'alru_mutation=\"$mutation\"'" >"$wrapper"
        chmod +x "$wrapper"
        export RUSTC_WORKSPACE_WRAPPER=$wrapper
        loom_tests --no-run || fail "mutation $mutation does not compile"
        mapfile -t tests < <(awk -v m="$mutation" '$3 == m { print $2 }' "$scratch/controls")
        for test in "${tests[@]}"; do
            # A process of its own: a deadlock found by loom aborts it.
            status=0
            timeout 300 cargo test --release -p alru-loom-tests --tests -- \
                --exact "$test" --nocapture --test-threads=1 --format=pretty \
                >"$log" 2>&1 || status=$?
            if ! grep -qE "^test $test( |$)" "$log"; then
                cat "$log"
                fail "control $test did not run under $mutation"
            elif ((status == 124)); then
                echo "loom: $test ran out of time under $mutation" >&2
                missed=1
            elif ((status == 0)); then
                echo "loom: $test passes although $mutation breaks it" >&2
                missed=1
            else
                caught=$((caught + 1))
                printf '%-56s catches %s\n' "$test" "$mutation"
            fi
        done
    done
    unset RUSTC_WORKSPACE_WRAPPER CARGO_PROFILE_RELEASE_OPT_LEVEL
    ((missed == 0)) || fail "a control was not caught"
    echo "$caught controls caught"
}

case $part in
all | models | controls) ;;
*) fail "usage: ci/loom.sh [models|controls]" ;;
esac
if [[ $part != controls ]]; then models; fi
if [[ $part != models ]]; then negative_controls; fi
