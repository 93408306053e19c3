#!/usr/bin/env bash
# Runs on a worker of the slice, called over ssh by the scripts beside it.
#
#   worker.sh install
#   worker.sh start CONFIG WORKDIR [--config.FIELD=VALUE ...]
#   worker.sh status
#   worker.sh stop
#
# In ~/spatialrl-run: log, pid, exit_code once the job has ended, stopped if
# someone asked it to, and for a workdir on gs:// its mirror.

set -euo pipefail

CODE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RUN=$HOME/spatialrl-run

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The images ship Python 3.10, which is too old; uv brings its own.
install() {
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  cd "$CODE"
  uv venv --quiet --seed --allow-existing --python 3.12 .venv
  .venv/bin/pip install --quiet -e ".[tpu]"
}

# Whether the process of that number is still ours, and not one of a later boot.
alive() {
  [[ -e $RUN/pid ]] && grep -qsa worker.sh "/proc/$(<"$RUN/pid")/cmdline"
}

start() {
  (($# >= 2)) || fail "start needs a config and a workdir."
  [[ -x $CODE/.venv/bin/python ]] || fail "no $CODE/.venv; run tpu/setup.sh."
  mkdir -p "$RUN"
  ! alive || fail "a job is running already; tpu/run.sh --stop ends it."
  rm -f "$RUN"/{exit_code,stopped,child}
  setsid bash "$0" job "$@" >>"$RUN/log" 2>&1 </dev/null &
  echo "$!" >"$RUN/pid"
}

# Runs in the background: the job, its mirror, and its exit code.
job() {
  local config=$1 workdir=$2 bucket='' child ended
  shift 2
  code=1  # Global, for the trap.
  trap 'echo "$code" >"$RUN/exit_code"' EXIT
  if [[ $workdir == gs://* ]]; then
    bucket=${workdir%/} workdir=$RUN/mirror/${workdir#gs://}
    pull "$bucket" "$workdir"
  fi
  cd "$CODE"
  # Naming the platform makes a TPU that cannot be had an error, instead of a
  # run on the CPU.
  JAX_PLATFORMS=tpu,cpu PYTHONUNBUFFERED=1 .venv/bin/python -m spatialrl.main \
    --config "$config" --workdir "$workdir" "$@" &
  child=$!
  echo "$child" >"$RUN/child"
  # Going down, the machine sends SIGTERM to all: the job saves on it, and we
  # stay to copy that and to write down how it ended.
  trap '' TERM
  while :; do
    sleep "${TPU_SYNC_SECONDS:-60}" &
    code=0
    wait -n -p ended "$child" "$!" || code=$?
    [[ $ended != "$child" ]] || break
    [[ -z $bucket ]] || push "$workdir" "$bucket" ||
      echo "could not copy $workdir to $bucket; will try again" >&2
  done
  # A run that was stopped goes on elsewhere all the same.
  [[ -z $bucket ]] || push_last "$workdir" "$bucket" || ((code)) || code=1
}

# pull BUCKET DIRECTORY; the file that is written first is the proof that we
# may write, and makes a new path one that rsync finds. A mirror that is there
# is whole, for it is moved to its place, and may be ahead of the bucket.
pull() {
  date | gcloud storage cp - "$1/started" ||
    fail "cannot write in $1; the slice's service account needs the right."
  [[ ! -e $2/config.json ]] || return 0
  rm -rf "$2" "$2.part"
  mkdir -p "$2.part"
  gcloud storage rsync --recursive "$1" "$2.part"
  mv "$2.part" "$2"
}

# push_last DIRECTORY BUCKET: the copy after which nobody tries again.
push_last() {
  local pause
  for pause in 1 2 4 8 16; do
    push "$@" && return
    echo "could not copy $1 to $2; will try again in $pause s" >&2
    sleep "$pause"
  done
  push "$@" && return
  echo "error: could not copy $1 to $2; what is new is on this disk alone." >&2
  return 1
}

# push DIRECTORY BUCKET. The bucket must never hold a checkpoint that is newer
# than its metrics, or lines would be missing after a resume: checkpoints are
# frozen first and uploaded last, and old ones go when the new ones are there.
push() {
  local frozen=$RUN/frozen entry
  rm -rf "$frozen"
  mkdir "$frozen" || return
  if [[ -d $1/checkpoints ]]; then
    cp -al "$1/checkpoints" "$frozen" || return
  fi
  for entry in "$1"/*; do
    [[ -e $frozen/${entry##*/} || ! -e $entry ]] ||
      cp -a "$entry" "$frozen" || return
  done
  gcloud storage rsync --recursive --exclude='checkpoints/.*' \
    "$frozen" "$2" || return
  [[ -d $frozen/checkpoints ]] || return 0
  gcloud storage rsync --recursive "$frozen/checkpoints" "$2/checkpoints" &&
    gcloud storage rsync --recursive --delete-unmatched-destination-objects \
      "$frozen/checkpoints" "$2/checkpoints"
}

status() {
  local state=lost
  if [[ -e $RUN/stopped && -e $RUN/exit_code ]]; then
    state=stopped
  elif [[ -e $RUN/exit_code ]]; then
    state="exit $(<"$RUN/exit_code")"
  elif alive; then
    state=running
  elif [[ ! -e $RUN/pid ]]; then
    state=absent
  fi
  echo "spatialrl-job: $state"
}

stop() {
  alive && [[ -e $RUN/child ]] || fail "no job is running."
  touch "$RUN/stopped"
  kill "$(<"$RUN/child")"
}

case ${1:-} in
  install | start | job | status | stop) "$@" ;;
  *) fail "'${1:-}' is no command; allowed are install, start, status, stop." ;;
esac
