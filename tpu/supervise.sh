#!/usr/bin/env bash
# Gets a slice, runs the job, and starts it again when the slice is taken away.
#
#   tpu/supervise.sh --config configs/NAME.py[:ARG] --workdir gs://BUCKET/PATH
#                    [--max-restarts 10] [--poll-seconds 30]
#                    [options of create.sh and setup.sh]
#                    [-- --config.FIELD=VALUE ...]
#
# Runs until the job has ended; a job that runs already is only watched. A
# restart follows a preemption, never a failure: the slice suspended by the
# service, its machines preempted, or the job stopped by a signal (code 75).
# The slice is left as it is at the end: tpu/delete.sh ends the bill.
#
# Exit codes: 0 the job finished; 1 it failed; 2 called wrongly; 3 no restarts
# left; 4 no answer from the slice; 5 the slice is gone for another reason
# than preemption; 75 tpu/run.sh --stop ended the job.
# DRY_RUN=1 prints the commands; settings are in tpu/env.example.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "config workdir max-restarts poll-seconds query-seconds \
timeout-seconds wait-seconds sync-seconds name zone project type runtime \
on-demand repo ref --" "$@"
require config workdir

EXIT_STOPPED=75  # Of spatialrl/train/run.py.
SETUPS=5  # The first ssh to a new slice may not connect.
ASK_WORKER='if [ -e spatialrl/tpu/worker.sh ]
  then bash spatialrl/tpu/worker.sh status; else echo spatialrl-job: absent; fi'

launch() {
  "$HERE/create.sh" || die 5 "there is no slice to run on, see above."
  # Where these fail, the slice may have gone meanwhile; the next look tells.
  if ! { setup && "$HERE/run.sh" -- "${REST[@]}"; }; then
    say "the job was not started"
  fi
}

setup() {
  local left=$SETUPS
  until "$HERE/setup.sh"; do
    left=$((left - 1))
    ((left)) || return 1
    sleep "$TPU_POLL_SECONDS"
  done
}

# One word for all workers: running, finished, stopped, signalled, lost, or
# failed CODE. Fails if a worker does not answer.
job_state() {
  local lines code
  lines=$(on_workers "$TPU_QUERY_SECONDS" all bash -c "$ASK_WORKER") || return
  [[ $DRY_RUN != 1 ]] || lines='spatialrl-job: exit 0'
  lines=$(sed -n 's/^spatialrl-job: //p' <<<"$lines")
  [[ -n $lines ]] || return
  code=$(sed -n 's/^exit //p' <<<"$lines" | grep -vx -e 0 -e $EXIT_STOPPED |
    head -n 1) || true
  if [[ -n $code ]]; then echo "failed $code"
  elif grep -qx -e lost -e absent <<<"$lines"; then echo lost
  elif grep -qx running <<<"$lines"; then echo running
  elif grep -qx stopped <<<"$lines"; then echo stopped
  elif grep -qx "exit $EXIT_STOPPED" <<<"$lines"; then echo signalled
  else echo finished
  fi
}

# The same of the slice and the job on it, with waiting, preempted, suspended,
# refused, gone and silent besides.
look() {
  local state initiator machines
  state=$(describe queued-resources state.state,state.stateInitiator ACTIVE) ||
    { echo silent; return; }
  read -r state initiator <<<"$state"
  case $state in
    ACTIVE) ;;
    SUSPENDED)
      if [[ $initiator == USER ]]; then echo suspended; else echo preempted; fi
      return ;;
    FAILED) echo refused; return ;;
    ABSENT | DELETING) echo gone; return ;;
    *) echo waiting; return ;;
  esac
  machines=$(describe tpu-vm state READY) || { echo silent; return; }
  case $machines in
    READY) job_state || echo silent ;;
    PREEMPTED | TERMINATED) echo preempted ;;
    *) echo waiting ;;
  esac
}

restarts=0
count_restart() {
  ((restarts < TPU_MAX_RESTARTS)) || die 3 "$1, and all $TPU_MAX_RESTARTS \
restarts are used; call again to go on from the last checkpoint."
  restarts=$((restarts + 1))
  say "$1; restart $restarts of $TPU_MAX_RESTARTS"
}

[[ $TPU_WORKDIR == gs://* ]] || say "$TPU_WORKDIR is not on gs://; unless it \
is on a disk of its own, a preemption takes it away and the job starts over"
case $(look) in
  running | silent | preempted) ;;  # The loop knows what to do.
  *) launch ;;
esac
before='' silent=0
while :; do
  seen=$(look)
  [[ $seen == "$before" ]] || say "$(date '+%F %T') $seen"
  if [[ $seen == silent ]]; then silent=$((silent + 1)); else silent=0; fi
  case $seen in
    finished) exit 0 ;;
    stopped) say "the job was stopped by hand"; exit $EXIT_STOPPED ;;
    suspended) die 5 "the slice was suspended by a user, not preempted." ;;
    refused) die 5 "the request for the slice failed; see gcloud compute tpus \
queued-resources describe $TPU_NAME --zone=$TPU_ZONE." ;;
    gone) die 5 "the slice was deleted by someone, not preempted." ;;
    silent) ((silent < PATIENCE)) ||
      die 4 "the slice did not answer $PATIENCE times in a row." ;;
    preempted)
      count_restart "the slice was preempted"
      "$HERE/delete.sh" --yes ||
        die 5 "the preempted slice cannot be deleted, see above."
      launch
      before=''
      continue ;;
    failed* | lost | signalled)
      # The jobs of a slice that is being taken away end first, each in its
      # way; the slice's own state follows, so it is looked at once more.
      if [[ $seen == "$before" ]]; then
        case $seen in
          failed*) die 1 "the job ended with code ${seen#* }, which is no \
preemption, so it is not restarted; tpu/logs.sh shows why." ;;
          lost) die 1 "the job is not running and left no exit code: it was \
not started, or it was killed; tpu/logs.sh may show why." ;;
        esac
        count_restart "the job was stopped by a signal"
        "$HERE/run.sh" -- "${REST[@]}" || say "the job was not started"
        before=''
        continue
      fi ;;
  esac
  before=$seen
  sleep "$TPU_POLL_SECONDS"
done
