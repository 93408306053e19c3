"""Checks of objectives: their gradients on the packaged policy."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.checks.world import (
    SEED,
    STEPS,
    Found,
    cosine,
    few,
    judge,
)
from spatialrl.data import scenes, tokenizers
from spatialrl.flow import transition as transitions
from spatialrl.records import UpdateBatch
from spatialrl.rl import forward, objectives, pairwise, ppo
from spatialrl.rl.view import View

_SDE = functools.partial(transitions.flow_sde, noise_level=0.7)
_DENSITY = transitions.gaussian_log_prob


@functools.cache
def _noisy(world):
  """A rollout by Flow-GRPO's SDE and the learned reward of its images."""
  images, path = world.rollout(_SDE, log_prob=_DENSITY)
  return path, jnp.asarray(world.score(images))


def _moved(world, size=0.01):
  """The policy's weights, each moved by `size` of the spread of its tensor."""
  leaves, tree = jax.tree.flatten(world.params["mmdit"])
  keys = jax.random.split(jax.random.key(SEED), len(leaves))
  return jax.tree.unflatten(tree, [
      leaf + size * leaf.std() * jax.random.normal(key, leaf.shape)
      for key, leaf in zip(keys, leaves, strict=True)
  ])


def _step(world, path, weights, k):
  """records.Step of a policy at kept step k."""
  return transitions.evaluate_step(
      lambda x, t: world.velocity(weights, x, t[0]), path.x[k], path.x[k + 1],
      path.t[k], path.t[k + 1], transition=_SDE, log_prob=_DENSITY,
  )


def reinforce(world):
  """Flow-GRPO: is its gradient that of REINFORCE where the policy starts?

  Cosine of the two gradients in the velocities of all images, and the largest
  distance of a ratio from 1, at every step of a rollout scored again; the
  control is a policy that has moved by a hundredth.
  """
  world = few(8)
  path, reward = _noisy(world)
  advantage = (reward - reward.mean()) / reward.std()
  rows = []
  for name, weights in (
      ("at the rollout policy", None),
      ("control: moved", _moved(world)),
  ):
    cosines, off = [], []
    for k in range(STEPS - 1):
      v = _step(world, path, weights, k).velocity

      def scored(v, k=k):
        return transitions.evaluate_step(
            lambda x, t: v, path.x[k], path.x[k + 1], path.t[k], path.t[k + 1],
            transition=_SDE, log_prob=_DENSITY,
        )

      def clipped(v, k=k):
        loss, metrics = ppo.ppo(
            scored(v), None, path.log_prob[k], advantage,
            jnp.ones(path.log_prob[k].shape), clip_range=1e-4, adv_clip=5.0,
        )
        return loss.sum(), metrics["ratio"]

      gradient, ratio = jax.grad(clipped, has_aux=True)(v)
      plain = jax.grad(
          lambda v: -(advantage * scored(v).log_prob.mean((1, 2))).sum()
      )(v)
      cosines.append(cosine(gradient, plain))
      off.append(float(jnp.abs(ratio - 1).max()))
    rows.append(
        {"policy": name, "cosine": min(cosines), "ratio_off": max(off)}
    )
  return Found(
      rows, "cosine 1 to 1e-4, ratios 1 to 1e-5",
      holds=rows[0]["cosine"] > 1 - 1e-4 and rows[0]["ratio_off"] < 1e-5,
      control_fails=rows[1]["cosine"] < 1 - 1e-4,
  )


def centred_ratio(world):
  """GRPO-Guard: is the ratio centred, and as wide at every step?

  Log-ratios of a policy moved by a hundredth, over the images: the mean in
  standard deviations, worst step; and the widest step over the narrowest.
  Control: the plain ratio.
  """
  world = few(32)
  path, _ = _noisy(world)
  weights = _moved(world)
  plain, centred = [], []
  for k in range(STEPS - 1):
    new = _step(world, path, weights, k)
    log_ratio = jnp.mean(new.log_prob - path.log_prob[k], (1, 2))
    ones = jnp.ones(path.log_prob[k].shape)
    _, metrics = ppo.ppo_guard(
        new, path.mean[k], path.log_prob[k], jnp.ones(len(ones)), ones,
        clip_range=1.0, adv_clip=5.0, divide_by_interval=True,
    )
    plain.append(np.asarray(log_ratio))
    centred.append(np.log(np.asarray(metrics["ratio"], np.float64)))
  rows = []
  for name, values in (("centred", centred), ("control: plain", plain)):
    std = np.array([v.std() for v in values])
    mean = np.array([v.mean() for v in values])
    rows.append({
        "ratio": name, "mean_over_std": float(np.abs(mean / std).max()),
        "widest_over_narrowest": float(std.max() / std.min()),
    })
  guard, raw = rows
  return Found(
      rows, "mean within 0.25 of a deviation; evener than the plain ratio",
      holds=guard["mean_over_std"] < 0.25
      and guard["widest_over_narrowest"] < raw["widest_over_narrowest"],
      control_fails=raw["mean_over_std"] > 0.25,
  )


def nft_closed_form(world):
  """DiffusionNFT: is it signed regression with a tether to the old policy?

  Relative distance of the gradient in the velocities from the closed form, on
  images of an ODE, of which no likelihood is known; with the public code's
  adaptive weights (control) the identity is lost.
  """
  world = few(8)
  _, path = world.smooth
  reward = jnp.asarray(world.score(world.smooth[0]))
  advantage = (reward - reward.mean()) / reward.std()
  x0, mix = path.final, 0.3
  x_t, t, target = forward.noised(
      x0, jax.random.key(SEED), 0, draws=1, time_shift=3.0
  )

  def ask(weights):
    return world.policy.velocity(world.params, weights, x_t, t, world.cond)

  old, new = jax.jit(ask)(world.params["mmdit"]), jax.jit(ask)(_moved(world))
  t_ = t[:, None, None, None]
  share = (jnp.clip(advantage, -5, 5) / 10 + 0.5)[:, None, None, None]
  closed = (2 * share - 1) * (old - target) + mix * (new - old)
  closed = 10 * t_**2 * closed / closed[0].size
  rows = []
  for name, adaptive in (("as derived", False), ("control: adaptive", True)):
    gradient = jax.grad(
        lambda v, adaptive=adaptive: forward.nft(
            v, old, x0, x_t, t, advantage, mix=mix, adv_clip=5.0,
            adaptive=adaptive,
        ).sum()
    )(new)
    gap = jnp.linalg.norm((gradient - closed).ravel())
    rows.append({
        "weights": name,
        "relative_error": float(gap / jnp.linalg.norm(closed.ravel())),
    })
  return Found(
      rows, "below 1e-4", rows[0]["relative_error"] < 1e-4,
      rows[1]["relative_error"] > 1e-4,
  )


def preference_pairs(world):
  """Diffusion-DPO, D3PO: does a step in the pairs' direction generalise?

  A step against the gradient of the pairs of half of the prompts, of a
  hundredth of each tensor's spread; share of the pairs of the other half that
  it orders rightly. With 20% of the labels flipped, and with half (control).
  """
  world = few(32)
  rows = []
  for name, path, reward, statistic in (
      ("Diffusion-DPO", *_smooth(world), _denoising),
      ("D3PO", *_noisy(world), _likelihood),
  ):
    rng = np.random.default_rng(0)
    group = np.asarray(world.group)
    keep = jnp.ones(len(group), bool)
    wins = np.asarray(pairwise.pairs(reward, world.group, keep))
    train = wins * (group < 16)[:, None]
    test = wins * (group >= 16)[:, None]
    entry = jax.jit(functools.partial(statistic, world, path))
    slope = jax.jit(jax.grad(
        lambda w, pairs, entry=entry: pairwise.pair_loss(
            entry(w), pairs, beta=1.0
        )[0].mean()
    ))
    start = world.params["mmdit"]
    before = entry(start)
    row = {"method": name}
    for flipped in (0.0, 0.2, 0.5):
      turn = rng.uniform(size=train.shape) < flipped
      labels = np.where(turn & (train > 0), 0, train)
      labels = labels + (turn & (train > 0)).T
      gradient = slope(start, jnp.asarray(labels, jnp.float32))
      new = jax.tree.map(
          lambda w, g: w - 0.01 * w.std() * jnp.sign(g), start, gradient
      )
      gain = np.asarray(entry(new) - before)
      right = (gain[:, None] > gain[None]) * test
      row[f"flipped_{flipped:.1f}"] = float(right.sum() / test.sum())
    rows.append(row)
  return Found(
      rows, "more than 0.55 of held-out pairs, also with 20% flipped; half"
      " flipped: the control, within 0.05 of chance",
      holds=all(
          min(r["flipped_0.0"], r["flipped_0.2"]) > 0.55 for r in rows
      ),
      control_fails=all(abs(r["flipped_0.5"] - 0.5) < 0.05 for r in rows),
  )


def _smooth(world):
  images, path = world.smooth
  return path, jnp.asarray(world.score(images))


def _denoising(world, path, weights):
  """-e, the (negative) denoising error at one time a group."""
  x_t, t, target = forward.noised(
      path.final, jax.random.key(SEED), 0, draws=1, time_shift=3.0,
      group=world.group,
  )
  v = world.policy.velocity(world.params, weights, x_t, t, world.cond)
  return -forward.flow_error(v, target).mean((1, 2))


def _likelihood(world, path, weights):
  """Mean log-prob of the second step."""
  def ask(x, t):
    return world.policy.velocity(world.params, weights, x, t, world.cond)

  step = transitions.evaluate_step(
      ask, path.x[1], path.x[2], path.t[1], path.t[2], transition=_SDE,
      log_prob=_DENSITY,
  )
  return step.log_prob.mean((1, 2))


def rank_of_two(world):
  """RankDPO: is it weighted DPO where there are two images?

  Gap between the loss and DPO's with a factor a pair, the best and the worst of
  each group, rewards in [0, 1]; with all eight (control) no factor does it.
  """
  world = few(32)
  path, reward = _smooth(world)
  statistic = 100 * _denoising(world, path, world.params["mmdit"])
  reward = jnp.clip(reward / 30, 0, 1)
  rows = []
  for name, size in (("two images", 2), ("control: eight", 8)):
    order = np.argsort(np.asarray(reward).reshape(-1, 8), 1)
    places = (order + 8 * np.arange(len(order))[:, None])[:, :: 8 // size]
    if size == 2:
      places = (order + 8 * np.arange(len(order))[:, None])[:, [0, -1]]
    rows_of = places.ravel()
    u, r, g = statistic[rows_of], reward[rows_of], world.group[rows_of]
    keep = jnp.ones(len(rows_of), bool)
    weights = pairwise.rank_weights(r, g, keep)
    loss = pairwise.pair_loss(u, weights, beta=1.0)[0].mean()
    wins = pairwise.pairs(r, g, keep)
    factor = (jnp.exp2(r)[:, None] - jnp.exp2(r)[None]) * wins
    same = pairwise.pair_loss(u, factor, beta=1.0)[0].mean()
    rows.append({"group": name, "loss": float(loss), "gap": float(
        jnp.abs(loss - same)
    )})
  return Found(
      rows, "gap below 1e-5", rows[0]["gap"] < 1e-5, rows[1]["gap"] > 1e-5
  )


def prdp_gibbs(world):
  """PRDP: is the optimum of KL-regularised reward reached, and by what?

  A table of eight outcomes with the learned rewards of a prompt's images:
  largest distance of the log-policy from the Gibbs policy after descent on
  PRDP's loss, and on DPO's logistic (control), which knows only order.
  """
  world = few(32)
  reward = _smooth(world)[1][:8] / 10
  group, keep, beta = jnp.zeros(8, jnp.int32), jnp.ones(8, bool), 0.5
  gibbs = jax.nn.log_softmax(reward / beta)
  wins = pairwise.pairs(reward, group, keep)

  def square(u):
    return pairwise.prdp_coefficients(
        u, u, reward, group, keep, beta=beta, clip=100.0
    )[1].mean()

  def logistic(u):
    return pairwise.pair_loss(u, wins, beta=beta)[0].mean()

  rows = []
  for name, loss in (("PRDP", square), ("control: DPO", logistic)):
    def descend(logits, _, loss=loss):
      slope = jax.grad(lambda z: loss(jax.nn.log_softmax(z)))(logits)
      return logits - 0.5 * slope, None

    logits, _ = jax.lax.scan(descend, jnp.zeros(8), None, length=5000)
    gap = jnp.abs(jax.nn.log_softmax(logits) - gibbs).max()
    rows.append({"loss": name, "distance": float(gap)})
  return Found(
      rows, "below 1e-4", rows[0]["distance"] < 1e-4,
      rows[1]["distance"] > 1e-4,
  )


def reward_chain(world):
  """AlignProp: the chain's gradient, and what it keeps in memory.

  The derivative of the reward of 8 images along the gradient in the weights, by
  the chain of 4 steps and by central differences; and the temporary memory of
  the gradient through 2 and through 8 steps, recomputed or stored (control).
  """
  world = few(1)
  score = judge("spatial_score")
  path, _ = _smooth(world)
  batch = UpdateBatch(
      trajectory=path, conditioning=world.cond, ids=jnp.asarray(world.ids),
      reward=None, advantage=None, keep=jnp.ones(8, bool), weight=None,
      visits=jnp.arange(STEPS),
  )

  def loss(weights, steps):
    def ask(x, t):
      return world.policy.velocity(world.params, weights, x, t, world.cond)

    def reward(latents):
      images = world.policy.decode(world.params, latents)
      return score.score(images, world.ids, world.mask)

    view = View(
        {"new": ask}, batch, transition=transitions.ode, log_prob=None,
        judge=reward,
    )
    return objectives.reward_chain(
        view, 0, None, draws=1, gradient_steps=steps, random_start=False
    )[0].mean()

  start = world.params["mmdit"]
  gradient = jax.jit(jax.grad(functools.partial(loss, steps=4)))(start)
  norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
  value = jax.jit(functools.partial(loss, steps=4))
  h = 1e-2
  ahead, behind = (
      float(value(jax.tree.map(
          lambda w, g, s=s: w + s * g / norm, start, gradient
      )))
      for s in (h, -h)
  )
  error = abs((ahead - behind) / (2 * h) / float(norm) - 1)
  rows = [{"what": "relative error of the derivative", "value": error}]

  def memory(steps):
    compiled = jax.jit(
        jax.grad(functools.partial(loss, steps=steps))
    ).lower(start).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  growth = memory(8) / memory(2)
  with mock.patch.object(objectives.jax, "checkpoint", lambda f: f):
    stored = memory(8) / memory(2)
  rows += [
      {"what": "memory of 8 steps over 2, recomputed", "value": growth},
      {"what": "control: the same, stored", "value": stored},
  ]
  return Found(
      rows, "error below 1e-3 (float32: 1e-2); memory below twice",
      holds=error < 1e-2 and growth < 2, control_fails=stored > 2,
  )


def soft_tokens(world):
  """SoftREPA: do soft tokens learn to tell a prompt from its contradiction?

  Share of held-out renders whose denoising error is lower under their prompt
  than under it with the relation flipped, before and after 30 steps on renders
  of other prompts; control: prompts and flips exchanged by a coin.
  """
  world = few(32)
  policy = dataclasses.replace(world.policy, soft_tokens=4)
  images, flips = scenes.renders(SEED, 0, world.repeated, size=policy.size)
  latents = jax.jit(policy.to_latents)(
      world.params, jnp.asarray(images, jnp.float32) / 127.5 - 1
  )
  other = jax.jit(policy.encode)(
      world.params, *tokenizers.encode(tokenizers.load(), flips, 6)
  )
  half = len(images) // 2

  def errors(tokens, key, rows, texts):
    x_t, t, target = forward.noised(
        latents[rows], key, 0, draws=1, time_shift=3.0
    )
    return [
        forward.flow_error(
            policy.velocity(
                world.params, tokens, x_t, t,
                jax.tree.map(lambda a: a[rows], text),
            ), target,
        ).mean((1, 2))
        for text in texts
    ]

  test = jax.jit(lambda tokens, key: jnp.mean(
      jnp.less(*errors(tokens, key, slice(half, None), (world.cond, other)))
  ))

  @jax.jit
  def train(tokens, coin):
    def loss(tokens, key):
      own, flipped = errors(tokens, key, slice(half), (world.cond, other))
      ahead = jnp.where(coin, 1.0, -1.0) * (jnp.exp(-own) - jnp.exp(-flipped))
      return jnp.mean(jax.nn.softplus(-10 * ahead))

    optimizer = optax.adam(1e-2)

    def step(carry, key):
      tokens, state = carry
      moves, state = optimizer.update(jax.grad(loss)(tokens, key), state)
      return (optax.apply_updates(tokens, moves), state), None

    keys = jax.random.split(jax.random.key(1), 30)
    return jax.lax.scan(step, (tokens, optimizer.init(tokens)), keys)[0][0]

  start = policy.init_trainable(jax.random.key(0), world.params)
  coin = jax.random.bernoulli(jax.random.key(2), 0.5, (half,))
  rows = []
  for name, tokens in (
      ("no tokens", None), ("before", start),
      ("after", train(start, jnp.ones(half, bool))),
      ("control: by a coin", train(start, coin)),
  ):
    keys = jax.random.split(jax.random.key(3), 8)
    rows.append({"tokens": name, "retrieved": float(
        np.mean([test(tokens, key) for key in keys])
    )})
  share = start["tokens"].size / sum(
      leaf.size for leaf in jax.tree.leaves(world.params["mmdit"])
  )
  rows.append({"tokens": "share of the weights", "retrieved": share})
  base, _, after, control = (row["retrieved"] for row in rows[:4])
  error = 2 * (0.25 / (8 * (len(images) - half))) ** 0.5
  return Found(
      rows, "rises by two standard errors with under 1% of the weights",
      holds=after - base > error and share < 0.01,
      control_fails=control - base <= error,
  )


CHECKS = (
    reinforce, centred_ratio, nft_closed_form, preference_pairs, rank_of_two,
    prdp_gibbs, reward_chain, soft_tokens,
)
