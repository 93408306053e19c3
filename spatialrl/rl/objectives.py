r"""What the update minimises; one entry a family, uniform to call.

An entry is called once for every visit of an optimizer step, as
`entry(view, k, key)`, and returns

  loss: f32[M] per image, the visit's part;
  metrics: dict of f32[M];
  anchored: function without arguments -> (records.Step of the policy being
    trained, the same of the reference), where an anchor may hold it.

Entries with a setting `draws` visit so many random times of the finished
images; the others visit the steps of the window, k being the index of one.
"""

import functools

import jax
import jax.numpy as jnp

from spatialrl.records import Step
from spatialrl.rl import forward, matching, pairwise, ppo


def _on_path(surrogate):
  """A policy gradient of one transition as an entry of the slot."""

  @functools.wraps(surrogate)
  def entry(view, k, key, **settings):
    del key
    batch, new = view.batch, view.step(k)
    old_log_prob = batch.trajectory.log_prob[k]
    loss, metrics = surrogate(
      new,
      batch.trajectory.mean[k],
      old_log_prob,
      view.advantage(k),
      batch.weight[k],
      **settings,
    )
    difference = jnp.abs(new.log_prob - old_log_prob).mean((1, 2))
    metrics |= {"log_prob_difference": difference}
    return loss, metrics, lambda: (new, view.step(k, "reference"))

  return entry


def dpo(view, k, key, *, draws, time_shift, beta, rank_weighted=False):
  r"""Diffusion-DPO over all pairs of a group, RankDPO with `rank_weighted`.

  $-\log\sigma(\beta/2\,(u_w - u_l))$, $u = -(e_\theta - e_{ref})$ the gain in
  denoising error over the reference, at the same noise and time for the images
  of a group (arXiv:2311.12908, in the form of flow matching). The anchor is
  inside the pair, so the anchor slot is `none`.

  Args:
    view: View.
    k: i32[], index of the draw.
    key: PRNG key of the optimizer step.
    draws: noisy copies of each image.
    time_shift: towards noise, see `forward.noised`.
    beta: weight of the reference; errors are means over dimensions.
    rank_weighted: weigh pairs as `pairwise.rank_weights` does.

  Returns:
    As the module says.
  """
  batch = view.batch
  path = batch.trajectory
  x_t, t, target = forward.noised(
    path.final, key, k, draws=draws, time_shift=time_shift, group=path.group
  )
  v = view.velocity(x_t, t)
  v_reference = view.velocity(x_t, t, "reference")
  error = forward.flow_error(v, target).mean((1, 2))
  statistic = forward.flow_error(v_reference, target).mean((1, 2)) - error
  weigh = pairwise.rank_weights if rank_weighted else pairwise.pairs
  weights = weigh(batch.reward, path.group, batch.keep)
  loss, accuracy = pairwise.pair_loss(
    statistic, weights, batch.keep.sum(), beta=beta / 2
  )
  metrics = {"pair_accuracy": jnp.full_like(loss, accuracy)}
  return loss, metrics, lambda: (Step(v), Step(v_reference))


def d3po(view, k, key, *, beta, clip_range):
  r"""D3PO (arXiv:2311.13231): DPO on every transition of a preferred path.

  $-\log\sigma(\beta(\log\rho_w - \log\rho_l))$ with $\rho$ the ratio to the
  frozen reference, clipped to 1 +- `clip_range`; log-probs are means over
  dimensions.

  Args:
    view: View.
    k: i32[], index of the window step.
    key: unused.
    beta: weight of the reference.
    clip_range: largest distance of a ratio from 1.

  Returns:
    As the module says.
  """
  del key
  batch = view.batch
  new, reference = view.step(k), view.step(k, "reference")
  log_ratio = jnp.mean(new.log_prob - reference.log_prob, (1, 2))
  low, high = jnp.log1p(-clip_range), jnp.log1p(clip_range)
  held = jnp.clip(log_ratio, low, high)
  weights = pairwise.pairs(batch.reward, batch.trajectory.group, batch.keep)
  loss, accuracy = pairwise.pair_loss(
    held, weights, batch.keep.sum(), beta=beta
  )
  metrics = {
    "pair_accuracy": jnp.full_like(loss, accuracy),
    "approx_kl": 0.5 * jnp.square(log_ratio),
    "clipped": (held != log_ratio).astype(jnp.float32),
  }
  return loss, metrics, lambda: (new, reference)


def prdp(view, k, key, *, beta, clip):
  """PRDP (arXiv:2402.08714): path log-ratios regressed on rewards, in pairs.

  The loss is a square of sums over steps, so it needs them all before any
  gradient: `prepare_prdp` measures dL/du first and puts it in the place of the
  advantage; a visit then adds its step's part of that gradient, exactly.

  Args:
    view: View.
    k: i32[], index of the window step.
    key: unused.
    beta: see `pairwise.prdp_coefficients`.
    clip: see `pairwise.prdp_coefficients`.

  Returns:
    As the module says.
  """
  del key, beta, clip
  batch, new = view.batch, view.step(k)
  log_prob = jnp.mean(new.log_prob, (1, 2))
  loss = view.advantage(0) * batch.visits.shape[0] * log_prob
  change = log_prob - jnp.mean(batch.trajectory.log_prob[k], (1, 2))
  metrics = {"approx_kl": 0.5 * jnp.square(change)}
  return loss, metrics, lambda: (new, view.step(k, "reference"))


def prepare_prdp(view, *, beta, clip):
  """dL/du of every image under the present weights, f32[1, M, 1, 1]."""
  batch = view.batch

  def add(total, k):
    new = jax.lax.stop_gradient(view.step(k)).log_prob
    reference = view.step(k, "reference").log_prob
    old = batch.trajectory.log_prob[k]
    change = [jnp.mean(one - reference, (1, 2)) for one in (new, old)]
    return jax.tree.map(jnp.add, total, change), None

  zero = [jnp.zeros(batch.keep.shape)] * 2
  (statistic, old), _ = jax.lax.scan(add, zero, batch.visits)
  gradient, _ = pairwise.prdp_coefficients(
    statistic, old, batch.reward, batch.trajectory.group, batch.keep,
    beta=beta, clip=clip,
  )
  return gradient[None, :, None, None]


def reward_step(view, k, key):
  r"""One step of gradient: the reward of the image predicted at a stored state.

  $L = -R(x_k - t v)$. The state is the rollout's, without gradient; visited at
  one late step it is ReFL, at every step R0's randomised form (that from
  memory). IterComp's hinge $\max(0, m - R_j)$ of each judge has the gradient of
  a reward that is capped at m.

  Args:
    view: View.
    k: i32[], index of the window step.
    key: unused.

  Returns:
    As the module says.
  """
  del key
  path = view.batch.trajectory
  x, t = path.x[k], jnp.broadcast_to(path.t[k], path.x.shape[1:2])
  v = view.velocity(x, t)
  reward = view.score(x - t[:, None, None, None] * v)
  return -reward, {"predicted_reward": reward}, view.anchored_at(x, t, v)


def reward_chain(view, k, key, *, draws, gradient_steps, random_start):
  """The reward's gradient through the last steps of sampling (AlignProp).

  The chain starts from a state of the rollout, so no step before it is taken
  again, and every step is recomputed in the backward pass. With `random_start`
  the first U of the steps, U uniform, carry no gradient (arXiv:2310.03739).

  Args:
    view: View, of a rollout by the ODE whose window ends at t = 0.
    k: unused.
    key: PRNG key of the optimizer step.
    draws: 1; chains an optimizer step.
    gradient_steps: length of the chain.
    random_start: whether to draw U.

  Returns:
    As the module says.
  """
  del k, draws
  path = view.batch.trajectory
  steps = path.t.shape[0] - 1
  first = steps - gradient_steps
  skipped = 0
  if random_start:
    skipped = jax.random.randint(key, (), 0, gradient_steps)
  rows = path.x.shape[1:2]

  @jax.checkpoint
  def step(x, i):
    t, t_next = path.t[i], path.t[i + 1]
    v = view.velocity(x, jnp.broadcast_to(t, rows))
    v = jnp.where(i - first < skipped, jax.lax.stop_gradient(v), v)
    return x + (t_next - t) * v, None

  start = path.x[first]
  x, _ = jax.lax.scan(step, start, jnp.arange(first, steps))
  view.calls += gradient_steps - 1  # the scan's body is traced once
  reward = view.score(x)
  t = jnp.broadcast_to(path.t[first], rows)
  return -reward, {"predicted_reward": reward}, _at_start(view, start, t)


def _at_start(view, x, t):
  return lambda: (
    Step(view.velocity(x, t)), Step(view.velocity(x, t, "reference"))
  )


OBJECTIVES = {name: _on_path(entry) for name, entry in ppo.PPO.items()}
OBJECTIVES |= matching.MATCHING | {
  "dpo": dpo,
  "d3po": d3po,
  "prdp": prdp,
  "reward_step": reward_step,
  "reward_chain": reward_chain,
}
# Those that need to look at all visits first.
PREPARE = {"prdp": prepare_prdp}
# Those that read densities of transitions, so the sampler must have noise.
DENSITY = (*ppo.PPO, "d3po", "prdp")
# Those that are about Gaussian densities and no other log-prob.
GAUSSIAN = ("ppo_guard", "prdp")
# Those that differentiate the judge.
DIFFERENTIABLE = ("reward_step", "reward_chain")
# Network calls of a visit, an image and without the anchor's, where not 1;
# those of `reward_chain` are its gradient_steps, those of `contrastive_fm` the
# prompts it compares.
CALLS = {"nft": 2, "patch_fm": 2, "dpo": 2, "d3po": 2, "prdp": 3}
# Those that read a weight per position.
WEIGHTED = (*ppo.PPO, "weighted_fm")
# Those that compare images, which must then meet in one optimizer step.
PAIRED = ("contrastive_fm", "dpo", "d3po", "prdp")
# Those that look at images that are known to be right.
TRUSTED = ("patch_fm", "contrastive_fm")
