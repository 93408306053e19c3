"""Images from prompts with a frozen policy, in batches of one shape."""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data import tokenizers
from spatialrl.flow.rollout import guided
from spatialrl.flow.schedules import SCHEDULES
from spatialrl.parallel import mesh as meshes

_NOISE = 11


class Sampler:
  """A compiled ODE sampler; call it with weights, prompts and a seed."""

  def __init__(self, policy, tokenizer, mesh, config):
    """Prepares sampling.

    Args:
      policy: Policy.
      tokenizer: its tokenizer.
      mesh: the mesh in use.
      config: fields `steps`, `shift`, `guidance`, `batch`, `max_tokens`.
    """
    self._policy, self._tokenizer = policy, tokenizer
    self._mesh, self._config = mesh, config
    meshes.check_divides(mesh, "eval.batch", config.batch)
    self._times = SCHEDULES["shifted"](config.steps, shift=config.shift)
    self._sample = jax.jit(self._run, out_shardings=meshes.replicated(mesh))

  def __call__(self, params, trainable, prompts, seed):
    """Draws one image a prompt.

    The noise of image i depends on (seed, i) alone, so two policies can be
    compared on the same prompts and noise.

    Returns:
      u8[len(prompts), size, size, 3].
    """
    batch = self._config.batch
    ids, mask = tokenizers.encode(
        self._tokenizer, prompts, self._config.max_tokens
    )
    key = jax.random.fold_in(jax.random.key(seed), _NOISE)
    images = []
    for start in range(0, len(prompts), batch):
      rows = np.arange(start, start + batch) % len(prompts)
      out = self._sample(
          params, trainable, ids[rows], mask[rows], jnp.arange(batch) + start,
          key,
      )
      images.append(np.asarray(out))
    return np.concatenate(images)[: len(prompts)]

  def _run(self, params, trainable, ids, mask, index, key):
    policy, scale = self._policy, self._config.guidance
    rows = meshes.batched(self._mesh)
    ids, mask = jax.lax.with_sharding_constraint((ids, mask), rows)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    x = jax.vmap(lambda k: jax.random.normal(k, policy.latent_shape))(keys)
    cond = policy.encode(params, ids, mask)
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
