#!/bin/sh
# run_in_docker.sh DOCKERFILE CONTEXT DESTINATION [FLAG...]: build a directory with hako in a container that docker starts, with
# its default rights and your credentials, and push. HAKO_IMAGE names another image of hako.
set -eu
if [ $# -lt 3 ]; then
  echo "usage: $0 DOCKERFILE CONTEXT DESTINATION [FLAG...]" >&2
  exit 2
fi
dockerfile=$1 context=$(cd "$2" && pwd) destination=$3
shift 3
set -- "${HAKO_IMAGE:-registry.example.com/tools/hako:latest}" --context=dir:///workspace --dockerfile="$dockerfile" --destination="$destination" "$@"
config=${DOCKER_CONFIG:-$HOME/.docker}/config.json
if [ -e "$config" ]; then
  set -- -v "$config:/kaniko/.docker/config.json:ro" "$@"
fi
exec docker run --rm -v "$context:/workspace:ro" "$@"
