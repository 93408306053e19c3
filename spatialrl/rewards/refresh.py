"""Rewards that learn during a run: whose weights, when, from which images.

An entry is the loss of one judge that learns, on a gallery of the policy's
images and a trusted one of each prompt; `Refresh` takes the steps. What a judge
has learned is part of the training state, so that a run resumes with it.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from spatialrl.rl import pairwise

TRUSTED = "trusted"  # the expert for whom trusted images are the better ones


def iterative_reward(
  own, trusted, rank, group, *, experts, every, steps, learning_rate
):
  r"""IterComp's outer round: heads fit the ranking of a gallery.

  $-\log\sigma(s_w - s_l)$ over all ranked pairs of a prompt's gallery
  (arXiv:2410.07171, public code). There the gallery holds images of several
  models and human experts rank it; here the policy's newest images and renders,
  ranked by a frozen judge.

  Args:
    own: records.Signals of the policy's images, under the judge's weights.
    trusted: records.Signals of the trusted images.
    rank: f32[2 B], what the expert says of the own and the trusted images.
    group: i32[B], prompt of each image.
    experts: dict from each judge that learns to the judge that ranks for it, or
      to "trusted".
    every: iterations between two rounds.
    steps: optimizer steps of a round.
    learning_rate: of Adam.

  Returns:
    (loss f32[], share of the pairs that are ordered rightly f32[]).
  """
  del experts, every, steps, learning_rate
  score = jnp.concatenate([own.scalar, trusted.scalar])
  group = jnp.concatenate([group, group])
  # What the expert failed to score is no worse than the others.
  wins = pairwise.pairs(rank, group, rank != -jnp.inf)
  loss, accuracy = pairwise.pair_loss(score, wins, 1, beta=1.0)
  return loss.sum(), accuracy


def adversarial(
  own, trusted, rank, group, *, every, steps, learning_rate, patch_weight
):
  r"""Adv-GRPO (arXiv:2511.20256): a hinge between trusted and own images.

  $\frac12 E[\max(0, 1 - D(x^{trust})) + \max(0, 1 + D(x))]$, and
  `patch_weight` times the same on patches (public code: 0.3, on 64 random ones;
  here on all).

  Args:
    own: records.Signals of the policy's images; the hinge takes `scalar` as D
      of the whole and `map` as D of the patches.
    trusted: records.Signals of the trusted images.
    rank: unused.
    group: unused.
    every: iterations between two rounds.
    steps: optimizer steps of a round; 9 in the public code.
    learning_rate: of Adam.
    patch_weight: of the patches' hinge.

  Returns:
    (loss f32[], share of images on their side of 0 f32[]).
  """
  del rank, group, every, steps, learning_rate

  def hinge(real, fake):
    return 0.5 * jnp.mean(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))

  loss = hinge(trusted.scalar, own.scalar)
  loss = loss + patch_weight * hinge(trusted.map, own.map)
  right = [trusted.scalar > 0, own.scalar < 0]
  return loss, jnp.mean(jnp.concatenate(right).astype(jnp.float32))


def fixed(own, trusted, rank, group):
  """Nothing learns; never called."""


class Refresh:
  """Teaches the judges of a run; their weights come and go as arguments."""

  def __init__(self, config, loss, judges):
    """Compiles nothing yet.

    Args:
      config: of an `online` run, field `refresh`.
      loss: its entry of REFRESHES with its settings bound.
      judges: dict from name to judge.
    """
    self._config, self._loss, self._judges = config.refresh, loss, judges
    self.learners = learners(config)
    self._programs = {
      name: jax.jit(functools.partial(self._teach, judges[name]))
      for name in self.learners
    }
    if self.learners:
      self._optimizer = optax.adam(config.refresh.learning_rate)

  def init(self):
    """Where the judges start: {name: {"weights", "opt_state"}}."""
    start = {}
    for name in self.learners:
      weights = jax.tree.map(jnp.asarray, self._judges[name].weights)
      start[name] = {
        "weights": weights, "opt_state": self._optimizer.init(weights)
      }
    return start

  def due(self, step):
    """Whether judges learn in iteration `step`."""
    return bool(self.learners) and (step + 1) % self._config.every == 0

  def __call__(self, learned, prompts, group, images, trusted, signals):
    """One round, before those who learn score the images.

    Args:
      learned: as `init` gives.
      prompts: list of B str.
      group: i32[B], their index.
      images: f32[B, S, S, 3] of the policy.
      trusted: f32[B, S, S, 3], one of each prompt.
      signals: dict of records.Signals of the images, by the other judges.

    Returns:
      (learned, dict of f32[]: by judge the loss and the accuracy before the
      first step, and the loss after the last).
    """
    learned, metrics = dict(learned), {}
    for name in self.learners:
      rank = self._rank(name, prompts, trusted, signals)
      learned[name], losses, accuracy = self._programs[name](
        learned[name], self._judges[name].encode(prompts), group, images,
        trusted, rank,
      )
      metrics |= {
        f"refresh_{name}_loss": losses[0],
        f"refresh_{name}_loss_after": losses[-1],
        f"refresh_{name}_accuracy": accuracy,
      }
    return learned, metrics

  def _rank(self, name, prompts, trusted, signals):
    expert = self._config.get("experts", {}).get(name, TRUSTED)
    rows = len(prompts)
    if expert == TRUSTED:
      return jnp.arange(2 * rows) // rows * 1.0
    there = self._judges[expert](trusted, prompts).scalar
    return jnp.concatenate([signals[expert].scalar, there])

  def _teach(self, judge, learned, text, group, images, trusted, rank):
    # The backbone is frozen, so all steps of a round share its features.
    own, there = judge.features(images, *text), judge.features(trusted, *text)

    def loss(weights):
      return self._loss(
        judge.read(weights, own), judge.read(weights, there), rank, group
      )

    def step(learned, _):
      weights, opt_state = learned["weights"], learned["opt_state"]
      (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(weights)
      moves, opt_state = self._optimizer.update(grads, opt_state)
      weights = optax.apply_updates(weights, moves)
      learned = {"weights": weights, "opt_state": opt_state}
      return learned, (value, accuracy)

    learned, (losses, accuracy) = jax.lax.scan(
      step, learned, None, length=self._config.steps
    )
    return learned, losses, accuracy[0]

  def compilations(self):
    """Programs compiled so far, by judge."""
    return {
      f"refresh_{name}": program._cache_size()
      for name, program in self._programs.items()
    }


def learners(config):
  """Names of the judges that learn in an `online` run."""
  return {
    "fixed": (),
    "iterative_reward": tuple(sorted(config.refresh.get("experts", {}))),
    "adversarial": ("adversarial",),
  }[config.refresh.name]


REFRESHES = {
  "fixed": fixed,
  "iterative_reward": iterative_reward,
  "adversarial": adversarial,
}
