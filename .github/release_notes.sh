#!/usr/bin/env bash
# Print what CHANGELOG.md says of a version: release_notes.sh 0.2.0. A version that it does not have is an error.
set -euo pipefail
notes="$(awk -v version="$1" '/^## /{found = $2 == version; next} found' "$(dirname "$0")/../CHANGELOG.md")"
[ -n "${notes//[[:space:]]/}" ] || { echo "CHANGELOG.md has no notes under '## $1'" >&2; exit 1; }
printf '%s\n' "$notes"
