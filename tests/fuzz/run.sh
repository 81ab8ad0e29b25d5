#!/usr/bin/env bash
# run.sh [SECONDS [TARGET...]]: gives each fuzz target (all by default) that much time; fails at the first crash, hang
# (one input over 5 s) or hunger (over 1 GiB).
#
# New inputs are kept in corpus/, logs and what crashed in artifacts/; both may be deleted. SANITIZER=address looks for
# faults in unsafe code, too: that is in dependencies only, so the default is to run several times as many inputs.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-20}
shift || true
fuzz=(cargo "+${FUZZ_TOOLCHAIN:-nightly}" fuzz)
options=(--fuzz-dir . --sanitizer "${SANITIZER:-none}")

if ! "${fuzz[@]}" --version >/dev/null 2>&1; then
    echo "fuzz: a nightly compiler and cargo-fuzz are needed: rustup toolchain install nightly; cargo install cargo-fuzz" >&2
    exit 1
fi
"${fuzz[@]}" build "${options[@]}"
if [ $# = 0 ]; then
    mapfile -t all < <("${fuzz[@]}" list --fuzz-dir .)
    set -- "${all[@]}"
fi
mkdir -p artifacts
for target; do
    log=artifacts/$target.log
    inputs=("corpus/$target")
    mkdir -p "${inputs[0]}"
    [ ! -d "seeds/$target" ] || inputs+=("seeds/$target")
    if ! "${fuzz[@]}" run "${options[@]}" "$target" "${inputs[@]}" -- \
        "-max_total_time=$seconds" -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        echo "fuzz: $target failed; the whole log is in tests/fuzz/$log" >&2
        exit 1
    fi
    printf '%-18s %12s inputs\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
done
