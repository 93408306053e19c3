"""Checks that need a short run of a method's config, minutes of one core."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checks.learning import train
from experiments.checks.world import GROUP, SEED, Found, World, few, judge
from spatialrl.data import scenes, tokenizers
from spatialrl.evals import relations
from spatialrl.flow import transition as transitions
from spatialrl.rl import forward
from spatialrl.scenes.render import to_float

_DRAWS = 8  # noisy copies of an image that an error is averaged over


def soft_tokens(world):
  """SoftREPA: do soft tokens tell an image's prompt from its contradiction?

  30 iterations of 32 renders of training prompts. Retrieval: how often the
  error of a render is lower under its prompt than under the prompt flipped;
  `all_relations`: of images by the ODE from the same noise; both on other
  prompts. The control learns from prompts of other images alone, where the
  method has the flipped prompt among them.
  """
  world = World(48, "soft_repa")
  runs = {"base": None}
  for name, trusted in (
      ("hard negatives", None), ("control: random negatives", _at_random)
  ):
    # Rollouts are only reported on, so two steps will do.
    _, base, runs[name] = train(
        "soft_repa", 30, {"prompts.per_step": 4, "rollout.steps": 2},
        trusted=trusted,
    )
  rows = [
      {"tokens": name} | _with_tokens(world, tokens)
      for name, tokens in runs.items()
  ]
  share = _size(runs["hard negatives"]) / _size(base["mmdit"])
  plain, hard, random = rows
  hard["trained_share"] = random["trained_share"] = share
  gain = [r["all_relations"] - plain["all_relations"] for r in (hard, random)]
  return Found(
      rows, "under 1% trained; retrieval rises, all_relations by 0.03 and more"
      " than with random negatives",
      holds=share < 0.01 and hard["retrieval"] > plain["retrieval"]
      and gain[0] >= 0.03 and gain[0] > gain[1],
      control_fails=gain[1] < 0.03,
  )


def _at_random(step, prompts):
  """Renders, and for a contradiction the prompts of other images."""
  images, _ = scenes.renders(0, step, prompts, size=32)
  return images, prompts[2 * GROUP :] + prompts[: 2 * GROUP]


def _with_tokens(world, tokens):
  images, _ = world.rollout(transitions.ode, weights=tokens)
  shown, flipped = scenes.renders(
      SEED, 0, world.repeated, size=world.policy.size
  )
  latents = world.policy.to_latents(world.params, jnp.asarray(to_float(shown)))
  error = jax.jit(
      lambda cond, key: _denoising_error(world, tokens, latents, cond, key)
  )
  keys = jax.random.split(jax.random.key(SEED), _DRAWS)
  own, other = (
      sum(error(cond, key) for key in keys)
      for cond in (world.cond, _encoded(world, flipped))
  )
  return {
      "retrieval": float((own < other).mean()),
      "all_relations": relations.summary(world.judged(images))["all_relations"],
  }


def _encoded(world, prompts):
  text = tokenizers.encode(
      tokenizers.load(), prompts, world.config.prompts.max_tokens
  )
  return world.policy.encode(world.params, *text)


def _denoising_error(world, weights, latents, cond, key):
  x_t, t, target = forward.noised(latents, key, 0, draws=1, time_shift=3.0)
  v = world.policy.velocity(world.params, weights, x_t, t, cond)
  return forward.flow_error(v, target).mean((1, 2))


def _size(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def step_rewards(world):
  """R0: do the pull to the start and the rewards on the way keep quality?

  60 iterations of 24 images; distance of the images to renders (squared MMD of
  what the reward's backbone sees, Gaussian kernel as wide as the median) over
  that of the base's. Intact is at most 1.1. Controls, each without one part:
  no pull, and the reward of the last prediction alone, before which nothing is
  noisy.
  """
  world = few(48)
  runs = {"base": None}
  for name, changed in (
      ("R0", {}),
      ("control: no pull to the start", {"train.anchor_weight": 0.0}),
      (
          "control: last prediction alone",
          {"rollout.window": 1, "rollout.window_range": (6, 7)},
      ),
  ):
    runs[name] = train("r0", 60, changed)[2]
  renders, _ = scenes.renders(SEED, 0, world.repeated, size=world.policy.size)
  fresh, _ = _seen(world, renders)
  rows = []
  for name, weights in runs.items():
    images, _ = world.rollout(transitions.ode, weights=weights)
    seen, score = _seen(world, images)
    summary = relations.summary(world.judged(images))
    rows.append({
        "trained": name, "mmd": _mmd(seen, fresh), "reward": score,
        "all_relations": summary["all_relations"],
        "object_recall": summary["object_recall"],
    })
  rows = [r | {"over_base": r["mmd"] / rows[0]["mmd"]} for r in rows]
  _, whole, *controls = (r["over_base"] for r in rows)
  return Found(
      rows, "at most 1.1 times the base's distance", whole <= 1.1,
      min(controls) > 1.1,
  )


def _seen(world, images):
  """(What the backbone says of images under their prompts, mean reward)."""
  entry = judge("relations", "image_doctor")
  shown = jnp.asarray(to_float(images))
  state, _ = jax.jit(entry.features)(shown, *entry.encode(world.repeated))
  return np.asarray(state), float(world.score(images).mean())


def _mmd(a, b):
  """Squared maximum mean discrepancy of f32[N, D] and f32[N, D], unbiased."""
  both = np.concatenate([a, b])
  squares = ((both[:, None] - both[None]) ** 2).sum(-1)
  kernel = np.exp(-squares / np.median(squares[squares > 0]))
  np.fill_diagonal(kernel, 0.0)
  n = len(a)
  within = (kernel[:n, :n].sum() + kernel[n:, n:].sum()) / (n * (n - 1))
  return float(within - 2 * kernel[:n, n:].mean())


CHECKS = (soft_tokens, step_rewards)
