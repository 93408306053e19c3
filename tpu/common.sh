# Shared by the scripts beside it: settings, options, and calls of gcloud.
# Sourced, never run. The codes it ends with: 1 failed, 2 called wrongly.
# shellcheck shell=bash

set -euo pipefail

if ((BASH_VERSINFO[0] < 5)); then
  echo "error: bash is ${BASH_VERSION}; 5 or later is needed." >&2
  exit 2
fi
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DRY_RUN=${DRY_RUN:-0}
exec 3>&1  # Where DRY_RUN prints, also from inside $(...).

SETTINGS=(
  PROJECT NAME TYPE ZONE RUNTIME ON_DEMAND REPO REF CONFIG WORKDIR
  SYNC_SECONDS MAX_RESTARTS POLL_SECONDS QUERY_SECONDS TIMEOUT_SECONDS
  WAIT_SECONDS
)
FLAGS=" on-demand yes follow stop "  # Options without a value.
REST=()  # What follows --.
# shellcheck disable=SC2034
PATIENCE=10  # Polls in a row without an answer.

say() {
  local dry=''
  [[ $DRY_RUN != 1 ]] || dry=' (dry run)'
  printf 'tpu%s: %s\n' "$dry" "$*" >&2
}

# die CODE SENTENCE
die() {
  printf 'error: %s\n' "$2" >&2
  exit "$1"
}

# Prints the comment at the top of the script.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# parse "OPTIONS" ARGUMENTS...: --some-option VALUE sets TPU_SOME_OPTION.
parse() {
  local allowed=" $1 " name variable
  shift
  while (($#)); do
    case $1 in
      --help) usage; exit 0 ;;
      --)
        [[ $allowed == *" -- "* ]] || die 2 "nothing may follow -- here."
        shift
        REST=("$@")
        break ;;
      --*) name=${1#--} ;;
      *) die 2 "unexpected argument '$1'; see --help." ;;
    esac
    [[ $name == *=* ]] && set -- "--${name%%=*}" "${name#*=}" "${@:2}"
    name=${name%%=*}
    [[ $allowed == *" $name "* ]] ||
      die 2 "--$name is not an option of ${0##*/}; see --help."
    variable=${name//-/_}
    variable=TPU_${variable^^}
    if [[ $FLAGS == *" $name "* ]]; then
      export "$variable=1"
      shift
    else
      (($# > 1)) && [[ -n $2 ]] || die 2 "--$name needs a value."
      export "$variable=$2"
      shift 2
    fi
  done
  read_file "$HERE/env"
  set_defaults
  check_tools
}

# read_file FILE: settings that are not in the environment yet.
read_file() {
  local line number=0
  [[ -e $1 ]] || return 0
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    [[ $line =~ ^TPU_([A-Z_]+)=(.*)$ &&
      " ${SETTINGS[*]} " == *" ${BASH_REMATCH[1]} "* ]] ||
      die 2 "$1 line $number is '$line'; allowed are TPU_NAME=value lines \
with the names ${SETTINGS[*]}."
    [[ -v TPU_${BASH_REMATCH[1]} ]] ||
      export "TPU_${BASH_REMATCH[1]}=${BASH_REMATCH[2]}"
  done <"$1"
}

set_defaults() {
  local zone='' runtime='' name
  # shellcheck disable=SC2034
  ZONE_OR_TYPE=${TPU_ZONE:-}${TPU_TYPE:-}  # Empty: nobody named the zone.
  export TPU_NAME=${TPU_NAME:-spatialrl} TPU_TYPE=${TPU_TYPE:-v5litepod-8}
  [[ $TPU_NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die 2 "--name is '$TPU_NAME'; allowed are small letters, digits and \
hyphens, a letter first."
  case $TPU_TYPE in
    v4-*) zone=us-central2-b runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) zone=us-west4-a runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) zone=us-east5-a runtime=v2-alpha-tpuv5 ;;
    v6e-*) zone=us-east1-d runtime=v2-alpha-tpuv6e ;;
  esac
  export TPU_ZONE=${TPU_ZONE:-$zone} TPU_RUNTIME=${TPU_RUNTIME:-$runtime}
  [[ -n $TPU_ZONE && -n $TPU_RUNTIME ]] ||
    die 2 "--type is '$TPU_TYPE'; known are v4-N, v5litepod-N, v5p-N and \
v6e-N, another one needs --zone and --runtime."
  export TPU_SYNC_SECONDS=${TPU_SYNC_SECONDS:-60}
  export TPU_POLL_SECONDS=${TPU_POLL_SECONDS:-30}
  export TPU_QUERY_SECONDS=${TPU_QUERY_SECONDS:-180}
  export TPU_TIMEOUT_SECONDS=${TPU_TIMEOUT_SECONDS:-1800}
  export TPU_WAIT_SECONDS=${TPU_WAIT_SECONDS:-86400}
  export TPU_MAX_RESTARTS=${TPU_MAX_RESTARTS:-10}
  for name in TPU_{SYNC,POLL,QUERY,TIMEOUT,WAIT}_SECONDS; do
    [[ ${!name} =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
      die 2 "$name is '${!name}'; allowed is a number of seconds."
  done
  [[ $TPU_MAX_RESTARTS =~ ^[0-9]+$ ]] ||
    die 2 "--max-restarts is '$TPU_MAX_RESTARTS'; allowed is a whole number."
  WHERE=("--zone=$TPU_ZONE" --quiet)
  [[ -z ${TPU_PROJECT:-} ]] || WHERE+=("--project=$TPU_PROJECT")
}

check_tools() {
  [[ $DRY_RUN == 1 ]] && return
  command -v timeout >/dev/null ||
    die 2 "timeout is not installed; it is part of GNU coreutils."
  command -v gcloud >/dev/null || die 2 "gcloud is not installed; get it \
from https://cloud.google.com/sdk/docs/install and run gcloud auth login."
}

# require NAME...: settings that have no default.
require() {
  local name variable
  for name in "$@"; do
    variable=TPU_${name^^}
    [[ -n ${!variable:-} ]] || die 2 "--$name is missing; give it, or \
$variable in the environment or in tpu/env."
  done
}

# Prints a command so that it can be pasted.
show() {
  local word
  for word in "$@"; do
    [[ $word =~ ^[-A-Za-z0-9_./:=@]+$ ]] || word=${word@Q}
    printf '%s ' "$word"
  done
  echo
}

# execute SECONDS COMMAND...: runs it for that long at most; DRY_RUN prints it.
execute() {
  local seconds=$1 status=0 child
  shift
  if [[ $DRY_RUN == 1 ]]; then
    show "$@" >&3
    return
  fi
  # In the background, because timeout leaves the terminal's process group and
  # would not hear Ctrl-C.
  timeout --kill-after=5 "$seconds" "$@" </dev/null 3>&- &
  child=$!
  trap 'kill "$child"' INT TERM
  wait "$child" || status=$?
  trap - INT TERM
  ((status != 124)) || say "no answer within $seconds s: ${*:1:5}"
  return "$status"
}

# describe KIND FIELDS DRY: those fields of the slice, or ABSENT. KIND is
# queued-resources (the request) or tpu-vm (the machines it was granted); DRY
# is what DRY_RUN takes for the answer.
describe() {
  local errors status=0
  errors=$(mktemp)
  execute "$TPU_QUERY_SECONDS" gcloud compute tpus "$1" describe \
    "$TPU_NAME" "--format=value($2)" "${WHERE[@]}" 2>"$errors" || status=$?
  if [[ $DRY_RUN == 1 ]]; then
    echo "$3"
  elif ((status)) && grep -q -e NOT_FOUND -e '\] not found' "$errors"; then
    echo ABSENT
    status=0
  elif ((status)); then
    cat "$errors" >&2
  fi
  rm -f "$errors"
  return "$status"
}

# on_workers SECONDS WHICH WORD...: one command on workers all, 0, 1, ...
on_workers() {
  local seconds=$1 which=$2 command
  shift 2
  printf -v command '%q ' "$@"
  execute "$seconds" gcloud compute tpus tpu-vm ssh "$TPU_NAME" \
    "--worker=$which" "--command=${command% }" "${WHERE[@]}"
}
