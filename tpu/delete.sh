#!/usr/bin/env bash
# Deletes the slice and its place in the queue, and sees that both are gone.
#
#   tpu/delete.sh [--yes] [--name spatialrl] [--zone ZONE] [--type TYPE]
#                 [--project PROJECT]
#
# Asks first, unless --yes. What is on the disks of the workers is lost; a
# bucket is left alone and goes on costing what storage costs.
# DRY_RUN=1 prints the commands; settings are in tpu/env.example.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "yes name zone project type poll-seconds" "$@"

look() {  # DRY: what DRY_RUN takes for the answer
  request=$(describe queued-resources state.state "$1")
  machines=$(describe tpu-vm state "$1")
}

look ACTIVE
if [[ $request == ABSENT && $machines == ABSENT ]]; then
  # It may live, and cost, in another one.
  [[ -n $ZONE_OR_TYPE ]] || die 1 "there is no $TPU_NAME in $TPU_ZONE, which \
is the default zone; name yours with --zone or --type."
  say "there is no $TPU_NAME in $TPU_ZONE; nothing to delete"
  exit
fi
say "$TPU_NAME in $TPU_ZONE: request $request, machines $machines"
if [[ ${TPU_YES:-0} != 1 && $DRY_RUN != 1 ]]; then
  read -r -p "Delete $TPU_NAME and all on its disks? [y/N] " answer ||
    answer=
  [[ $answer == [yY]* ]] || die 1 "not deleted; answer y, or give --yes."
fi

# A failure is not the end yet: what is left is looked at below.
if [[ $request != ABSENT ]]; then
  execute "$TPU_TIMEOUT_SECONDS" gcloud compute tpus queued-resources delete \
    "$TPU_NAME" --force "${WHERE[@]}" || say "deleting the request failed"
elif [[ $machines != ABSENT ]]; then
  execute "$TPU_TIMEOUT_SECONDS" gcloud compute tpus tpu-vm delete \
    "$TPU_NAME" "${WHERE[@]}" || say "deleting the machines failed"
fi
for ((i = 0; i < 10; i++)); do
  look ABSENT
  if [[ $request == ABSENT && $machines == ABSENT ]]; then
    say "$TPU_NAME is deleted and nothing of it is left"
    exit
  fi
  sleep "$TPU_POLL_SECONDS"
done
die 1 "$TPU_NAME is still there (request $request, machines $machines), and \
may still be paid for; look at https://console.cloud.google.com/compute/tpus."
