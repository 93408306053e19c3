#!/usr/bin/env bash
# Starts a job on all workers of the slice and leaves it running there.
#
#   tpu/run.sh --config configs/NAME.py[:ARG] --workdir gs://BUCKET/PATH|DIR
#              [--name spatialrl] [--zone ZONE] [--project PROJECT]
#              [-- --config.FIELD=VALUE ...]
#   tpu/run.sh --stop
#
# The config's path is taken from the root of the repository. On each worker,
# ~/spatialrl-run/log has the output and ~/spatialrl-run/exit_code appears at
# the end. The same command goes on from the last checkpoint. A workdir on
# gs:// is mirrored, see docs/tpu.md; a directory dies with the slice. --stop
# sends SIGTERM: the job saves its state and ends with code 75.
# DRY_RUN=1 prints the commands; settings are in tpu/env.example.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "config workdir name zone project type sync-seconds stop --" "$@"

if [[ ${TPU_STOP:-0} == 1 ]]; then
  on_workers "$TPU_QUERY_SECONDS" all bash spatialrl/tpu/worker.sh stop
  exit
fi
require config workdir
if [[ $TPU_WORKDIR == gs://* ]]; then
  [[ $TPU_WORKDIR == gs://?*/?* ]] ||
    die 2 "--workdir is '$TPU_WORKDIR'; allowed is gs://BUCKET/PATH."
  workers=$(describe tpu-vm 'networkEndpoints.len()' 1)
  [[ $workers == 1 ]] || die 2 "--workdir is '$TPU_WORKDIR' and $TPU_NAME has \
$workers workers; a mirrored workdir works with 1."
fi
on_workers "$TPU_QUERY_SECONDS" all \
  env "TPU_SYNC_SECONDS=$TPU_SYNC_SECONDS" bash spatialrl/tpu/worker.sh start \
  "$TPU_CONFIG" "$TPU_WORKDIR" "${REST[@]}" ||
  die 1 "the job did not start on every worker, see above; setup comes first."
say "started; tpu/logs.sh --follow shows it, tpu/supervise.sh looks after it"
