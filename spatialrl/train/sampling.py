"""Images from prompts with a frozen policy, in batches of one shape."""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.flow.rollout import guided
from spatialrl.flow.schedules import SCHEDULES
from spatialrl.parallel import mesh as meshes
from spatialrl.train.slots import bind

_NOISE = 11


class Sampler:
  """A compiled ODE sampler; call it with weights, prompts and a seed."""

  def __init__(self, policy, read, mesh, config):
    """Prepares sampling.

    Args:
      policy: Policy or DiffusionPolicy.
      read: reader of `data.prompts` for it.
      mesh: the mesh in use.
      config: fields `steps`, `guidance`, `batch` and `schedule`, a slot.
    """
    self._policy, self._read = policy, read
    self._mesh, self._config = mesh, config
    meshes.check_divides(mesh, "eval.batch", config.batch)
    schedule = bind(SCHEDULES, config.schedule, "eval.schedule")
    self._times = schedule(config.steps)
    self._sample = jax.jit(self._run, out_shardings=meshes.replicated(mesh))

  def __call__(
      self, params, trainable, prompts, seed, index=None, pause=lambda: None
  ):
    """Draws one image a prompt.

    The noise of image i depends on (seed, i) alone, so two policies can be
    compared on the same prompts and noise.

    Args:
      params: the frozen base.
      trainable: what was trained, or None for the base itself.
      prompts: list of N str.
      seed: int.
      index: i[N], the i of each image; None counts them from 0.
      pause: called before each batch.

    Returns:
      u8[len(prompts), size, size, 3].
    """
    batch = self._config.batch
    if index is None:
      index = np.arange(len(prompts))
    images = []
    for start in range(0, len(prompts), batch):
      pause()
      rows = np.arange(start, start + batch) % len(prompts)
      text = meshes.put_rows(self._mesh, self._read([prompts[i] for i in rows]))
      places = np.asarray(index, np.int32)[rows]
      out = self._sample(params, trainable, text, places, seed)
      images.append(np.asarray(out))
    return np.concatenate(images)[: len(prompts)]

  def _run(self, params, trainable, text, index, seed):
    policy, scale = self._policy, self._config.guidance
    key = jax.random.fold_in(jax.random.key(seed), _NOISE)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    x = jax.vmap(lambda k: jax.random.normal(k, policy.latent_shape))(keys)
    x, cond = jax.lax.with_sharding_constraint(
        (x, policy.encode(params, *text)), meshes.batched(self._mesh)
    )
    empty = policy.encode_empty(params, cond)

    def velocity(x, t, c):
      return policy.velocity(params, trainable, x, t, c)

    field = guided(velocity, cond, empty, scale)

    def step(x, times):
      t, t_next = times
      v = field(x, jnp.full(x.shape[:1], t))
      return x + (t_next - t) * v, None

    times = jnp.asarray(self._times)
    x, _ = jax.lax.scan(step, x, (times[:-1], times[1:]))
    image = policy.decode(params, x)
    return jnp.clip(jnp.rint((image + 1) * 127.5), 0, 255).astype(jnp.uint8)
