"""LoRA by interception: base parameter paths never change.

Hu et al., arXiv:2106.09685: y = x W + b + (alpha / rank) x A B, with B zero at
the start. A and B live in a variable collection of their own, "lora", stacked
over layers wherever the base weights are.
"""

import contextlib
import dataclasses
import re

import flax.linen as nn
import jax.numpy as jnp

COLLECTION = "lora"


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
  """Which layers get an adapter, and how large.

  Attributes:
    rank: columns of A.
    alpha: the update is scaled by alpha / rank.
    targets: regular expressions; a dense layer whose path (parts joined by
      "/", e.g. "blocks/image_q") matches one of them in full is adapted.
  """

  rank: int = 32
  alpha: float = 64.0
  targets: tuple[str, ...] = (r".*blocks?/(image|text)2?_(q|k|v|out)",)


@contextlib.contextmanager
def adapted(config):
  """Within this context every targeted `nn.Dense` adds its adapter.

  It multiplies in the layer's own dtype, in whatever dtype it is stored.

  Args:
    config: LoRAConfig, or None for no adapters at all.
  """
  if config is None:
    yield
    return
  patterns = [re.compile(target) for target in config.targets]

  def interceptor(next_function, args, kwargs, context):
    module = context.module
    path = "/".join(module.path)
    if (
        not isinstance(module, nn.Dense)
        or context.method_name != "__call__"
        or not any(pattern.fullmatch(path) for pattern in patterns)
    ):
      return next_function(*args, **kwargs)
    (x,) = args
    down = module.variable(
        COLLECTION,
        "a",
        lambda: nn.initializers.he_uniform()(
            module.make_rng("params"), (x.shape[-1], config.rank)
        ),
    )
    up = module.variable(
        COLLECTION, "b", jnp.zeros, (config.rank, module.features)
    )
    # As `nn.Dense` treats its own input and kernel.
    x, a, b = nn.dtypes.promote_dtype(
        x, down.value, up.value, dtype=module.dtype
    )
    return next_function(x) + (x @ a * (config.alpha / config.rank)) @ b

  with nn.intercept_methods(interceptor):
    yield


def bind(params, trainable, config):
  """A network's variables with what is trained in their place.

  Args:
    params: its base weights.
    trainable: adapters, or all weights where `config` is None; None for the
      base itself.
    config: LoRAConfig or None.

  Returns:
    (variables for `apply`, what to enter `adapted` with around it).
  """
  if trainable is None:
    return {"params": params}, None
  if config is None:
    return {"params": trainable}, None
  return {"params": params, COLLECTION: trainable}, config


def created(variables, config):
  """The adapters among variables that a network made under `adapted`.

  Raises:
    ValueError: if no layer is a target.
  """
  if COLLECTION not in variables:
    raise ValueError(
        f"lora.targets is {config.targets}; no dense layer matches."
    )
  return variables[COLLECTION]


def start(params, config):
  """Where full fine-tuning starts: a network's weights, as they are.

  Raises:
    ValueError: for adapters, whose start depends on a key.
  """
  if config is not None:
    raise ValueError(
        "lora.rank must be 0 where weights are compared with their start."
    )
  return params
