"""The loop that `pretrain` and `reward` share: batches, loss, checkpoints."""

import dataclasses
import functools
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import optax

from spatialrl.parallel import mesh as meshes
from spatialrl.parallel import partition
from spatialrl.train import limits
from spatialrl.train.run import Run
from spatialrl.train.state import init_state, make_optimizer


def fit(
    config, workdir, mesh, params, loss, make_batch, evaluate, frozen=(), *,
    family="scenes",
):
  """Trains `params` for `config.steps` batches, resuming where it can.

  Args:
    config: fields `steps`, `batch`, `seed`, `ema_decay`, `log_every`,
      `eval_every`, `optimizer`, `checkpoint`.
    workdir: directory of the run.
    mesh: the mesh in use.
    params: nested dict, the weights to start from.
    loss: (params, batch, key, *frozen) -> (f32[], dict of f32[]).
    make_batch: step -> pytree of numpy arrays with `config.batch` rows each.
    evaluate: ema weights -> dict of floats, run every `eval_every` steps.
    frozen: tuple of trees on the devices; closed over, large ones would be
      constants of the program.
    family: key of `partition.RULES`, what `params` are.

  Returns:
    The final TrainState.

  Raises:
    ValueError: for a number of the config that is out of its range.
    NonFiniteErrorAt: where the loss is no number any more, which is asked
      before anything is saved.
  """
  limits.at_least(config, 1, (
      "steps", "batch", "log_every", "eval_every", *limits.CHECKPOINT,
  ))
  limits.at_least(config, 0, limits.OPTIMIZER)
  limits.positive(config, ("optimizer.max_norm",))
  limits.decay(config, ("ema_decay", "optimizer.b2"))
  optimizer = make_optimizer(config.optimizer, config.steps)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, batch, *frozen):
    key = jax.random.fold_in(state.key, state.step)
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
        state.params, batch, key, *frozen
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    # A short warm-up of the average, so that the start is forgotten.
    decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
    metrics |= {"loss": value, "grad_norm": optax.tree.norm(grads)}
    state = dataclasses.replace(
        state,
        step=step,
        updates=state.updates + 1,
        params=params,
        opt_state=opt_state,
        ema=optax.incremental_update(params, state.ema, 1 - decay),
    )
    return partition.constrain(mesh, family, state), metrics

  def start(params):
    return init_state(params, optimizer, config.seed)

  placed = partition.shardings(mesh, family, jax.eval_shape(start, params))
  state = jax.jit(start, out_shardings=placed)(params)
  with Run(config, workdir) as run, ThreadPoolExecutor(1) as pool:
    state = run.restore(state)
    start = int(state.step)
    ahead = pool.submit(make_batch, start)
    began, logged = time.perf_counter(), start
    for step in run.steps(start):
      batch = meshes.put_rows(mesh, ahead.result())
      ahead = pool.submit(make_batch, step + 1)
      state, metrics = update(state, batch, *frozen)
      done = step + 1
      logs = done % config.log_every == 0 or done == config.steps
      if logs or done % config.checkpoint.every == 0:
        values = {name: float(value) for name, value in metrics.items()}
        run.require_finite(done, values)
      if logs:
        spent = time.perf_counter() - began
        values["images_per_second"] = (done - logged) * config.batch / spent
        if done % config.eval_every == 0 or done == config.steps:
          values |= evaluate(state.ema)
        run.log(done, values)
        began, logged = time.perf_counter(), done
      run.maybe_save(state, done)
  return state
