"""The two networks of a rollout, each compiled alone.

Each takes a part of the processor time of the whole program, which contains
little else: 12 network calls a step and the decoder in FLUX's.
"""

import jax
import jax.numpy as jnp

from spatialrl.parallel import mesh as meshes
from spatialrl.train import programs

NAMES = ("forward", "decode")


def compile_parts(config, mesh):
  """Compiles the velocity network with adapters, then the decoder.

  Args:
    config: of an `online` run; guidance 1, for one call an image.
    mesh: of devices that need not exist.

  Yields:
    (name, programs.Program) in the order of NAMES, with the calls of an
    iteration. What the run holds besides is not counted.
  """
  held, rollout = programs.shapes(config, mesh), config.rollout
  images, split = programs.images_of(config), meshes.batched(mesh)
  policy, trained = held.policy, held.state.params

  def rows(count, like):
    return jax.ShapeDtypeStruct(
        (count, *like.shape[1:]), like.dtype, sharding=split
    )

  def forward(base, trained, x, t, text):
    cond = policy.encode(base, *text)
    return policy.velocity(base, trained, x, t, cond)

  latents = jax.ShapeDtypeStruct((images, *policy.latent_shape), jnp.float32)
  times = jax.ShapeDtypeStruct((images,), jnp.float32)
  call = [rows(rollout.chunk, one) for one in (latents, times)]
  text = [rows(rollout.chunk, one) for one in held.text]
  steps = rollout.steps * images // rollout.chunk
  yield "forward", _compile(
      mesh, forward, (held.base, trained, *call, text), steps
  )
  yield "decode", _compile(
      mesh,
      policy.decode,
      (held.base, rows(rollout.decode_chunk, latents)),
      images // rollout.decode_chunk,
  )


def _compile(mesh, function, arguments, calls):
  options = meshes.compiler_options(mesh)
  with jax.set_mesh(mesh):
    lowered = jax.jit(function, compiler_options=options).lower(*arguments)
    return programs.Program(lowered.compile(), calls, resident=0)
