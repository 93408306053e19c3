"""Checks of samplers and rollouts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checks.world import (
    GROUP,
    SEED,
    STEPS,
    Found,
    by_group,
    few,
)
from spatialrl.data import scenes
from spatialrl.evals import relations
from spatialrl.flow import rollout as rollouts
from spatialrl.flow import transition as transitions
from spatialrl.flow.schedules import SCHEDULES
from spatialrl.scenes import check
from spatialrl.scenes.render import to_float as to_signed
from spatialrl.train import draw, needs
from spatialrl.train.configs import load_config
from spatialrl.train.slots import bind_all

_APART = 0.1  # mean distance, as a share of the image, that counts as another
_SHARES, _WIDTH = jnp.array([0.7, 0.3]), 0.15  # of the known mixture


def cps_noise_level(world):
  """Flow-CPS: is the noise in a state what the schedule says?

  The state after each step, less its image part (1 - t') x0h, against t'.
  """
  world = few(16)
  rows = []
  for name, transition in (
      ("Flow-CPS", functools.partial(transitions.cps, noise_level=0.8)),
      (
          "control: Flow-GRPO's SDE",
          functools.partial(transitions.flow_sde, noise_level=0.8),
      ),
  ):
    _, path = world.rollout(transition)
    row = {"sampler": name}
    for k in range(STEPS - 1):
      t, t_next = path.t[k], path.t[k + 1]
      x0 = path.x[k] - t * world.velocity(None, path.x[k], t)
      noise = path.x[k + 1] - (1 - t_next) * x0
      row[f"step_{k}"] = float(noise.std() / t_next)
    rows.append(row)
  off = [max(abs(r[f"step_{k}"] - 1) for k in range(STEPS - 1)) for r in rows]
  return Found(
      rows, "share of the schedule's noise 1 within 0.1 at every step",
      holds=off[0] < 0.1, control_fails=off[1] > 0.1,
  )


def dance_marginals(world):
  """DanceGRPO: does its noise leave the marginals of the flow as they are?

  A known mixture, so that the velocity is exact: the latents of a render of a
  prompt (0.7) and of one of the prompt flipped, a width of 0.15 around both.
  Share of 2048 samples nearer to the first and their distance from the nearer
  one, in widths, by the ODE and by the config's SDE from the same noise; the
  control draws the same noise without the drift that makes up for it.
  """
  dance = bind_all(load_config("configs/methods/dance_grpo.py")).transition
  centres = _two_layouts(world)
  noise = jax.random.normal(jax.random.key(SEED), (2048, *centres.shape[1:]))

  def uncorrected(v, x, t, t_next):
    return transitions.ode(v, x, t, t_next)[0], dance(v, x, t, t_next)[1]

  rows = []
  for name, transition in (
      ("ODE", transitions.ode), ("DanceGRPO's SDE", dance),
      ("control: no drift for the noise", uncorrected),
  ):
    for steps in (10, 50, 200):
      path = rollouts.rollout(
          lambda x, t: _mixture_velocity(centres, x, t[0]), noise,
          SCHEDULES["shifted"](steps, shift=3.0), jax.random.key(SEED),
          jnp.zeros(len(noise), jnp.int32), transition=transition,
          log_prob=None, window_start=0, window=steps - 1, last_step="ode",
      )
      gap = jnp.sqrt(_squares(path.final, centres) / centres[0].size)
      rows.append({
          "sampler": name, "steps": steps,
          "share": float((gap[:, 0] < gap[:, 1]).mean()),
          "widths": float(gap.min(1).mean() / _WIDTH),
      })
  off = {
      (r["sampler"], r["steps"]): (
          abs(r["share"] - flow["share"]),
          abs(r["widths"] / flow["widths"] - 1),
      )
      for r, flow in zip(rows, rows[:3] * 3, strict=True)
  }
  many = [off[rows[i]["sampler"], 200] for i in (3, 6)]
  return Found(
      rows, "at 200 steps the ODE's share within 0.02, its width within 5%",
      holds=many[0][0] < 0.02 and many[0][1] < 0.05,
      control_fails=many[1][0] > 0.02 or many[1][1] > 0.05,
  )


def _two_layouts(world):
  """Latents f32[2, h, w, C] of a prompt's render and of its contradiction's."""
  told = world.prompts[:1]
  shown, flipped = scenes.renders(SEED, 0, told, size=world.policy.size)
  other, _ = scenes.renders(SEED, 0, flipped, size=world.policy.size)
  images = to_signed(np.concatenate([shown, other]))
  return world.policy.to_latents(world.params, jnp.asarray(images))


def _squares(x, centres):
  """Squared distances f32[N, 2]."""
  return jnp.sum((x[:, None] - centres) ** 2, (2, 3, 4))


def _mixture_velocity(centres, x, t):
  """E[eps - x0 | x_t = x] under the mixture 0.7, 0.3 of width _WIDTH."""
  variance = (1 - t) ** 2 * _WIDTH**2 + t**2
  squares = _squares(x, (1 - t) * centres)
  share = jax.nn.softmax(jnp.log(_SHARES) - squares / (2 * variance))
  inward = (t - (1 - t) * _WIDTH**2) / variance
  away = x[:, None] - (1 - t) * centres
  return jnp.einsum("nj,njhwc->nhwc", share, inward * away - centres)


def shared_prefix(world):
  """B2-DiffuRL: is a branch's reward decided by the trained steps alone?

  Images of a prompt share their start and differ by the noise of one step:
  largest difference of a group before that step, and spread of the learned
  reward after it. With noise of their own (control) they differ from the start.
  """
  rows = _one_noisy_step(few(16))
  apart = rows[-1]["prefix_differs"]
  return Found(
      rows, "no difference to the last bit, yet a spread",
      holds=all(
          r["prefix_differs"] == 0 and r["reward_spread"] > 0 for r in rows[:-1]
      ),
      control_fails=apart > 0,
  )


def tempflow_weights(world):
  """TempFlow: do its weights follow what a step decides?

  Rank correlation of the weight of a step with the spread of the reward that
  noise in this step alone makes; of the control, weights that rise.
  """
  steps = _one_noisy_step(few(16))[:-1]
  spread = np.array([row["reward_spread"] for row in steps])
  weight = np.array([row["weight"] for row in steps])
  rows = [
      {"weights": name, "rank_correlation": _rank_correlation(w, spread)}
      for name, w in (
          ("its config's", weight), ("control: rising", np.arange(7.0))
      )
  ]
  return Found(
      rows, "at least 0.8", holds=rows[0]["rank_correlation"] >= 0.8,
      control_fails=rows[1]["rank_correlation"] < 0.8,
  )


@functools.cache
def _one_noisy_step(world):
  """A row a step of TempFlow's SDE, and one without a shared start."""
  slots = bind_all(load_config("configs/methods/tempflow.py"))
  rows = []
  for start, shared in (*((k, True) for k in range(STEPS - 1)), (3, False)):
    images, path = world.rollout(
        slots.transition, start=start, window=1, shared=shared
    )
    before = np.asarray(path.x[0]).reshape(-1, GROUP, path.x[0, 0].size)
    rows.append({
        "step": str(start) if shared else "control: own noise, 3",
        "weight": float(slots.credit(path, {})[0].mean()),
        "prefix_differs": float(np.ptp(before, 1).max()),
        "reward_spread": float(by_group(world.score(images)).std(1).mean()),
    })
  return rows


def _rank_correlation(a, b):
  ranks = [np.argsort(np.argsort(v)) for v in (a, b)]
  return float(np.corrcoef(*ranks)[0, 1])


def moving_windows(world):
  """Fast, MixGRPO: which steps are trained, at what price?

  700 iterations of each config on paper: the share of Flow-GRPO's update calls,
  the steps trained at any time, and where the window stands at the beginning
  and at the end.
  """
  del world
  key, rows = jax.random.key(0), []
  for name in ("flow_grpo", "flow_grpo_fast", "mix_grpo", "b2_diffurl"):
    config = load_config(f"configs/methods/{name}.py")
    config.select = {"name": "all"}
    config.train.anchor_weight = 0.0
    starts = [
        int(draw.window_start(config, key, step)) for step in range(0, 700, 7)
    ]
    width = config.rollout.window
    rows.append({
        "method": name if name != "flow_grpo" else "control: flow_grpo",
        "update_calls": needs.update_calls(config, 144) / (144 * 7),
        "steps_trained": len({s + i for s in starts for i in range(width)}),
        "first": starts[0], "last": starts[-1],
    })
  full, fast, mix, backward = rows
  return Found(
      rows, "3/7 of the calls; MixGRPO trains all 7 steps, Fast the first 4,"
      " B2-DiffuRL the last ones first",
      holds=all(abs(r["update_calls"] - 3 / 7) < 1e-6 for r in rows[1:])
      and (fast["steps_trained"], mix["steps_trained"]) == (4, 7)
      and backward["first"] > backward["last"],
      control_fails=full["update_calls"] > 0.5,
  )


def branch_credit(world):
  """BranchGRPO: does a branch tell what its leaves will be worth?

  Correlation over branches between the mean reward of half of a branch's leaves
  and of the other half, within a prompt; without a tree (control) the same
  images share nothing but their prompt and start.
  """
  world = few(32)
  sde = functools.partial(transitions.dance_sde, eta=0.6)
  rows = []
  for name, splits in (("tree", (0, 2, 4)), ("control: no tree", ())):
    images, _ = world.rollout(sde, splits=splits)
    leaves = by_group(world.score(images)).reshape(-1, 2, 4)
    leaves = leaves - leaves.mean((1, 2), keepdims=True)
    halves = leaves[:, :, :2].mean(-1), leaves[:, :, 2:].mean(-1)
    # Half a branch against the other branch would be negative by the mean.
    agree = float(np.corrcoef(*(h.ravel() for h in halves))[0, 1])
    rows.append({"rollout": name, "correlation_of_halves": agree})
  tree, none = (row["correlation_of_halves"] for row in rows)
  return Found(
      rows, "above 0.3", holds=tree > 0.3, control_fails=none < 0.3
  )


def hicogen_noise(world):
  """HiCoGen: does early noise make layouts differ more, at equal budget?

  The budget is the sum of g^2 times the step; all images of a prompt share
  their start.
  """
  shapes = {
      "decaying (HiCoGen)": lambda t: 0.5 * (1 + jnp.cos(math.pi * (1 - t))),
      "constant (DanceGRPO)": jnp.ones_like,
      "rising (control)": lambda t: 0.5 * (1 + jnp.cos(math.pi * t)),
  }
  times = SCHEDULES["shifted"](STEPS, shift=3.0)[:STEPS]
  step = times[:-1] - times[1:]
  rows = []
  for name, shape in shapes.items():
    unit = np.asarray(shape(jnp.asarray(times[:-1])))
    eta = 0.5 / math.sqrt(np.sum(unit**2 * step))

    def transition(v, x, t, t_next, eta=eta, shape=shape):
      return transitions.sde(v, x, t, t_next, eta * shape(t))

    images, _ = world.rollout(transition)
    rows.append({"noise": name} | _layouts(world, images))
  share = [row["pairs_that_differ"] for row in rows]
  error = 2 * max(row["standard_error"] for row in rows)
  return Found(
      rows, "decaying over constant over rising by two standard errors",
      holds=share[0] - share[1] > error,
      control_fails=share[1] - share[2] > error,
  )


def _layouts(world, images):
  """How often two images of a prompt differ in layout, with standard error."""
  judged = world.judged(images)
  shares = []
  for start in range(0, len(images), GROUP):
    vectors = [
        check.layout_vector(graph, detections)
        for graph, detections, _ in judged[start : start + GROUP]
    ]
    vectors = np.array([v for v in vectors if v is not None])
    if len(vectors) > 1:
      gap = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1).mean(-1)
      pairs = gap[np.triu_indices(len(vectors), 1)]
      shares.append((pairs > _APART).mean())
  summary = relations.summary(judged)
  return {
      "pairs_that_differ": float(np.mean(shares)),
      "standard_error": float(np.std(shares, ddof=1) / len(shares) ** 0.5),
      "object_recall": summary["object_recall"],
      "all_relations": summary["all_relations"],
  }


CHECKS = (
    cps_noise_level, dance_marginals, shared_prefix, tempflow_weights,
    moving_windows, branch_credit, hicogen_noise,
)
