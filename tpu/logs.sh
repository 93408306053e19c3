#!/usr/bin/env bash
# Shows or fetches the log of the job.
#
#   tpu/logs.sh [--worker 0] [--lines 50] [--follow]
#   tpu/logs.sh --fetch DIR
#               [--name spatialrl] [--zone ZONE] [--project PROJECT]
#
# Prints the last lines of one worker, with --follow also what comes. --fetch
# writes the whole log of worker N to DIR/N.log for every worker.
# DRY_RUN=1 prints the commands; settings are in tpu/env.example.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "worker lines follow fetch name zone project type" "$@"

log=spatialrl-run/log worker=${TPU_WORKER:-0} lines=${TPU_LINES:-50}
[[ $worker =~ ^[0-9]+$ ]] ||
  die 2 "--worker is '$worker'; allowed is the number of one worker."
[[ $lines =~ ^[0-9]+$ ]] ||
  die 2 "--lines is '$lines'; allowed is a whole number."

if [[ -n ${TPU_FETCH:-} ]]; then
  [[ $DRY_RUN == 1 ]] || mkdir -p "$TPU_FETCH"
  execute "$TPU_TIMEOUT_SECONDS" gcloud compute tpus tpu-vm ssh "$TPU_NAME" \
    --worker=all "--command=cat $log" "--output-directory=$TPU_FETCH" \
    "${WHERE[@]}"
  say "the logs are in $TPU_FETCH"
elif [[ ${TPU_FOLLOW:-0} == 1 ]]; then
  # For ever, until Ctrl-C: a timeout of 0 is none.
  on_workers 0 "$worker" tail -n "$lines" -F "$log"
else
  on_workers "$TPU_QUERY_SECONDS" "$worker" tail -n "$lines" "$log"
fi
