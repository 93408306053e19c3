"""One small SD3 twice: in the programs of an online run, and in torch.

Both have `rollout()` and `update()`; `Torch` takes its noise from `Ours`, so
that they do the same. `against_torch.py` compares and times them.
"""

import dataclasses
import math
import pathlib
import tempfile

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch

from spatialrl.convert import adapters, folder, stream
from spatialrl.convert.lora import Pair
from spatialrl.flow.rollout import initial_noise, rollout
from spatialrl.models.autoencoder import AutoencoderConfig
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.policy import Policy
from spatialrl.models.text_encoder import TextEncoderConfig
from spatialrl.records import Conditioning, UpdateBatch
from spatialrl.train.configs import load_config
from spatialrl.train.loop import slots
from spatialrl.train.state import init_state, make_optimizer
from spatialrl.train.update import make_update

SD3 = {
  "attention_head_dim": 64,
  "caption_projection_dim": 256,
  "in_channels": 16,
  "joint_attention_dim": 1024,
  "num_attention_heads": 4,
  "num_layers": 4,
  "out_channels": 16,
  "patch_size": 2,
  "pooled_projection_dim": 2048,
  "pos_embed_max_size": 32,
  "qk_norm": "rms_norm",
  "sample_size": 32,
}
ADAPTED = (
  *("to_q", "to_k", "to_v", "to_out.0"),
  *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
LORA = LoRAConfig(rank=32, alpha=64.0)
BATCH, TEXT_TOKENS, STEPS = 8, 77, 8
START, WINDOW = 1, 2  # the stochastic steps, which the update visits


def make_network():
  """A random SD3 of diffusers with random adapters, both halves of them."""
  torch.manual_seed(0)
  network = diffusers.SD3Transformer2DModel(**SD3)
  network.add_adapter(
    peft.LoraConfig(
      r=LORA.rank,
      lora_alpha=LORA.alpha,
      target_modules=list(ADAPTED),
      init_lora_weights=False,
    )
  )
  return network


def to_ours(network):
  """(Policy, weights, adapters) of the same values."""
  bare = diffusers.SD3Transformer2DModel(**SD3)
  bare.load_state_dict({
    name.replace(".base_layer", ""): value
    for name, value in network.state_dict().items()
    if ".lora_" not in name
  })
  with tempfile.TemporaryDirectory() as path:
    bare.save_pretrained(path)
    whole = folder.open_model(path)
    params = stream.load_whole(whole)
  state = {
    name: value.numpy()
    for name, value in peft.get_peft_model_state_dict(network).items()
  }
  scale = LORA.alpha / LORA.rank
  pairs = {
    name.removesuffix(".lora_A.weight"): Pair(
      value, state[name.replace("lora_A", "lora_B")], scale
    )
    for name, value in state.items()
    if ".lora_A" in name
  }
  config, lora = adapters.to_tree(pairs, whole)
  coder = AutoencoderConfig()
  policy = Policy(
    size=SD3["sample_size"] * coder.factor,
    fold=coder.factor,
    prediction="velocity",
    # Torch stores its activations as well.
    mmdit=dataclasses.replace(whole.sizes, remat=False, attention="auto"),
    text=TextEncoderConfig(vocabulary=1),  # not called
    autoencoder=coder,
    lora=config,
  )
  return policy, params, lora


def make_config():
  """Flow-GRPO-Fast, one optimizer step an iteration, from the first at rate."""
  path = pathlib.Path(__file__).parents[2] / "configs/methods"
  config = load_config(path / "flow_grpo_fast.py")
  config.objective.clip_range = 1e-4
  config.train.updates = 1
  config.optimizer.warmup = 0
  return config


class Ours:
  """The programs of `train`, given text states instead of prompts."""

  def __init__(self, policy, params, lora, config):
    bound = slots(config)
    self.times = bound.schedule(STEPS)
    key = jax.random.key(0)
    group = jnp.zeros(BATCH, jnp.int32)
    self.noise = initial_noise(key, group, policy.latent_shape, shared=False)
    keys = jax.random.split(jax.random.key(1), 3)
    width, pooled = policy.mmdit.text_width, policy.mmdit.pooled_width
    self.cond = Conditioning(
      text=jax.random.normal(keys[0], (BATCH, TEXT_TOKENS, width)),
      pooled=jax.random.normal(keys[1], (BATCH, pooled)),
      mask=None,  # the network of diffusers has none
    )
    # Not of mean 0, as the loss would be.
    self.advantage = jax.random.normal(keys[2], (BATCH,))

    def roll(base, trainable, noise, cond, times):
      return rollout(
        lambda x, t: policy.velocity(base, trainable, x, t, cond),
        noise,
        times,
        key,
        group,
        transition=bound.transition,
        log_prob=bound.log_prob,
        window_start=START,
        window=WINDOW,
        last_step="ode",
      )

    optimizer = make_optimizer(config.optimizer, updates=1)
    update = make_update(policy, optimizer, bound, config.train, guidance=1)
    self._roll = jax.jit(roll)
    self._update = jax.jit(update, donate_argnums=1)
    self._base = {"mmdit": params}
    # On a device by name, as updates leave it; else both compile twice.
    self._state = jax.device_put(
      init_state(lora, optimizer, seed=0), jax.devices()[0]
    )
    self.trajectory = None

  def rollout(self):
    """Final latents f32[B, h, w, C]."""
    self.trajectory = jax.block_until_ready(
      self._roll(
        self._base, self._state.params, self.noise, self.cond, self.times
      )
    )
    return np.asarray(self.trajectory.final)

  def update(self):
    """(loss, gradient norm) of one optimizer step on the last rollout."""
    path = self.trajectory
    batch = UpdateBatch(
      trajectory=path,
      conditioning=self.cond,
      ids=jnp.zeros((BATCH, TEXT_TOKENS), jnp.int32),
      reward=self.advantage,
      advantage=self.advantage[None, :, None, None],
      keep=jnp.ones(BATCH, bool),
      weight=jnp.ones_like(path.log_prob),
      visits=jnp.arange(WINDOW),
    )
    self._state, metrics = self._update(self._base, self._state, batch)
    return float(metrics["loss"]), float(metrics["grad_norm"])


class Torch:
  """The same loop in torch; reads its inputs and noise from `Ours`."""

  def __init__(self, network, ours, config):
    self._network, self._config = network, config
    self._times = [float(t) for t in ours.times]
    self._noise = _channels_first(ours.noise)
    self._text, self._pooled, self._advantage = (
      torch.tensor(np.asarray(x))
      for x in (ours.cond.text, ours.cond.pooled, ours.advantage)
    )
    ours.rollout()
    path = ours.trajectory
    std = path.std[:, None, None, None, None]
    draws = (path.x[1:] - path.mean) / std
    self._draws = [_channels_first(draw) for draw in draws]
    c = config.optimizer
    self._trained = [p for p in network.parameters() if p.requires_grad]
    self._optimizer = torch.optim.AdamW(
      self._trained,
      lr=c.learning_rate,
      betas=(0.9, c.b2),
      weight_decay=c.weight_decay,
      fused=True,
    )
    self._steps = []

  def rollout(self):
    """Final latents f32[B, h, w, C]."""
    x, steps = self._noise, []
    with torch.inference_mode():
      for k, (t, t_next) in enumerate(
        zip(self._times[:-1], self._times[1:], strict=True)
      ):
        v = self._velocity(x, t)
        slot = k - START
        if 0 <= slot < WINDOW:
          mean, std = self._transition(v, x, t, t_next)
          after = mean + std * self._draws[slot]
          log_prob = _log_prob(after, mean, std)
          steps.append((x, after, t, t_next, log_prob))
        else:
          after = x + v * (t_next - t)
        x = after
    # A gradient may not read what inference mode made.
    self._steps = [
      (x.clone(), after.clone(), t, t_next, log_prob.clone())
      for x, after, t, t_next, log_prob in steps
    ]
    return x.permute(0, 2, 3, 1).numpy()

  def update(self):
    """(loss, gradient norm) of one optimizer step on the last rollout."""
    c, total = self._config.objective, 0.0
    advantage = self._advantage.clamp(-c.adv_clip, c.adv_clip)
    self._optimizer.zero_grad()
    for x, after, t, t_next, old in self._steps:
      mean, std = self._transition(self._velocity(x, t), x, t, t_next)
      ratio = torch.exp(_log_prob(after, mean, std) - old)
      clipped = ratio.clamp(1 - c.clip_range, 1 + c.clip_range)
      loss = torch.maximum(-advantage * ratio, -advantage * clipped)
      loss = loss.mean() / WINDOW
      loss.backward()
      total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(
      self._trained, self._config.optimizer.max_norm
    )
    self._optimizer.step()
    return total, norm.item()

  def _velocity(self, x, t):
    return self._network(
      hidden_states=x,
      timestep=torch.full((BATCH,), 1000.0 * t),
      encoder_hidden_states=self._text,
      pooled_projections=self._pooled,
    ).sample

  def _transition(self, v, x, t, t_next):
    """`transition.flow_sde` for t below 1."""
    g = self._config.transition.noise_level * math.sqrt(t / (1 - t))
    dt = t_next - t
    score = -(x + (1 - t) * v) / t
    return x + (v - 0.5 * g**2 * score) * dt, g * math.sqrt(-dt)


def _channels_first(x):
  return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous()


def _log_prob(after, mean, std):
  """Mean over positions and channels, f32[B]."""
  z = (after - mean) / std
  density = -0.5 * z**2 - math.log(std) - 0.5 * math.log(2 * math.pi)
  return density.mean((1, 2, 3))
