"""Phase B of Reflection-GRPO, and Flow-GRPO on the Diffuser as its control."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data.prompts import Tokens
from spatialrl.evals.edits import outside_error
from spatialrl.io import assets
from spatialrl.models import editor as editors
from spatialrl.models.build import load_policy
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals, UpdateBatch
from spatialrl.reflect import checker as checkers
from spatialrl.reflect import editing, scenes
from spatialrl.reflect.actors import Learned
from spatialrl.train import loop as loops
from spatialrl.train.online import choose_prompts
from spatialrl.train.reflect_pool import (
    contexts,
    load_actor,
    load_checker,
    open_pool,
)
from spatialrl.train.run import Run
from spatialrl.train.slots import bind_all
from spatialrl.train.state import init_state, make_optimizer
from spatialrl.train.update import make_update

_WORDS, _EDIT, _WINDOW = 7, 8, 9  # purposes of the run's key


def editor_grpo(config, folder, mesh):
  """Phase B: edits that gain relations and keep the rest, the Actor frozen.

  The Actor is that of phase A at temperature 1, with nothing tried yet, so the
  editor practises what it will be told. A group is G paths for one image and
  instruction. Signals are the Checker's mean probability and minus the error
  outside of the region, before it is pasted over; the advantage acts inside
  the region.
  """
  root = folder.parent
  check = load_checker(root)
  editor, base = editors.load(root / "editor/editor.safetensors")
  base = jax.device_put(base, meshes.replicated(mesh))
  speaker = Learned(*load_actor(root, "actor_grpo"), check, temperature=1.0)
  slots = bind_all(config)
  times = editor.start * jnp.asarray(slots.schedule(config.rollout.steps))
  groups, size = config.contexts, config.group
  pool = open_pool(root, "train", check, groups * size)
  optimizer = make_optimizer(
      config.optimizer, config.steps * config.train.updates
  )
  update = jax.jit(
      make_update(editor, optimizer, slots, config.train, guidance=1.0)
  )
  group = jnp.repeat(jnp.arange(groups), size)

  @jax.jit
  def draw(params, images, ids, region, key):
    cond = editing.condition(editor, base, images, ids, region)
    start = jax.random.randint(
        jax.random.fold_in(key, _WINDOW), (), 0,
        config.rollout.window_range[1] - config.rollout.window + 1,
    )
    path = editing.rollout(
        editor, base, params, cond, times, key, group,
        transition=slots.transition, log_prob=slots.log_prob,
        window_start=start, window=config.rollout.window,
        shared_noise=config.rollout.shared_noise,
    )
    made = editing.to_uint8(editor.decode(base, path.final))
    return path, cond, made, editing.pasted(made, images, region)

  @jax.jit
  def prepare(path, cond, ids, signals):
    reward = slots.aggregate(signals)
    keep = slots.select(reward, group)
    advantage, _ = slots.advantage(reward, keep, group, group, {})
    return UpdateBatch(
        trajectory=path, conditioning=cond, ids=ids, reward=reward,
        advantage=advantage[None, :, None, None], keep=keep,
        weight=slots.credit(path, signals),
        visits=jnp.arange(config.rollout.window),
    )

  state = init_state(
      editor.init_trainable(jax.random.key(config.seed), base), optimizer,
      config.seed,
  )
  with Run(config, folder) as run:
    state = run.restore(state)
    for step in run.steps(int(state.step)):
      key = jax.random.fold_in(state.key, step)
      part = contexts(pool, config, step)
      first = np.repeat(np.arange(groups) * size, size)  # one for a group
      told = speaker(
          part.images, part.prompts, part.probability, None, None,
          jax.random.fold_in(key, _WORDS),
      )
      told = [told[i] for i in first]
      region = editing.regions(told, part.boxes, editor.latent_shape[0])
      ids = editing.token_ids(told)
      path, cond, made, edited = draw(
          state.params, part.images, ids, region,
          jax.random.fold_in(key, _EDIT),
      )
      after = checkers.score(check(edited, part.prompts))
      # Pasting hides what the decoder did outside, so this looks before it.
      kept = outside_error(np.asarray(made), part.images, region)
      signals = {
          "checker": Signals(scalar=jnp.asarray(after, jnp.float32)),
          "preserved": Signals(
              scalar=jnp.asarray(-kept, jnp.float32),
              map=jnp.asarray(region, jnp.float32),
          ),
      }
      batch = prepare(path, cond, ids, signals)
      state, values = update(base, state, batch)
      state = dataclasses.replace(state, step=state.step + 1)
      gain = after - checkers.score(part.probability)
      values = jax.device_get(values) | {
          "reward": np.mean(batch.reward), "gain": gain.mean(),
          "outside_error": kept.mean(),
      }
      run.log(step + 1, {n: float(v) for n, v in values.items()},
              ("reward", "gain", "ratio_max", "grad_norm"))
      run.maybe_save(state, step + 1)
  assets.save(
      folder / "editor.safetensors",
      jax.device_get(base | {"mmdit": state.ema}),
      {"editor": editor.to_json(), "config": json.dumps(config.to_dict())},
      dtype=np.float32,
  )


def generator_grpo(config, folder, mesh):
  """The control: Flow-GRPO on the Diffuser with the Checker as its reward."""
  root = folder.parent
  policy, base = load_policy(root / "diffuser/policy.safetensors")
  base = jax.device_put(base, meshes.replicated(mesh))
  judge = _Judge(load_checker(root))
  loop = loops.Loop(
      config, mesh, policy, {"checker": judge}, Tokens(scenes.TOKENS)
  )
  prompts = scenes.prompts(config.seed, config.prompts.count)
  state = loop.init(base)
  with Run(config, folder) as run:
    state = run.restore(state)
    for step in run.steps(int(state.step)):
      chosen, labels = choose_prompts(prompts, config, step)
      state, values = loop.iterate(base, state, chosen, labels, step)
      run.log(step + 1, values, ("reward", "ratio_max", "grad_norm"))
      run.maybe_save(state, step + 1)
  assets.save(
      folder / "trained.safetensors", jax.device_get(state.ema),
      {"config": json.dumps(config.to_dict())}, dtype=np.float32,
  )


class _Judge:
  """The Checker's mean probability as a judge of `Loop`."""

  def __init__(self, check):
    self._check = check

  def __call__(self, images, prompts):
    pixels = editing.to_uint8(jax.device_get(images))
    scores = checkers.score(self._check(pixels, prompts))
    return Signals(scalar=jnp.asarray(scores, jnp.float32))

  def compilations(self):
    """Those of the Checker are one for a steady batch."""
    return 1
