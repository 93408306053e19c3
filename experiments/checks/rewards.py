"""Checks of aggregates, selectors and advantages."""

import functools

import jax.numpy as jnp
import numpy as np

from experiments.checks.world import (
    GROUP,
    SEED,
    Found,
    World,
    by_group,
    few,
    judge,
    to_float,
)
from spatialrl.data import scenes
from spatialrl.flow import transition as transitions
from spatialrl.records import Signals
from spatialrl.reflect import scenes as pair_scenes
from spatialrl.rewards import aggregate
from spatialrl.rl import advantage, select
from spatialrl.scenes import grammar, layout, render

_CPS = functools.partial(transitions.cps, noise_level=0.4)


def pref_grpo_ties(world):
  """Pref-GRPO: what do groups of equally good images get as advantages?

  Every group is fresh renders of one prompt, all of them right.
  """
  rng = np.random.default_rng(0)
  graphs = [grammar.parse(p) for p in world.repeated]
  placed = [layout.place(rng, graph) for graph in graphs]
  images = render.render_batch(graphs, placed, world.policy.size)
  score = np.asarray(
      judge("spatial_score")(to_float(images), world.repeated).scalar
  )
  rows = []
  for name, margin in (
      ("win rate with ties", world.config.rewards.pairwise.tie_margin),
      ("control: win rate, forced choice", 0.0),
      ("control: the score itself", None),
  ):
    reward = jnp.asarray(score)
    if margin is not None:
      gap = by_group(score)[:, :, None] - by_group(score)[:, None]
      pair = 0.5 * (1 + np.sign(gap) * (np.abs(gap) > margin))
      reward = aggregate.win_rate(
          {"pairwise": Signals(pair=jnp.asarray(pair))},
          weights={"pairwise": 1.0},
      )
    size = jnp.abs(_advantage("group_z", reward, world.group)).mean()
    rows.append({"reward": name, "mean_absolute_advantage": float(size)})
  tie, *controls = (row["mean_absolute_advantage"] for row in rows)
  return Found(rows, "below 0.1", tie < 0.1, min(controls) > 0.5)


def _advantage(name, reward, group, keep=None, label=None, stats=()):
  keep = jnp.ones(len(reward), bool) if keep is None else keep
  settings = {"ema_task_std": {"decay": 0.99, "guard": 5.0}}.get(name, {})
  return advantage.ADVANTAGES[name](
      reward, keep, group, label, stats, **settings
  )[0]


@functools.cache
def _scored(world):
  """Learned scores f32[P, 16], two groups of each prompt, and the verdicts."""
  scores, verdicts = [], []
  for noise in (0.4, 0.8):
    transition = functools.partial(transitions.cps, noise_level=noise)
    images, _ = world.rollout(transition, shared=False)
    scores.append(by_group(world.score(images)))
    right = [v.all_relations for _, _, v in world.judged(images)]
    verdicts.append(by_group(np.float32(right)))
  return np.concatenate(scores, 1), np.concatenate(verdicts, 1)


def topk_balance(world):
  """SpatialScore: does top-k filtering balance the signs of advantages?

  Share of positive advantages on easy prompts (more than 0.6 of the images
  right) and hard ones (fewer than 0.4), groups of 16 and k = 4, by the oracle's
  verdict plus a thousandth of the learned score, which breaks ties.
  """
  score, right = _scored(few(32))
  reward = jnp.asarray((right + 0.001 * score).ravel())
  group = jnp.repeat(jnp.arange(len(score)), score.shape[1])
  share = right.mean(1)
  rows = []
  for name, keep in (
      ("top-k", select.topk_bottomk(reward, group, k=4)),
      ("control: all", jnp.ones(len(reward), bool)),
  ):
    value = _advantage("group_z", reward, group, keep)
    positive = np.where(np.asarray(keep), np.asarray(value) > 0, np.nan)
    positive = np.nanmean(positive.reshape(score.shape), 1)
    rows.append({
        "kept": name, "easy": float(positive[share > 0.6].mean()),
        "hard": float(positive[share < 0.4].mean()),
        "easy_prompts": int((share > 0.6).sum()),
        "hard_prompts": int((share < 0.4).sum()),
    })
  off = [max(abs(r["easy"] - 0.5), abs(r["hard"] - 0.5)) for r in rows]
  return Found(
      rows, "nearer to one half than with all images, on both",
      holds=all(
          abs(rows[0][n] - 0.5) < abs(rows[1][n] - 0.5)
          for n in ("easy", "hard")
      ),
      control_fails=off[1] > off[0],
  )


@functools.cache
def _two_rewards(world):
  """Relations f32[N] in (0, 1), and brightness by its rank, in [0, 1)."""
  images = to_float(world.rollout(_CPS)[0])
  signals = judge("relations", "image_doctor")(images, world.repeated)
  bright = np.asarray(images.mean((1, 2, 3)))
  rank = np.argsort(np.argsort(bright)) / len(bright)
  return np.asarray(signals.scalar), rank.astype(np.float32)


def log_taming(world):
  """PaCo-RL: does one reward of a hundred times the scale starve the other?

  Correlation of the advantage with each reward when relations count 100-fold
  beside brightness, by its rank, which has nothing to do with them; the control
  is the plain sum.
  """
  world = few(32)
  relations, brightness = _two_rewards(world)
  seen = {"relations": relations, "brightness": brightness}
  signals = {
      "relations": Signals(scalar=jnp.asarray(100 * seen["relations"])),
      "brightness": Signals(scalar=jnp.asarray(seen["brightness"])),
  }
  rows = []
  for name, entry in (
      ("log-tame", aggregate.log_tame),
      ("control: sum", aggregate.weighted_sum),
  ):
    reward = entry(signals, weights=dict.fromkeys(signals, 1.0))
    value = np.asarray(_advantage("group_z", reward, world.group))
    rows.append({"aggregate": name} | {
        kind: float(np.corrcoef(value, _centred(seen[kind]))[0, 1])
        for kind in signals
    })
  tame, plain = rows
  return Found(
      rows, "brightness correlates at least 0.1 more than with the sum,"
      " relations still do by 0.5",
      holds=tame["brightness"] >= plain["brightness"] + 0.1
      and tame["relations"] > 0.5,
      control_fails=abs(plain["brightness"]) < 0.5 * plain["relations"],
  )


def _centred(values):
  grouped = by_group(values)
  return (grouped - grouped.mean(1, keepdims=True)).ravel()


@functools.cache
def _two_tasks(world):
  """f32[P, G] each: verdicts on hard prompts, learned scores on plain ones."""
  half = len(world.prompts) // 2
  hard = World(told=[
      *pair_scenes.prompts(SEED + 1, half, relations=(2,), held_out=True),
      *scenes.prompts(SEED + 1, half, relations=(2,), held_out=True),
  ])
  judged = hard.judged(hard.rollout(_CPS, shared=False)[0])
  score = world.score(world.rollout(_CPS, shared=False)[0])
  return by_group(np.float32([v.all_relations for *_, v in judged])), by_group(
      score
  )


def _by_task(world):
  """(name, RMS advantage f32[2, P] of the groups of both tasks) of each."""
  reward = np.concatenate(_two_tasks(world))
  group = jnp.repeat(jnp.arange(len(reward)), GROUP)
  label = (group < len(world.prompts)).astype(jnp.int32)
  stats = advantage.initial_stats("ema_task_std", prompts=1, tasks=2)
  for name in ("ema_task_std", "group_z", "group_mean_batch_std"):
    value = _advantage(
        name, jnp.asarray(reward.ravel()), group, None, label, stats
    )
    yield name, np.sqrt(np.square(by_group(value)).mean(1)).reshape(2, -1)


def task_spreads(world):
  """EMA-GRPO: do a binary and a dense reward pull equally hard?

  One task has the oracle's verdict as reward, on prompts of two relations,
  half of them between two things and half among three, which the policy rarely
  gets right; the other the learned score, on prompts of one relation. Ratio of
  the root mean squares of their advantages. The control is the group z-score;
  the spread of the batch stands beside it, whose ratio is also that of no
  spread at all.
  """
  right = _two_tasks(world)[0]
  rows = []
  for name, size in _by_task(world):
    binary, dense = np.sqrt(np.square(size).mean(1))
    rows.append({
        "advantage": f"control: {name}" if name == "group_z" else name,
        "binary_over_dense": float(binary / dense),
        "images_right": float(right.mean()),
        "groups_with_both": float((np.ptp(right, 1) > 0).mean()),
    })
  inside = [0.5 <= row["binary_over_dense"] <= 2 for row in rows]
  return Found(
      rows, "within 0.5 and 2", holds=inside[0], control_fails=not inside[1]
  )


def group_weights(world):
  """EMA-GRPO: do the groups of a task share one scale?

  The rewards of `task_spreads`. What a unit of reward is worth as advantage in
  each group with a spread, the largest over the smallest of a task: the
  z-score (control) weighs groups with little spread most, which the paper calls
  imbalance within a task (arXiv:2512.03043, sec. 3.3). One spread for a task
  gives 1 but for groups that the guard catches.
  """
  spread = np.stack([rewards.std(1) for rewards in _two_tasks(world)])
  rows = []
  for name, size in _by_task(world):
    if name == "group_mean_batch_std":
      continue
    row = {"advantage": f"control: {name}" if name == "group_z" else name}
    for task, had, got in zip(("binary", "dense"), spread, size, strict=True):
      worth = got[had > 0] / had[had > 0]
      row[task] = float(worth.max() / worth.min())
    rows.append(row)
  even = [max(row["binary"], row["dense"]) <= 2 for row in rows]
  return Found(rows, "at most 2 in both tasks", even[0], not even[1])


def pareto_selection(world):
  """Parrot: does the front keep more of two conflicting rewards than a sum?

  Area that the kept images of a prompt dominate, of the rectangle of the group,
  for the front and for as many images by each of five fixed weighted sums.
  Rewards: relations, and darkness.
  """
  world = few(32)
  relations, brightness = _two_rewards(world)
  seen = np.stack([relations, -brightness], 1)
  grouped = seen.reshape(-1, GROUP, 2)
  low, high = grouped.min(1, keepdims=True), grouped.max(1, keepdims=True)
  unit = (grouped - low) / np.maximum(high - low, 1e-9)
  front = np.asarray(
      select.pareto_front(jnp.asarray(seen), world.group)
  ).reshape(-1, GROUP)
  rows = [{"kept": "front", "area": _areas(unit, front)}]
  for share in np.linspace(0, 1, 5):
    order = np.argsort(np.argsort(-(unit @ [share, 1 - share]), 1), 1)
    kept = order < front.sum(1, keepdims=True)
    rows.append({
        "kept": f"control: weight {share:.2f}", "area": _areas(unit, kept)
    })
  best = max(row["area"] for row in rows[1:])
  return Found(
      rows, "more than every sum", holds=rows[0]["area"] > best,
      control_fails=best < rows[0]["area"],
  )


def _areas(points, kept):
  """Mean area dominated by the kept points f[P, G, 2] of the unit square."""
  areas = []
  for group, mask in zip(points, kept, strict=True):
    area, top = 0.0, 0.0
    for x, y in sorted(group[mask].tolist(), reverse=True):
      area, top = area + x * max(y - top, 0.0), max(top, y)
    areas.append(area)
  return float(np.mean(areas))


CHECKS = (
    pref_grpo_ties, topk_balance, log_taming, task_spreads, group_weights,
    pareto_selection,
)
