#!/bin/sh
# Compiles relu.c and runs it on a bundle: run.sh BUNDLE NUMBER...
# CC and CFLAGS choose the compiler and its options; the program is made in the folder BUILD, or here.
set -eu
here=$(dirname "$0")
bundle=$1
shift
program=${BUILD:-$here}/relu

# Any tool that knows SHA-256 can check a bundle: every file, and the list of them by its own digest.
(cd "$bundle" && sha256sum --quiet --check SHA256SUMS)
digest=$(sha256sum "$bundle/SHA256SUMS" | cut -d ' ' -f 1)

PKG_CONFIG_PATH=$(relu-ops config --pkg-config-path)
export PKG_CONFIG_PATH
# shellcheck disable=SC2046 # options, each a word
${CC:-cc} -std=c11 ${CFLAGS:-} "$here/relu.c" -o "$program" $(pkg-config --cflags --libs relu_ops)
"$program" "$bundle" "$digest" "$@"
