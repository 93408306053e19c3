"""Where and when an advantage acts: weights over steps and positions."""

import jax
import jax.numpy as jnp


def uniform(trajectory, signals):
  """Gives every step and position the same weight.

  Args:
    trajectory: records.Trajectory with W kept steps.
    signals: dict of records.Signals, unused.

  Returns:
    f32[W, B, h, w] of ones; with W = 0, for objectives that visit finished
    images, one map all the same.
  """
  del signals
  steps, *rest = trajectory.log_prob.shape
  return jnp.ones((max(steps, 1), *rest), jnp.float32)


def reweight(trajectory, signals, mean_std):
  r"""Weighs steps by the std of their transition.

  $w_k = \sigma_k / \mathrm{mean}_k \sigma_k$ (TempFlow-GRPO, arXiv:2508.04324;
  EditScore's per-step factor): noisy steps decide the layout and get more. The
  mean is over all steps that the window may cover, so that a window of a single
  step is weighed as well.

  Args:
    trajectory: records.Trajectory with W kept steps.
    signals: dict of records.Signals, unused.
    mean_std: positive float, that mean; `slots.bind_all` knows it.

  Returns:
    f32[W, B, h, w].
  """
  weight = trajectory.std / mean_std
  return uniform(trajectory, signals) * weight[:, None, None, None]


def attention_map(trajectory, signals, *, alpha, cap=4.0, control="none"):
  r"""STAR: the advantage goes where the image attends to the prompt's words.

  $w_p = (1 - \alpha) + \alpha M_p$ with M the map of mean 1 that the rollout
  recorded at each step, capped and scaled back to mean 1. STAR
  (arXiv:2606.17979) is known from its abstract; floor, cap and scaling are
  ours.

  Args:
    trajectory: records.Trajectory with `attention`.
    signals: dict of records.Signals, unused.
    alpha: from 0, which is `uniform` to the last bit, to 1.
    cap: largest M.
    control: "none"; "shuffled" permutes positions of every map alike;
      "other" takes the map of the next image of the batch.

  Returns:
    f32[W, B, h, w].
  """
  if trajectory.attention is None:
    raise ValueError(
      "credit.name is 'attention_map' and the rollout recorded no attention;"
      " set rollout.attention_blocks."
    )
  if control not in CONTROLS:
    raise ValueError(
      f"credit.control is {control!r}; allowed are {CONTROLS}."
    )
  seen = trajectory.attention
  if control == "shuffled":
    shape = seen.shape
    order = jax.random.permutation(jax.random.key(0), shape[2] * shape[3])
    seen = seen.reshape(*shape[:2], -1)[..., order].reshape(shape)
  elif control == "other":
    seen = jnp.roll(seen, 1, axis=1)
  return _blend(seen, alpha, cap, uniform(trajectory, signals))


def judge_map(trajectory, signals, *, judge, alpha, cap=4.0, invert=False):
  r"""The advantage goes where a judge's map is high.

  With `invert`, where it is low: ImageDoctor (arXiv:2510.01010) weighs
  positions by 1 - H with H its flaw map. SRUM's box scores and the oracle's
  boxes are maps of other judges.

  Args:
    trajectory: records.Trajectory with W kept steps.
    signals: dict of records.Signals; that of `judge` has `map` f32[B, h, w] in
      [0, 1].
    judge: name of the judge.
    alpha: from 0, which is `uniform`, to 1.
    cap: largest weight before scaling.
    invert: whether to take 1 - map.

  Returns:
    f32[W, B, h, w], the same at every step.
  """
  found = signals.get(judge)
  if found is None or found.map is None:
    raise ValueError(
      f"credit.judge is {judge!r}, which gives no map; the judges are"
      f" {sorted(signals)}."
    )
  seen = 1.0 - found.map if invert else found.map
  mean = jnp.mean(seen, (1, 2), keepdims=True)
  seen = jnp.where(mean > 0, seen / jnp.maximum(mean, 1e-6), 1.0)
  return _blend(seen[None], alpha, cap, uniform(trajectory, signals))


def patch_quality(trajectory, signals, *, judge):
  r"""PatchDPO: keep the own image where it is good, else learn the trusted one.

  Weights $q_p$ of the own image and $1 - q_p^{trust}$ of the trusted one
  (public code of PatchDPO); scaled to a common mean of 1 over both (ours), so
  that quality decides which of the two is learned, not how much.

  Args:
    trajectory: unused.
    signals: dict of records.Signals; that of `judge` has `map` and
      `trusted_map`, f32[B, h, w], qualities in [0, 1].
    judge: name of the judge.

  Returns:
    f32[2, B, h, w]: of the own image, of the trusted one.
  """
  del trajectory
  found = signals.get(judge)
  if found is None or found.trusted_map is None:
    raise ValueError(
      f"credit.judge is {judge!r}, which compares no trusted image; the judges"
      f" are {sorted(signals)}."
    )
  weight = jnp.stack([found.map, 1.0 - found.trusted_map])
  mean = jnp.mean(weight, (0, 2, 3), keepdims=True)
  return jax.lax.stop_gradient(weight / jnp.maximum(mean, 1e-6))


def _blend(seen, alpha, cap, ones):
  """(1 - alpha) + alpha M with M capped and of mean 1 over positions."""
  if alpha == 0:
    return ones
  seen = jnp.minimum(seen, cap)
  mean = jnp.mean(seen, (2, 3), keepdims=True)
  seen = seen / jnp.maximum(mean, 1e-12)
  return jax.lax.stop_gradient((1 - alpha) * ones + alpha * seen)


CONTROLS = ("none", "shuffled", "other")
CREDITS = {
  "uniform": uniform,
  "reweight": reweight,
  "attention_map": attention_map,
  "judge_map": judge_map,
  "patch_quality": patch_quality,
}
