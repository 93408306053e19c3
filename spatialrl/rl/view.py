"""The policies of an update, seen from the rows of its batch."""

import jax

from spatialrl.flow.transition import evaluate_step
from spatialrl.records import Step


class View:
  """Velocities, transitions and scores of the images of one batch.

  Attributes:
    batch: UpdateBatch of M images.
    calls: network calls an image that were asked for so far, counted while
      tracing; with guidance a call is two.
  """

  def __init__(self, fields, batch, *, transition, log_prob, judge=None):
    """Holds closures only; nothing is computed.

    Args:
      fields: dict from "new" (the policy being trained), "old" (the one that
        drew the images) and "reference" (the frozen base) to a closure
        (x f32[M, h, w, C], t f32[M]) -> v, with a Conditioning as third
        argument where another text than the batch's is asked about.
      batch: UpdateBatch.
      transition: an entry of TRANSITIONS with its settings bound.
      log_prob: an entry of LOG_PROBS.
      judge: latents f32[M, h, w, C] -> f32[M], differentiable, or None.
    """
    self.batch, self.calls = batch, 0
    self._fields, self._judge = fields, judge
    self._transition, self._log_prob = transition, log_prob

  def velocity(self, x, t, who="new", text=()):
    """v at (x f32[M, h, w, C], t f32[M]); gradients for "new" alone.

    `text` is () for the batch's own, or (Conditioning of M prompts,).
    """
    self.calls += 1
    v = self._fields[who](x, t, *text)
    return v if who == "new" else jax.lax.stop_gradient(v)

  def advantage(self, k):
    """That of window step k: f32[M], or f32[M, h, w]."""
    advantage = self.batch.advantage
    advantage = advantage[k] if advantage.shape[0] > 1 else advantage[0]
    if advantage.shape[1:] == (1, 1):
      return advantage[:, 0, 0]
    return advantage

  def anchored_at(self, x, t, v):
    """The `anchored` of an objective that visits states, not transitions.

    Args:
      x: f32[M, h, w, C].
      t: f32[M].
      v: f32[M, h, w, C], what the trained policy said there.
    """
    return lambda: (Step(v), Step(self.velocity(x, t, "reference")))

  def step(self, k, who="new"):
    """records.Step of window step k, which may be traced."""
    path = self.batch.trajectory
    step = evaluate_step(
      lambda x, t: self.velocity(x, t, who),
      path.x[k],
      path.x[k + 1],
      path.t[k],
      path.t[k + 1],
      transition=self._transition,
      log_prob=self._log_prob,
    )
    return step if who == "new" else jax.lax.stop_gradient(step)

  def score(self, latents):
    """The reward of latents f32[M, h, w, C] under the rows' prompts, f32[M]."""
    return self._judge(latents)
