"""Models from configs and from weights files."""

import dataclasses
import json

import jax

from spatialrl.io import assets
from spatialrl.models import autoencoder as autoencoders
from spatialrl.models import reward_heads
from spatialrl.models.autoencoder import AutoencoderConfig
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.mmdit import MMDiTConfig
from spatialrl.models.policy import Policy
from spatialrl.models.reward_model import RewardConfig, init
from spatialrl.models.text_encoder import TextEncoderConfig


def make_policy(config, vocabulary, autoencoder=None):
  """A Policy from its config.

  Args:
    config: fields `size`, `fold`, `prediction`, `width`, `depth`, `heads`,
      `dual_layers`, `learned_positions`, `qk_norm`, `remat`, `max_tokens`,
      `text_depth`.
    vocabulary: number of token ids.
    autoencoder: AutoencoderConfig of its latents; None folds pixels.
  """
  fold = autoencoder.factor if autoencoder else config.fold
  side = config.size // fold
  channels = autoencoder.latents if autoencoder else 3 * fold**2
  return Policy(
      size=config.size,
      fold=fold,
      prediction=config.prediction,
      mmdit=MMDiTConfig(
          width=config.width,
          depth=config.depth,
          heads=config.heads,
          channels=channels,
          dual_layers=config.dual_layers,
          learned_positions=side if config.learned_positions else 0,
          qk_norm=config.qk_norm,
          remat=config.remat,
      ),
      text=TextEncoderConfig(
          vocabulary=vocabulary,
          max_tokens=config.max_tokens,
          width=config.width,
          depth=config.text_depth,
          heads=config.heads,
      ),
      autoencoder=autoencoder,
  )


def new_policy(config, vocabulary):
  """A policy to be trained from scratch, and the weights that stay as they are.

  Args:
    config: as for `make_policy`, and `autoencoder`, its weights file or "".
    vocabulary: number of token ids.

  Returns:
    (Policy, {"autoencoder": numpy arrays}, or {} without one).
  """
  if not config.autoencoder:
    return make_policy(config, vocabulary), {}
  coder, weights = load_autoencoder(config.autoencoder)
  return make_policy(config, vocabulary, coder), {"autoencoder": weights}


def load_autoencoder(name):
  """A trained autoencoder: (AutoencoderConfig, params as numpy arrays)."""
  params, metadata = assets.load(name)
  if "autoencoder" not in metadata:
    raise ValueError(f"weights {name!r} are not those of an autoencoder.")
  config = AutoencoderConfig(**json.loads(metadata["autoencoder"]))
  expected = jax.eval_shape(
      lambda key: autoencoders.init(config, key), jax.random.key(0)
  )
  assets.check_shapes(params, expected, name)
  return config, params


def load_policy(name, lora=None, remat=False):
  """A pretrained policy.

  Args:
    name: path or packaged name of a weights file.
    lora: config with `rank`, `alpha`, `targets` and, if soft tokens are
      trained instead, `soft_tokens`; None for full fine-tuning, as `rank` 0.
    remat: recompute layers in a backward pass, whatever was done when the
      weights were made.

  Returns:
    (Policy, params as numpy arrays).

  Raises:
    ValueError: if the file is missing, cut short or of another model.
  """
  params, metadata = assets.load(name)
  if "policy" not in metadata:
    raise ValueError(f"weights {name!r} are not those of a policy.")
  policy = Policy.from_json(metadata["policy"])
  expected = jax.eval_shape(policy.init, jax.random.key(0))
  assets.check_shapes(params, expected, name)
  adapter = None
  if lora is not None and lora.rank:
    adapter = LoRAConfig(lora.rank, lora.alpha, tuple(lora.targets))
  mmdit = dataclasses.replace(policy.mmdit, remat=remat)
  tokens = 0 if lora is None else lora.get("soft_tokens", 0)
  policy = dataclasses.replace(
      policy, mmdit=mmdit, lora=adapter, soft_tokens=tokens
  )
  return policy, params


def load_reward(name):
  """A trained reward model: (RewardConfig, params as numpy arrays)."""
  params, metadata = assets.load(name)
  if "reward" not in metadata:
    raise ValueError(f"weights {name!r} are not those of a reward model.")
  config = RewardConfig.from_json(metadata["reward"])
  expected = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
  assets.check_shapes(params, expected, name)
  return config, params


def load_heads(name, reward):
  """Trained heads and the backbone that they were trained on.

  Args:
    name: path or packaged name of the heads.
    reward: the same of the reward model.

  Returns:
    (RewardConfig, params of the reward model, params of the heads).

  Raises:
    ValueError: also where the heads were trained on another reward model.
  """
  config, params = load_reward(reward)
  heads, metadata = assets.load(name)
  if "heads" not in metadata:
    raise ValueError(f"weights {name!r} are not those of heads.")
  if metadata["reward_digest"] != assets.digest(reward):
    raise ValueError(
        f"weights {name!r} were trained on another reward model than"
        f" {reward!r}; name the file of their own."
    )
  expected = jax.eval_shape(
      lambda key: reward_heads.init(config, key), jax.random.key(0)
  )
  assets.check_shapes(heads, expected, name)
  return config, params, heads


def load_trained(name, policy, params, base=None):
  """What an online run trained: adapters or MMDiT weights.

  Args:
    name: path of its `trained.safetensors`, or "" for the base itself.
    policy: Policy.
    params: the base weights.
    base: the file that they come from, if they come from one.

  Returns:
    nested dict of numpy arrays, or None for "".

  Raises:
    ValueError: where they are of another model, were trained on another base,
      or are adapters of another scale, which their shapes do not tell.
  """
  if not name:
    return None
  trained, metadata = assets.load(name)
  of_base = metadata.get("base_digest")
  if base and of_base and of_base != assets.digest(base):
    raise ValueError(
        f"weights {name!r} were trained on {metadata['init']!r}, which is"
        f" another base than {base!r}."
    )
  if policy.lora is not None and "config" in metadata:
    alpha = json.loads(metadata["config"])["lora"]["alpha"]
    if alpha != policy.lora.alpha:
      raise ValueError(
          f"lora.alpha is {policy.lora.alpha}; {name!r} was trained with"
          f" {alpha}."
      )
  expected = jax.eval_shape(policy.init_trainable, jax.random.key(0), params)
  assets.check_shapes(trained, expected, name)
  return trained
