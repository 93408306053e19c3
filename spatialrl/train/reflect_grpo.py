"""The GRPO phases of the job `reflect`: Actor, Inverse Diffuser, and baseline.

Two separate phases, Actor first, are RL-RIG's (arXiv:2602.19974, abstract);
their rewards, groups and clip ranges are ours. Both judge by the Checker
alone; the oracle trains nothing.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spatialrl.data.prompts import Tokens
from spatialrl.evals.edits import outside_error
from spatialrl.io import assets
from spatialrl.models import actor as actors
from spatialrl.models import editor as editors
from spatialrl.models.build import load_policy, load_reward
from spatialrl.models.reward_model import RewardConfig
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals, Step, UpdateBatch
from spatialrl.reflect import checker as checkers
from spatialrl.reflect import editing, scenes
from spatialrl.reflect.actors import Learned, read
from spatialrl.rl.advantage import ADVANTAGES
from spatialrl.rl.ppo import PPO
from spatialrl.train import loop as loops
from spatialrl.train.online import choose_prompts
from spatialrl.train.reflect_judges import load_drawn
from spatialrl.train.run import Run
from spatialrl.train.slots import bind
from spatialrl.train.state import init_state, make_optimizer
from spatialrl.train.update import make_update

_CONTEXTS, _WORDS, _EDIT, _WINDOW = 6, 7, 8, 9  # purposes of the run's key


@dataclasses.dataclass(frozen=True)
class Pool:
  """Images that the Checker does not accept, what a group is about.

  Attributes:
    images: u8[N, S, S, 3].
    prompts: list of N str.
    boxes: list of N dicts from label to box.
    probability: f32[N, R], the Checker's.
  """

  images: np.ndarray
  prompts: list
  boxes: list
  probability: np.ndarray

  def take(self, rows):
    """The rows of a numpy index, as a Pool."""
    return Pool(
        self.images[rows],
        [self.prompts[i] for i in rows],
        [self.boxes[i] for i in rows],
        self.probability[rows],
    )


def open_pool(root, check, batch):
  """The Pool of the images of the phase `drawn`."""
  data = load_drawn(root, "train")
  said = checkers.in_batches(check, data.images, data.prompts, batch)
  whole = Pool(data.images, data.prompts, data.boxes, said)
  return whole.take(np.flatnonzero(~checkers.accepted(whole.probability)))


def load_checker(root):
  """The Checker of the workdir `root`."""
  return checkers.Checker(*load_reward(root / "checker/checker.safetensors"))


def load_actor(root, phase):
  """(RewardConfig, weights) of the Actor that a phase made."""
  params, metadata = assets.load(root / phase / "actor.safetensors")
  return RewardConfig.from_json(metadata["actor"]), params


def actor_grpo(config, folder, mesh):
  """Phase A: instructions that gain relations, the editor frozen.

  A group is G instructions for one image, carried out with the same noise. The
  reward is the gain in the Checker's mean probability, plus `format` for an
  instruction of the grammar that names things of the prompt, minus `length`
  for each share of the longest instruction.
  """
  del mesh
  root = folder.parent
  check = load_checker(root)
  editor, weights = editors.load(root / "editor/editor.safetensors")
  weights = jax.device_put(weights)
  inverse = editing.Inverse(editor, steps=config.edit.steps,
                            shift=config.edit.shift)
  model, params = load_actor(root, "actor")
  speaker = Learned(model, params, temperature=1.0)
  groups, size = config.contexts, config.group
  group = np.repeat(np.arange(groups), size)
  pool = open_pool(root, check, groups * size)
  advantage = bind(ADVANTAGES, config.advantage, "advantage")
  optimizer = make_optimizer(config.optimizer, config.steps * config.updates)
  update = jax.jit(actor_update(model, config, optimizer, advantage))
  state = init_state(jax.device_put(params), optimizer, config.seed)
  with Run(config, folder) as run:
    state = run.restore(state)
    for step in run.steps(int(state.step)):
      key = jax.random.fold_in(state.key, step)
      part = _contexts(pool, config, step)
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
      valid = np.array([t is not None for t in told])
      gain = np.where(valid, after - checkers.score(part.probability), 0.0)
      share = np.asarray(actors.tokens(words)).mean(1)
      reward = gain + config.format * valid - config.length * share
      state, values = update(
          state, context, words, jnp.asarray(reward, jnp.float32), group
      )
      values = jax.device_get(values) | {
          "reward": reward.mean(), "gain": gain.mean(),
          "valid": valid.mean(), "words": 6 * share.mean(),
      }
      run.log(step + 1, {n: float(v) for n, v in values.items()},
              ("reward", "gain", "valid", "entropy"))
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


def editor_grpo(config, folder, mesh):
  """Phase B: edits that gain relations and keep the rest, the Actor frozen.

  A group is G paths for one image and instruction from one start. Signals are
  the Checker's mean probability and minus the error outside of the region;
  the advantage acts inside the region.
  """
  root = folder.parent
  check = load_checker(root)
  editor, base = editors.load(root / "editor/editor.safetensors")
  base = jax.device_put(base, meshes.replicated(mesh))
  speaker = Learned(*load_actor(root, "actor_grpo"), temperature=1.0)
  slots = loops.slots(config)
  times = editor.start * jnp.asarray(slots.schedule(config.rollout.steps))
  groups, size = config.contexts, config.group
  pool = open_pool(root, check, groups * size)
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
    )
    return path, cond, editing.to_uint8(editor.decode(base, path.final))

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
      part = _contexts(pool, config, step)
      first = np.repeat(np.arange(groups) * size, size)  # one for a group
      told = speaker(part.images, part.prompts, part.probability, None,
                     jax.random.fold_in(key, _WORDS))
      told = [told[i] for i in first]
      region = editing.regions(told, part.boxes, editor.latent_shape[0])
      ids = editing.token_ids(told)
      path, cond, edited = draw(
          state.params, part.images, ids, region,
          jax.random.fold_in(key, _EDIT),
      )
      after = checkers.score(check(edited, part.prompts))
      kept = outside_error(np.asarray(edited), part.images, region)
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


def _contexts(pool, config, step):
  """The images of an iteration, each repeated for its group, as a Pool."""
  rng = np.random.default_rng([config.seed, step, _CONTEXTS])
  rows = rng.choice(len(pool.prompts), config.contexts,
                    replace=len(pool.prompts) < config.contexts)
  return pool.take(np.repeat(rows, config.group))
