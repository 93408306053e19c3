"""Slot entries from config fields: looked up, checked, their settings bound."""

import functools
import inspect
import itertools
import types

import numpy as np

from spatialrl.flow.schedules import SCHEDULES
from spatialrl.flow.transition import LOG_PROBS, TRANSITIONS
from spatialrl.rewards.aggregate import AGGREGATORS
from spatialrl.rewards.refresh import REFRESHES
from spatialrl.rl.advantage import ADVANTAGES
from spatialrl.rl.anchors import ANCHORS
from spatialrl.rl.credit import CREDITS
from spatialrl.rl.ema import BEHAVIOURS
from spatialrl.rl.objectives import DENSITY, OBJECTIVES, PREPARE
from spatialrl.rl.select import SELECTORS


def bind(table, config, field):
  """Returns a slot entry with its settings bound.

  Args:
    table: dict of the slot's entries, name -> function.
    config: ConfigDict with `name` and the keyword-only arguments of that
      entry; those of the slot's other entries may stand beside them, so that
      `--config.SLOT.name=...` alone can switch.
    field: name of the config field, for messages.

  Raises:
    ValueError: for an unknown entry, a setting that no entry of the slot has,
      or a missing one.
  """
  name = config.name
  if name not in table:
    raise ValueError(
        f"{field}.name is {name!r}; allowed are {sorted(table)}."
    )
  wanted = _settings(table[name])
  known = {key for entry in table.values() for key in _settings(entry)}
  for key in config:
    if key != "name" and key not in known:
      raise ValueError(
          f"{field}.{key} is no setting of this slot; allowed are"
          f" {sorted(known)}."
      )
  for key, parameter in wanted.items():
    if key not in config and parameter.default is parameter.empty:
      raise ValueError(f"{field}.{key} is missing; {name!r} needs it.")
  bound = {key: config[key] for key in wanted if key in config}
  return functools.partial(table[name], **bound)


def bind_all(config):
  """Every slot of an `online` run, looked up and bound.

  Raises:
    ValueError: see `bind`.
  """
  bound = types.SimpleNamespace(log_prob=LOG_PROBS[config.log_prob])
  for name, table in (
      ("transition", TRANSITIONS),
      ("aggregate", AGGREGATORS),
      ("select", SELECTORS),
      ("advantage", ADVANTAGES),
      ("credit", CREDITS),
      ("objective", OBJECTIVES),
      ("anchor", ANCHORS),
      ("schedule", SCHEDULES),
      ("behaviour", BEHAVIOURS),
      ("refresh", REFRESHES),
  ):
    setattr(bound, name, bind(table, config[name], name))
  # Asks the transition, which refuses settings out of its range.
  stds = _stds(bound, config.rollout)
  asked = inspect.signature(CREDITS[config.credit.name]).parameters
  if "mean_std" in asked and stds:
    mean = sum(stds) / len(stds)
    bound.credit = functools.partial(bound.credit, mean_std=mean)
  name, settings = config.objective.name, bound.objective.keywords
  bound.prepare = None
  if name in PREPARE:
    bound.prepare = functools.partial(PREPARE[name], **settings)
  if name not in DENSITY:
    bound.log_prob = None
  return bound


def _stds(bound, rollout):
  """Std of every transition that the window may cover: list of floats."""
  first, end = rollout.window_range
  t = np.asarray(bound.schedule(rollout.steps), np.float32)[first : end + 1]
  zero = np.zeros((1, 1, 1, 1), np.float32)
  return [
      float(bound.transition(zero, zero, now, then)[1])
      for now, then in itertools.pairwise(t)
  ]


def _settings(function):
  """Keyword-only parameters of a function."""
  parameters = inspect.signature(function).parameters
  return {k: p for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
