#!/usr/bin/env bash
# Push an image to the registry beside this repository, under the tag's name: push_image.sh IMAGE [SUFFIX]. Needs TOKEN.
set -euo pipefail
name="ghcr.io/${GITHUB_REPOSITORY,,}:$GITHUB_REF_NAME${2:-}"
docker login ghcr.io --username "$GITHUB_ACTOR" --password-stdin <<< "$TOKEN"
docker tag "$1" "$name"
docker push "$name"
