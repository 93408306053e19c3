#!/usr/bin/env bash
# Puts the code and a Python environment on every worker of the slice.
#
#   tpu/setup.sh [--name spatialrl] [--zone ZONE] [--project PROJECT]
#                [--repo URL [--ref main]]
#
# Without --repo the commit checked out here is copied, so that the run's
# config.json names it; changes that are not committed stay behind. Called
# again it brings the workers up to date.
# DRY_RUN=1 prints the commands; settings are in tpu/env.example.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project type repo ref timeout-seconds" "$@"

if [[ -n ${TPU_REPO:-} ]]; then
  source=$TPU_REPO ref=${TPU_REF:-HEAD}
else
  [[ -z ${TPU_REF:-} ]] || die 2 "--ref is '$TPU_REF'; it needs --repo."
  changed=$(git -C "$HERE" status --porcelain --untracked-files=no) ||
    die 1 "$HERE is not in a git checkout; name one with --repo."
  [[ -z $changed ]] || say "uncommitted changes are not copied"
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  bundle=$folder/spatialrl.bundle
  execute "$TPU_QUERY_SECONDS" git -C "$HERE" bundle create --quiet \
    "$bundle" HEAD
  execute "$TPU_TIMEOUT_SECONDS" gcloud compute tpus tpu-vm scp "$bundle" \
    "$TPU_NAME:spatialrl.bundle" --worker=all "${WHERE[@]}" ||
    die 1 "the code did not get to the workers, see above."
  source=../spatialrl.bundle ref=HEAD
fi

# The words after the script are its arguments on the worker.
# shellcheck disable=SC2016
on_workers "$TPU_TIMEOUT_SECONDS" all bash -c '
  set -e
  git init --quiet spatialrl
  cd spatialrl
  git fetch --quiet "$1" "$2"
  git checkout --quiet --detach FETCH_HEAD
  bash tpu/worker.sh install' setup "$source" "$ref" ||
  die 1 "setting up a worker failed, see above."
say "all workers are set up"
