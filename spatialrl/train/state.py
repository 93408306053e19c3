"""The training state and the optimizer that moves it."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that changes during a run; what a checkpoint holds.

  Attributes:
    step: i32[], iterations done.
    updates: i32[], optimizer steps done.
    params: the trained weights (all, or the adapters).
    opt_state: of optax.
    ema: moving average of `params`, the weights that are evaluated.
    old: the weights that sample, where they are not `params`; else {}.
    key: PRNG key of the run; every use folds in the step and a purpose.
    stats: running statistics of the advantage, {} where it has none.
    judges: what judges learn during the run, by name: {"weights", "opt_state"};
      {} where none does.
  """

  step: jax.Array
  updates: jax.Array
  params: dict
  opt_state: optax.OptState
  ema: dict
  old: dict
  key: jax.Array
  stats: dict
  judges: dict


def make_optimizer(config, updates):
  """AdamW with a clipped gradient, a linear warm-up and a schedule.

  Args:
    config: fields `learning_rate`, `schedule` ("constant" or "cosine", to 0),
      `warmup` (optimizer steps), `b2`, `weight_decay`, `max_norm`.
    updates: optimizer steps of the whole run.

  Returns:
    optax.GradientTransformation.
  """
  rate = config.learning_rate
  if config.schedule not in SCHEDULES:
    raise ValueError(
        f"optimizer.schedule is {config.schedule!r}; allowed are {SCHEDULES}."
    )
  if rate <= 0:
    raise ValueError(f"optimizer.learning_rate is {rate}; it must be above 0.")
  if config.schedule == "cosine":
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, rate, config.warmup, max(updates, config.warmup + 1)
    )
  else:
    schedule = optax.linear_schedule(
        rate / max(config.warmup, 1), rate, config.warmup
    )
  return optax.chain(
      optax.clip_by_global_norm(config.max_norm),
      optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay),
  )


def init_state(
    params, optimizer, seed, stats=None, keeps_old=False, judges=None
):
  """A TrainState at step 0; jit it to place the optimizer's state as well."""
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      updates=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      ema=jax.tree.map(jnp.copy, params),
      old=jax.tree.map(jnp.copy, params) if keeps_old else {},
      key=jax.random.key(seed),
      stats=stats or {},
      judges=judges or {},
  )
