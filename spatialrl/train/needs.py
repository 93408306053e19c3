"""What the slots of a run need besides each other, and what they cost."""

import inspect

from spatialrl.records import Signals
from spatialrl.rewards import refresh
from spatialrl.rewards.aggregate import weighted_sum
from spatialrl.rewards.judges import COMPARING
from spatialrl.rl.anchors import VIEW_ANCHORS, WEIGHT_ANCHORS
from spatialrl.rl.objectives import CALLS, DIFFERENTIABLE, OBJECTIVES, TRUSTED


def trusting(config):
  """The slots that look at trusted images: list of (field, its value)."""
  found = [
      ("anchor.name", config.anchor.name, VIEW_ANCHORS),
      ("objective.name", config.objective.name, TRUSTED),
      ("refresh.name", config.refresh.name, set(refresh.REFRESHES) - {"fixed"}),
      *(("rewards", name, COMPARING) for name in config.rewards),
  ]
  return [(field, name) for field, name, needing in found if name in needing]


def differentiable(config, judges):
  """The reward inside the gradient, or None where no gradient needs it.

  Returns:
    (images f32[M, S, S, 3], ids i32[M, L], mask bool[M, L], learned) -> f32[M]
    with learned as in `TrainState.judges`.
  """
  if config.objective.name not in DIFFERENTIABLE:
    return None
  weights = {n: w for n, w in config.aggregate.weights.items() if w}
  caps = config.aggregate.get("caps") or {}
  caps = {name: cap for name, cap in caps.items() if name in weights}

  def reward(images, ids, mask, learned):
    signals = {}
    for name in weights:
      head = (learned[name]["weights"],) if name in learned else ()
      scalar = judges[name].score(images, ids, mask, *head)
      signals[name] = Signals(scalar=scalar)
    return weighted_sum(signals, weights=weights, caps=caps)

  return reward


def update_calls(config, rows):
  """Network calls of one iteration's update, when every row counts.

  Args:
    config: of an `online` run.
    rows: images that reach the update.

  Returns:
    int: images x visits x the policies asked at each, doubled by guidance.
  """
  objective = config.objective
  name = objective.name
  takes = inspect.signature(OBJECTIVES[name]).parameters
  visits = objective.draws if "draws" in takes else 0
  visits = visits or config.rollout.visited or config.rollout.window
  each = CALLS.get(name, 1)
  if name == "reward_chain":
    each = objective.gradient_steps
  elif name == "contrastive_fm":
    each = 2 + objective.others
  anchor, knows_reference = config.anchor.name, name in ("dpo", "d3po")
  asks = anchor in VIEW_ANCHORS or not knows_reference
  if config.train.anchor_weight and asks and anchor not in WEIGHT_ANCHORS:
    each += 1
  return rows * visits * each * (1 if config.rollout.guidance == 1 else 2)
