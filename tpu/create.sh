#!/usr/bin/env bash
# Asks for a TPU slice and waits until it is there.
#
#   tpu/create.sh [--type v5litepod-8] [--zone ZONE] [--runtime VERSION]
#                 [--name spatialrl] [--project PROJECT] [--on-demand]
#                 [--wait-seconds 86400]
#
# The slice is a queued resource of spot machines, which are cheaper and can be
# taken away at any moment; --on-demand asks for ones that stay. Zone and
# runtime version follow from the type. Called again it goes on waiting. When
# the wait is over the request stays in the queue: tpu/delete.sh takes it back.
# DRY_RUN=1 prints the commands; settings are in tpu/env.example.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "type zone runtime name project on-demand wait-seconds poll-seconds" "$@"

request() {
  local spot=(--spot)
  [[ ${TPU_ON_DEMAND:-0} != 1 ]] || spot=()
  say "asking for $TPU_TYPE in $TPU_ZONE as $TPU_NAME"
  execute "$TPU_TIMEOUT_SECONDS" gcloud compute tpus queued-resources create \
    "$TPU_NAME" "--node-id=$TPU_NAME" "--accelerator-type=$TPU_TYPE" \
    "--runtime-version=$TPU_RUNTIME" "${spot[@]}" "${WHERE[@]}" ||
    die 1 "the request was refused, see above; if it says quota, docs/tpu.md \
tells how to ask for it."
}

# Sets state, or leaves it where there is no answer.
silent=0
poll() {
  local seen
  if seen=$(describe queued-resources state.state ACTIVE); then
    state=$seen silent=0
    return
  fi
  silent=$((silent + 1))
  ((silent < PATIENCE)) || die 1 "$PATIENCE polls in a row had no answer; \
the request stays in the queue until tpu/delete.sh."
}

state=$(describe queued-resources state.state ABSENT)
if [[ $state == ABSENT ]]; then
  request
  state=REQUESTED
  poll
fi
begin=$SECONDS last=
while [[ $state != ACTIVE ]]; do
  [[ $state == "$last" ]] || say "$TPU_NAME is $state"
  last=$state
  case $state in
    FAILED)
      why=$(describe queued-resources state.failedData.error.message '')
      die 1 "the request failed: ${why:-no reason given}. Take it back with \
tpu/delete.sh." ;;
    SUSPENDING | SUSPENDED | DELETING)
      die 1 "$TPU_NAME is $state; remove it with tpu/delete.sh first." ;;
    ABSENT) die 1 "$TPU_NAME was deleted while we waited for it." ;;
  esac
  ((SECONDS - begin < ${TPU_WAIT_SECONDS%.*})) || die 1 "$TPU_NAME is still \
$state after $TPU_WAIT_SECONDS s; it stays in the queue until tpu/delete.sh."
  sleep "$TPU_POLL_SECONDS"
  poll
done
say "$TPU_NAME is ACTIVE, and paid for until tpu/delete.sh"
