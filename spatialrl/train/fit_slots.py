"""Slots that do not fit together, refused before anything is loaded."""

import inspect

import jax

from spatialrl.rewards import refresh
from spatialrl.rewards.judges import COMPARING, LEARNING, SMOOTH
from spatialrl.rl.anchors import PATH_ANCHORS, WEIGHT_ANCHORS
from spatialrl.rl.objectives import (
    DENSITY,
    DIFFERENTIABLE,
    GAUSSIAN,
    OBJECTIVES,
    PAIRED,
    WEIGHTED,
)

WINDOW_MOVES = ("random", "moving", "backward")


def check(config):
  """Raises ValueError naming the two slots that disagree.

  Args:
    config: of an `online` run; every slot's own settings are checked already.
  """
  r, objective = config.rollout, config.objective.name
  if r.window_moves not in WINDOW_MOVES:
    raise ValueError(
        f"rollout.window_moves is {r.window_moves!r}; allowed are"
        f" {WINDOW_MOVES}."
    )
  if r.window_every < 1:
    raise ValueError(
        f"rollout.window_every is {r.window_every}; it must be at least 1."
    )
  if not 0 <= r.visited <= r.window:
    raise ValueError(
        f"rollout.visited is {r.visited}; allowed are 0 (all) to"
        f" {r.window}, the steps of rollout.window."
    )
  forward = "draws" in inspect.signature(OBJECTIVES[objective]).parameters
  _refuse(
      not forward and not r.window,
      f"objective.name is {objective!r} and rollout.window 0: there is no"
      " step to learn from.",
  )
  _refuse(
      config.anchor.name in PATH_ANCHORS and objective not in DENSITY,
      f"anchor.name is {config.anchor.name!r} and objective.name"
      f" {objective!r}: that anchor compares transitions, which this objective"
      " does not visit; use velocity_mse.",
  )
  _refuse(
      config.anchor.name in WEIGHT_ANCHORS
      and bool(config.lora.rank or config.lora.get("soft_tokens", 0)),
      f"anchor.name is {config.anchor.name!r} and lora.rank"
      f" {config.lora.rank}, soft_tokens {config.lora.get('soft_tokens', 0)}:"
      " adapters have no start to stay near; set both 0.",
  )
  noisy = r.window > 0 or r.last_step == "noise"
  _refuse(
      objective == "nft" and noisy and config.transition.name != "ode",
      f"objective.name is 'nft' and rollout.window {r.window}, last_step"
      f" {r.last_step!r} with transition {config.transition.name!r}: it learns"
      " from finished images of the ODE; set rollout.window 0.",
  )
  _refuse(
      config.log_prob == "residual" and objective in GAUSSIAN,
      f"log_prob is 'residual' and objective.name {objective!r}: its ratio is"
      " that of Gaussian densities; use gaussian.",
  )
  _refuse(
      objective in PAIRED and config.train.updates != 1,
      f"objective.name is {objective!r} and train.updates"
      f" {config.train.updates}: images are compared within one optimizer step;"
      " set it to 1.",
  )
  _refuse(
      objective in PAIRED and config.train.microbatch > 0,
      f"objective.name is {objective!r} and train.microbatch"
      f" {config.train.microbatch}: images are compared within one gradient;"
      " set it to 0.",
  )
  _refuse(
      config.credit.name == "attention_map" and not r.attention_blocks,
      "credit.name is 'attention_map' and rollout.attention_blocks is empty:"
      " name the blocks whose attention is read.",
  )
  _refuse(
      config.credit.name in ("reweight", "attention_map", "judge_map")
      and objective not in WEIGHTED,
      f"credit.name is {config.credit.name!r} and objective.name"
      f" {objective!r}: that objective reads no weights.",
  )
  _refuse(
      config.credit.name in ("reweight", "attention_map") and not r.window,
      f"credit.name is {config.credit.name!r} and rollout.window 0: there is no"
      " step to weigh.",
  )
  _check_judges(config)
  _refuse(
      (config.select.name == "pareto_front")
      != (config.aggregate.name == "vector"),
      f"select.name is {config.select.name!r} and aggregate.name"
      f" {config.aggregate.name!r}: pareto_front and vector need each other.",
  )
  _refuse(
      config.select.name == "branch_extremes" and not r.shared_noise,
      "select.name is 'branch_extremes' and rollout.shared_noise is False:"
      " without shared noise there are no branches.",
  )
  splits = tuple(r.splits)
  _refuse(
      bool(splits)
      and (
          len(set(splits)) < len(splits)
          or not set(splits) <= set(range(r.window))
          or r.group % 2 ** len(splits) > 0
      ),
      f"rollout.splits is {splits}; allowed are distinct steps from 0 to"
      f" {r.window - 1}, so many that 2 to their number divides rollout.group"
      f" {r.group}.",
  )
  _refuse(
      bool(splits) and not r.shared_noise,
      f"rollout.splits is {splits} and rollout.shared_noise False: a tree needs"
      " one root; set shared_noise True.",
  )
  _refuse(
      config.advantage.name == "branch_depth"
      and (
          not splits
          or tuple(config.advantage.splits) != splits
          or config.advantage.window != r.window
      ),
      "advantage.name is 'branch_depth' with splits"
      f" {tuple(config.advantage.get('splits', ()))} and rollout.splits"
      f" {splits}, window {r.window}: make them equal, and not empty.",
  )
  for name, judge in config.rewards.items():
    _refuse(
        "group" in judge and judge.group != r.group,
        f"rewards.{name}.group is {judge.get('group')} and rollout.group"
        f" {r.group}: pairs are compared within a group; make them equal.",
    )
  if objective == "reward_chain":
    steps = config.objective.gradient_steps
    _refuse(
        not 1 <= steps <= r.window,
        f"objective.gradient_steps is {steps}; allowed are 1 to {r.window},"
        " the steps of rollout.window.",
    )
    _refuse(
        config.transition.name != "ode"
        or tuple(r.window_range) != (r.steps - r.window, r.steps),
        "objective.name is 'reward_chain' and the rollout is no ODE whose"
        f" window ends at t = 0; set transition.name 'ode' and"
        f" rollout.window_range ({r.steps - r.window}, {r.steps}).",
    )
  _refuse(
      (objective == "patch_fm") != (config.credit.name == "patch_quality"),
      f"objective.name is {objective!r} and credit.name"
      f" {config.credit.name!r}: patch_fm and patch_quality need each other.",
  )
  _refuse(
      config.credit.name == "patch_quality"
      and config.credit.judge not in COMPARING,
      f"credit.judge is {config.credit.get('judge')!r} and credit.name"
      f" 'patch_quality': it needs a judge among {COMPARING}.",
  )
  _refuse(
      objective == "contrastive_fm"
      and not 0 <= config.objective.others < config.prompts.per_step,
      f"objective.others is {config.objective.get('others')}; allowed are 0 to"
      f" {config.prompts.per_step - 1}, the other prompts of prompts.per_step.",
  )
  _refuse(
      objective == "contrastive_fm" and config.select.name != "all",
      f"objective.name is 'contrastive_fm' and select.name"
      f" {config.select.name!r}: it tells whole groups apart; use all.",
  )
  tokens = config.lora.get("soft_tokens", 0)
  _refuse(
      tokens < 0 or bool(tokens and config.lora.rank),
      f"lora.soft_tokens is {tokens} and lora.rank {config.lora.rank}: train"
      " one of the two, and 0 or more tokens.",
  )
  _check_refresh(config)
  if objective in DIFFERENTIABLE:
    _refuse(
        config.aggregate.name != "weighted_sum",
        f"objective.name is {objective!r} and aggregate.name"
        f" {config.aggregate.name!r}: the gradient needs weighted_sum.",
    )
    blind = [
        n for n, w in config.aggregate.weights.items()
        if w and n not in SMOOTH
    ]
    _refuse(
        bool(blind),
        f"objective.name is {objective!r} and aggregate.weights names {blind}:"
        f" the gradient needs judges among {SMOOTH}.",
    )
    # The judge's weights are constants of the program, which must be local.
    _refuse(
        jax.process_count() > 1,
        f"objective.name is {objective!r} and there are {jax.process_count()}"
        " processes: the gradient of a reward needs a single one.",
    )


def _check_judges(config):
  """Refuses an aggregate that does not fit the judges."""
  judges, aggregate = set(config.rewards), config.aggregate
  weights = dict(aggregate.weights)
  _refuse(
      set(weights) != judges,
      f"aggregate.weights names {sorted(weights)} and rewards"
      f" {sorted(judges)}; give each judge one weight, 0 to report it only.",
  )
  caps = sorted(aggregate.get("caps") or {})
  _refuse(
      not set(caps) <= judges,
      f"aggregate.caps names {caps}; allowed are {sorted(judges)}.",
  )
  counting = sorted(name for name, weight in weights.items() if weight)
  _refuse(
      aggregate.name == "win_rate" and counting != ["pairwise"],
      f"aggregate.name is 'win_rate' and aggregate.weights {weights}: a weight"
      " is for the judge of pairs, 'pairwise', and 0 for the others.",
  )


def _check_refresh(config):
  """Refuses judges that cannot learn, or learn from no one."""
  name, learning = config.refresh.name, refresh.learners(config)
  for judge in learning:
    _refuse(
        judge not in config.rewards or judge not in LEARNING,
        f"refresh.name is {name!r} and lets {judge!r} learn; allowed are the"
        f" judges {sorted(set(LEARNING) & set(config.rewards))} of rewards.",
    )
  _refuse(
      "adversarial" in config.rewards and name != "adversarial",
      f"rewards has 'adversarial' and refresh.name is {name!r}: it starts"
      " untrained; set refresh.name 'adversarial'.",
  )
  if name == "fixed":
    return
  for field in ("every", "steps"):
    _refuse(
        config.refresh[field] < 1,
        f"refresh.{field} is {config.refresh[field]}; it must be at least 1.",
    )
  frozen = set(config.rewards) - set(learning) - set(COMPARING)
  for judge, expert in config.refresh.get("experts", {}).items():
    _refuse(
        expert not in frozen | {refresh.TRUSTED},
        f"refresh.experts.{judge} is {expert!r}; allowed are"
        f" {sorted(frozen | {refresh.TRUSTED})}.",
    )


def _refuse(wrong, message):
  if wrong:
    raise ValueError(message)
