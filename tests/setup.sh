#!/usr/bin/env bash
# setup.sh [demo|test|cluster]: provides what the demo, the tests or the cluster testbed need and cargo does not build.
#
# It may be run any number of times; what is there is left alone. Everything but system packages goes into
# $TOWLINE_CACHE (default /var/cache/towline), which may be deleted at any time.
set -euo pipefail

# The one place where versions are pinned (Python packages: tests/python/requirements.txt; the kubelet's module, with
# the same version: tests/kubelet/go.mod). A built program carries its version in a stamp beside it.
CONTAINERD_VERSION=v2.4.2
KUBELET_VERSION=v1.36.3
GO_MINOR_MIN=24 # what containerd's module asks for; a newer toolchain is fetched by go itself where a module wants it

# Program → Debian package: what the cluster testbed needs, and what everything else needs.
CLUSTER_PACKAGES=(
    ip:iproute2
    nft:nftables
    tcpdump:tcpdump
    faketime:faketime
)
PACKAGES=(
    runc:runc
    docker-registry:docker-registry
    skopeo:skopeo
    umoci:umoci
    busybox:busybox-static
)

here=$(cd "$(dirname "$0")" && pwd)
cache=${TOWLINE_CACHE:-/var/cache/towline}
mode=${1:-test}

say() { echo "setup: $*" >&2; }
die() {
    say "$1"
    exit 1
}

check_machine() {
    [ "$(id -u)" = 0 ] || die "this must run as root: it installs packages, and containers and mounts need root"
    [ -e /dev/fuse ] || die "/dev/fuse is missing: load the kernel module fuse, or pass the device into this container"
    command -v cargo >/dev/null || die "Rust is missing: install it with rustup, see https://rustup.rs"
    [ "$mode" != cluster ] || return 0
    command -v go >/dev/null || die "Go 1.$GO_MINOR_MIN or newer is missing: see https://go.dev/doc/install"
    local minor
    minor=$(go env GOVERSION | sed -E 's/^go1\.([0-9]+).*/\1/')
    [ "$minor" -ge "$GO_MINOR_MIN" ] || die "$(go env GOVERSION) is too old: Go 1.$GO_MINOR_MIN or newer is needed"
    command -v apt-get >/dev/null || command -v runc >/dev/null ||
        die "apt-get is missing: install runc, docker-registry, skopeo, umoci and busybox (static) by hand"
}

install_packages() {
    local missing=() pair
    local wanted=("${CLUSTER_PACKAGES[@]}")
    [ "$mode" = cluster ] || wanted+=("${PACKAGES[@]}")
    for pair in "${wanted[@]}"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ "$mode" = cluster ] || other_packages
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    local log=$cache/apt.log
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
        >"$log" 2>&1 </dev/null || die "apt-get could not install ${missing[*]}: see $log"
}

# other_packages: adds to `missing` what is no program in the PATH.
other_packages() {
    # A busybox that needs libraries does not run in an image that holds nothing else.
    ! dpkg-query -W -f '${Status}' busybox-static 2>/dev/null | grep -q 'ok installed' && missing+=(busybox-static)
    [ -x /usr/bin/python3 ] || missing+=(python3)
    /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    /usr/bin/python3 -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' 2>/dev/null || missing+=(python3-torch)
    return 0
}

# built NAME VERSION: whether the cache holds that version of a program.
built() { [ -x "$cache/bin/$1" ] && [ "$(cat "$cache/bin/.$1.version" 2>/dev/null)" = "$2" ]; }

# finish_build NAME VERSION: moves a finished program from $cache/build into place.
finish_build() {
    mv "$cache/build/$1" "$cache/bin/$1"
    echo "$2" >"$cache/bin/.$1.version"
}

build_containerd() {
    local name
    for name in containerd containerd-shim-runc-v2 ctr; do
        built "$name" "$CONTAINERD_VERSION" && continue
        say "building $name $CONTAINERD_VERSION"
        (cd / && GOBIN=$cache/build go install -trimpath -ldflags "-s -w" \
            "github.com/containerd/containerd/v2/cmd/$name@$CONTAINERD_VERSION") >"$cache/$name.log" 2>&1 ||
            die "$name could not be built: see $cache/$name.log"
        finish_build "$name" "$CONTAINERD_VERSION"
    done
}

build_kubelet() {
    local name=kubelet-$KUBELET_VERSION base=k8s.io/component-base/version
    built "$name" "$KUBELET_VERSION" && return
    say "building the kubelet $KUBELET_VERSION (some minutes)"
    local minor=${KUBELET_VERSION#v1.}
    local flags="-s -w -X $base.gitVersion=$KUBELET_VERSION -X $base.gitMajor=1 -X $base.gitMinor=${minor%%.*}"
    (cd "$here/kubelet" && go build -trimpath -ldflags "$flags" -o "$cache/build/$name" .) \
        >"$cache/kubelet.log" 2>&1 || die "the kubelet could not be built: see $cache/kubelet.log"
    finish_build "$name" "$KUBELET_VERSION"
}

make_venv() {
    local venv=$cache/venv wanted=$here/python/requirements.txt
    cmp -s "$wanted" "$venv/.requirements" && return
    say "installing the Python packages of $wanted"
    rm -rf "$venv"
    # Debian's interpreter, and its packages beside ours: that is where PyTorch is.
    { /usr/bin/python3 -m venv --system-site-packages "$venv" &&
        "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$wanted"; } \
        >"$cache/pip.log" 2>&1 || die "pip could not install them: see $cache/pip.log"
    cp "$wanted" "$venv/.requirements"
}

case $mode in
    demo | test | cluster) ;;
    *)
        echo "usage: setup.sh [demo|test|cluster]" >&2
        exit 2
        ;;
esac
check_machine
mkdir -p "$cache/bin" "$cache/build"
# Two runs at once would build everything twice.
exec 9>"$cache/setup.lock"
flock 9
install_packages
[ "$mode" != cluster ] || exit 0
build_containerd
[ "$mode" = demo ] || build_kubelet
make_venv
