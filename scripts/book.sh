#!/usr/bin/env bash
# Builds the pages of docs/ as a book in target/book. Without mdBook on the PATH, installs it into
# target/mdbook, which takes minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATH=$PATH:$PWD/target/mdbook/bin
command -v mdbook >/dev/null ||
    cargo install --locked --root target/mdbook --target-dir target/mdbook/build \
        --version '^0.5' mdbook
mdbook build
echo "the book is target/book/index.html"
