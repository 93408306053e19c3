#!/usr/bin/env bash
# Plays gcloud. Every call is a line of $WORLD/calls; the other files there say
# what is the case: request (state of the queued resource and who brought it
# about), machines, workers, jobs (answers of worker.sh status), broken and
# unreachable (whether an installation or an upload fails: yes or no), zone
# (the only one with a slice in it, else any). Of request, jobs, broken and
# unreachable each question takes a line, the last one for ever. Where
# $WORLD/home is, a command over ssh runs with it as HOME; buckets are
# directories of $WORLD/buckets.

printf '%q ' "$@" >>"$WORLD/calls"
echo >>"$WORLD/calls"

is() { [[ -e $WORLD/$1 ]]; }
answer() {
  if [[ $1 == ABSENT ]]; then
    echo "ERROR: (gcloud) NOT_FOUND: Resource 'x' was not found." >&2
    exit 1
  fi
  if [[ $1 == DENIED ]]; then
    echo "ERROR: (gcloud) PERMISSION_DENIED: tpu.nodes.get is missing." >&2
    exit 1
  fi
  echo "$1"
}
next() {
  head -n 1 "$WORLD/$1"
  [[ $(wc -l <"$WORLD/$1") == 1 ]] || sed -i 1d "$WORLD/$1"
}
option() {  # NAME ARGUMENTS...: the value of --NAME=VALUE
  local word
  for word in "${@:2}"; do
    [[ $word != "--$1="* ]] || printf %s "${word#*=}"
  done
}
place() { echo "${1/#gs:\//$WORLD/buckets}"; }

if [[ $* == *" describe "* ]] && is zone &&
  [[ $(option zone "$@") != "$(<"$WORLD/zone")" ]]; then
  answer ABSENT
fi
case "$*" in
  *"queued-resources describe"*failedData*) cat "$WORLD/why" ;;
  *"queued-resources describe"*) answer "$(next request)" ;;
  *"tpu-vm describe"*networkEndpoints*) cat "$WORLD/workers" ;;
  *"tpu-vm describe"*) answer "$(<"$WORLD/machines")" ;;
  *"queued-resources create"*)
    if is quota; then
      echo "ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded." >&2
      exit 1
    fi
    if is refused; then echo FAILED; else echo ACTIVE; fi >"$WORLD/request"
    echo READY >"$WORLD/machines" ;;
  *" delete "*)
    is undeletable || echo ABSENT | tee "$WORLD/request" >"$WORLD/machines" ;;
  *"tpu-vm scp"*) is home && cp "$5" "$WORLD/home/${6#*:}" ;;
  *"tpu-vm ssh"*)
    command=$(option command "$@")
    if is home; then
      cd "$WORLD/home" && HOME=$PWD exec bash -c "$command"
    elif [[ $command == *"worker.sh status"* ]]; then
      job=$(next jobs)
      case $job in
        preempted) echo "SUSPENDED SERVICE" >"$WORLD/request"; exit 255 ;;
        suspended) echo "SUSPENDED USER" >"$WORLD/request"; exit 255 ;;
        dying)  # As the job of a slice does whose other workers are gone.
          echo PREEMPTED >"$WORLD/machines"
          echo "spatialrl-job: exit 1" ;;
        silent) exit 255 ;;
        hang) exec sleep 30 ;;
        *) tr ';' '\n' <<<"$job" | sed 's/^/spatialrl-job: /' ;;
      esac
    elif [[ $command == *install* ]] && is broken; then
      [[ $(next broken) == no ]] || exit 1
    fi ;;
  "storage cp - "*)
    ! is forbidden || exit 1
    mkdir -p "$(dirname "$(place "$4")")" && cat >"$(place "$4")" ;;
  "storage rsync"*)
    [[ ${*: -1} != gs://* ]] || ! is unreachable ||
      [[ $(next unreachable) == no ]] || exit 1
    from=$(place "${*: -2:1}") to=$(place "${*: -1}")
    [[ $* != *delete-unmatched* ]] || rm -rf "$to"
    mkdir -p "$to"
    tar -C "$from" --exclude="$(option exclude "$@" | sed 's,/\.\*,,')" -c . |
      tar -C "$to" -x ;;
  *) echo "fake gcloud does not know: $*" >&2; exit 99 ;;
esac
