"""Phase A of Reflection-GRPO: the Actor learns what gains relations.

That two separate phases train Actor and editor is RL-RIG's (arXiv:2602.19974,
abstract); rewards, groups and clip ranges are ours, and so is the order: phase
A has the editor as it was taught, phase B the Actor as phase A left it. Both
judge by the Checker alone; the oracle trains neither.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spatialrl.io import assets
from spatialrl.models import actor as actors
from spatialrl.models import editor as editors
from spatialrl.records import Step
from spatialrl.reflect import checker as checkers
from spatialrl.reflect import editing
from spatialrl.reflect.actors import Learned, read
from spatialrl.rl.advantage import ADVANTAGES
from spatialrl.rl.ppo import PPO
from spatialrl.scenes import instructions
from spatialrl.train.reflect_pool import (
    contexts,
    load_actor,
    load_checker,
    open_pool,
)
from spatialrl.train.run import Run
from spatialrl.train.slots import bind
from spatialrl.train.state import init_state, make_optimizer

_WORDS, _EDIT = 7, 8  # purposes of the run's key


def actor_grpo(config, folder, mesh):
  """Phase A: instructions that gain relations, the editor frozen.

  A group is G instructions for one image, carried out with the same noise. The
  reward is the gain in the Checker's mean probability, or 0 for a loss, minus
  `length` for each share of the longest instruction; a term for the format is
  not needed, as the Actor can write nothing but instructions. It starts with
  its logits times `sharpen`: as taught, its draws are worse than its likeliest
  instruction (experiments/rl_rig), and RL would first have to catch up.
  """
  del mesh
  root = folder.parent
  check = load_checker(root)
  editor, weights = editors.load(root / "editor/editor.safetensors")
  weights = jax.device_put(weights)
  inverse = editing.Inverse(editor, steps=config.edit.steps,
                            shift=config.edit.shift)
  model, params = load_actor(root, "actor")
  params = actors.sharpened(params, config.sharpen)
  speaker = Learned(model, params, check, temperature=1.0)
  groups, size = config.contexts, config.group
  group = np.repeat(np.arange(groups), size)
  pool = open_pool(root, "train", check, groups * size)
  advantage = bind(ADVANTAGES, config.advantage, "advantage")
  optimizer = make_optimizer(config.optimizer, config.steps * config.updates)
  update = jax.jit(actor_update(model, config, optimizer, advantage))
  state = init_state(jax.device_put(params), optimizer, config.seed)
  with Run(config, folder) as run:
    state = run.restore(state)
    for step in run.steps(int(state.step)):
      key = jax.random.fold_in(state.key, step)
      part = contexts(pool, config, step)
      context = speaker.context(part.images, part.prompts, part.probability)
      words = speaker.draw(
          state.params, context, jax.random.fold_in(key, _WORDS)
      )
      told = read(words, part.prompts)
      edited, _ = inverse(
          weights, None, part.images, told, part.boxes,
          jax.random.fold_in(key, _EDIT), group,
      )
      after = checkers.score(check(edited, part.prompts))
      gain = after - checkers.score(part.probability)
      share = np.asarray(actors.tokens(words)).mean(1)
      # The chain takes back what gains nothing, so a loss costs no more.
      reward = np.maximum(gain, 0) - config.length * share
      state, values = update(
          state, context, words, jnp.asarray(reward, jnp.float32), group
      )
      values = jax.device_get(values) | {
          "reward": reward.mean(), "gain": gain.mean(),
          "words": instructions.LENGTH * share.mean(),
      }
      run.log(step + 1, {n: float(v) for n, v in values.items()},
              ("reward", "gain", "entropy"))
      run.maybe_save(state, step + 1)
  folder.mkdir(parents=True, exist_ok=True)
  assets.save(
      folder / "actor.safetensors", jax.device_get(state.ema),
      {"actor": model.to_json(), "config": json.dumps(config.to_dict())},
      dtype=np.float32,
  )


def actor_update(model, config, optimizer, advantage):
  """The policy gradient over words, in `config.updates` optimizer steps.

  A token is to `rl.ppo` what a position is: log-probs f32[B, T, 1], each with
  a ratio and a clip of its own, weighted by whether it was decided at all.

  Returns:
    (state, context, words, reward, group) -> (state, dict of f32[]).
  """
  surrogate = bind(PPO, config.objective, "objective")

  def update(state, context, words, reward, group):
    kept = jnp.ones(reward.shape, bool)
    scores, _ = advantage(reward, kept, group, group, {})
    said = actors.tokens(words).astype(jnp.float32)
    weight = (said / said.mean(1, keepdims=True))[..., None]
    old, _ = actors.log_probs(model, state.params, context, words)

    def loss(params):
      log_prob, entropy = actors.log_probs(model, params, context, words)
      parts, metrics = surrogate(
          Step(velocity=None, log_prob=log_prob[..., None]), None,
          old[..., None], scores, weight,
      )
      spread = jnp.sum(entropy * said) / jnp.sum(said)
      value = parts.mean() - config.entropy * spread
      means = {name: value.mean() for name, value in metrics.items()}
      return value, means | {"entropy": spread}

    def step(state, _):
      (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
          state.params
      )
      moves, opt_state = optimizer.update(
          grads, state.opt_state, state.params
      )
      params = optax.apply_updates(state.params, moves)
      ema = optax.incremental_update(params, state.ema, 1 - config.ema_decay)
      state = dataclasses.replace(
          state, updates=state.updates + 1, params=params,
          opt_state=opt_state, ema=ema,
      )
      norm = optax.tree.norm(grads)
      return state, metrics | {"loss": value, "grad_norm": norm}

    state, metrics = jax.lax.scan(step, state, None, length=config.updates)
    state = dataclasses.replace(state, step=state.step + 1)
    return state, jax.tree.map(jnp.mean, metrics)

  return update


