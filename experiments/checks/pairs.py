"""Checks of objectives on pairs, which see an order of images and no score."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checks.learning import batch_of, descent, rows_of, visit
from experiments.checks.world import GROUP, SEED, Found, by_group, few
from spatialrl.flow import transition as transitions
from spatialrl.rl import advantage, forward, select
from spatialrl.train.configs import load_config
from spatialrl.train.slots import bind_all

_STEPS, _PAIRS = 40, 12  # optimizer steps, pairs of each


def dpo_pairs(world):
  """Diffusion-DPO: are its pairs right, and does it learn what they say?

  The best and the worst of each group by the learned score; label precision is
  the share of rightly ordered ones among those of which the oracle finds one
  right, one wrong. After 40 steps on the pairs of one half of the prompts, the
  gain in denoising error orders such images of the other half (pair accuracy).
  Control: a coin says which image of a pair is the better one.
  """
  images, path = world.smooth
  score = jnp.asarray(world.score(images))
  right = by_group([v.all_relations for _, _, v in world.judged(images)])
  kept = np.asarray(select.topk_bottomk(score, world.group, k=1))
  order = np.argsort(by_group(score), 1)[:, [0, -1]]
  ends = np.take_along_axis(right, order, 1)
  told = ends[:, 0] != ends[:, 1]
  precision = float(ends[told, 1].mean())
  half = len(world.prompts) // 2
  pairs = np.flatnonzero(kept).reshape(-1, 2)[:half]
  rng = np.random.default_rng(0)
  picked = [rng.choice(half, _PAIRS, replace=False) for _ in range(_STEPS)]
  rows = jnp.asarray(pairs[np.stack(picked)].reshape(_STEPS, -1))
  coin = jnp.asarray(np.repeat(rng.choice([-1.0, 1.0], 2 * half), GROUP))
  learn, gain_of = descent(world, "diffusion_dpo", _STEPS), _gain(world, path)
  table = []
  for name, reward in (("by score", score), ("control: coin", score * coin)):
    learned = learn(batch_of(world, path, reward), rows)
    gain = by_group(gain_of(learned))[half:]
    table.append(
        {"labels": name, "pair_accuracy": _accuracy(gain, right[half:])}
    )
  table[0] |= {"label_precision": precision, "pairs": int(told.sum())}
  return Found(
      table, "label precision 0.95, pair accuracy 0.6",
      holds=precision >= 0.95 and table[0]["pair_accuracy"] >= 0.6,
      control_fails=table[1]["pair_accuracy"] < 0.6,
  )


def _gain(world, path):
  """weights -> how much lower than the base's each image's error is, f32[N]."""

  def at(key, weights):
    x_t, t, target = forward.noised(
        path.final, key, 0, draws=1, time_shift=3.0, group=world.group
    )
    errors = [
        forward.flow_error(
            world.policy.velocity(world.params, w, x_t, t, world.cond), target
        ).mean((1, 2))
        for w in (None, weights)
    ]
    return errors[0] - errors[1]

  at, keys = jax.jit(at), jax.random.split(jax.random.key(SEED), 8)
  return lambda weights: sum(at(key, weights) for key in keys)


def _accuracy(value, right):
  """Share of (right, wrong) pairs of a prompt that a value orders so."""
  wins, count = 0, 0
  for one, ok in zip(value, np.asarray(right, bool), strict=True):
    gaps = one[ok][:, None] - one[~ok][None]
    wins, count = wins + (gaps > 0).sum(), count + gaps.size
  return float(wins / count)


def d3po_gain(world):
  """D3PO: do binary choices move the policy as true rewards do?

  The oracle's verdict is the reward. Of one half of the prompts, the first
  update of Flow-GRPO from the rewards and of D3PO from the best and the worst
  of each group, all brought to one length; of the other half, what a step
  along it gains in the reward, to first order, relative to Flow-GRPO's. Labels
  of pairs are flipped for 20% of the prompts; for one half of them (control).
  """
  world = few(64)
  config = load_config("configs/methods/d3po.py")
  slots = bind_all(config)
  images, path = world.rollout(
      slots.transition, shared=False, log_prob=slots.log_prob
  )
  right = jnp.asarray(
      [v.all_relations for _, _, v in world.judged(images)], jnp.float32
  )
  half = len(right) // 2
  learnt, measured = jnp.arange(half), jnp.arange(half, 2 * half)
  everything = jnp.ones(len(right), bool)
  plain, _ = advantage.group_mean_batch_std(
      right, everything, world.group, None, (), eps=1e-4
  )
  batch = batch_of(world, path, right, everything, plain)
  grpo = bind_all(load_config("configs/methods/flow_grpo.py"))
  directions = [_update(world, grpo)(rows_of(batch, learnt))]
  update = _update(world, slots)
  mixed = np.flatnonzero(np.ptp(by_group(right), 1))
  mixed, rng = mixed[mixed < half // GROUP], np.random.default_rng(0)
  for share in (0.0, 0.2, 0.5):
    sign = np.ones(len(world.prompts), np.float32)
    sign[rng.choice(mixed, round(share * len(mixed)), replace=False)] = -1
    seen = right * jnp.repeat(jnp.asarray(sign), GROUP)
    keep = select.topk_bottomk(seen, world.group, k=1)
    batch = batch_of(world, path, seen, keep)
    directions.append(update(rows_of(batch, learnt)))
  slope = _slope(world, slots, rows_of(batch, measured))
  centred = by_group(right[half:])
  centred = centred - centred.mean(1, keepdims=True)
  names = "true rewards", "choices", "20% flipped", "control: 50% flipped"
  rows = []
  for name, direction in zip(names, directions, strict=True):
    gains = (centred * by_group(slope(direction))).mean(1)
    rows.append({
        "update": name, "gain": float(gains.mean()),
        "standard_error": float(gains.std(ddof=1) / len(gains) ** 0.5),
    })
  unit = rows[0]["gain"]
  rows = [r | {"of_true": r["gain"] / unit} for r in rows]
  _, choices, flipped, control = (r["of_true"] for r in rows)
  return Found(
      rows, "0.8 of the gain of true rewards, and 0.5 with 20% flipped",
      holds=choices >= 0.8 and flipped >= 0.5,
      control_fails=control < 0.5 and unit > 2 * rows[0]["standard_error"],
  )


def _update(world, slots):
  """UpdateBatch -> the direction that lowers its loss, of length 1."""

  @jax.jit
  def descend(weights, batch):
    def step(total, k):
      gradient = jax.grad(
          lambda w: jnp.where(
              batch.keep, visit(world, slots, batch, w, k)[0], 0.0
          ).sum()
      )(weights)
      return jax.tree.map(jnp.subtract, total, gradient), None

    zero = jax.tree.map(jnp.zeros_like, weights)
    found, _ = jax.lax.scan(step, zero, batch.visits)
    size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(found)))
    return jax.tree.map(lambda leaf: leaf / size, found)

  return lambda batch: descend(world.params["mmdit"], batch)


def _slope(world, slots, batch):
  """direction -> how log-probs of the images' paths change along it, f32[N]."""
  path = batch.trajectory

  @jax.jit
  def along(weights, direction):
    def step(total, k):
      def log_prob(weights):
        new = transitions.evaluate_step(
            lambda x, t: world.policy.velocity(
                world.params, weights, x, t, batch.conditioning
            ),
            path.x[k], path.x[k + 1], path.t[k], path.t[k + 1],
            transition=slots.transition, log_prob=slots.log_prob,
        )
        return new.log_prob.mean((1, 2))

      return total + jax.jvp(log_prob, (weights,), (direction,))[1], None

    start = jnp.zeros(len(batch.keep))
    return jax.lax.scan(step, start, batch.visits)[0]

  return lambda direction: along(world.params["mmdit"], direction)


CHECKS = (dpo_pairs, d3po_gain)
