"""The published SpatialScore: Qwen2.5-VL with a reward token and a head.

SpatialScore (arXiv:2602.24233) reads the last state of a reward token behind
image and prompt and maps it to (mu, sigma) of the score. Of the base nothing
is trained: there are adapters on the language model, one row for the reward
token, which stands in for that of the embedding table, and the head. Head and
row follow HPSv3, which that paper's design matches (our inference: it does not
print them, nor the rank of its adapters). `reward_model.py` is the same reward
on a backbone small enough for the embedded world.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.data.qwen_inputs import QwenInputs
from spatialrl.models import lora as loras
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.qwen_vl import QwenVL, QwenVLConfig

PROJECTIONS = (r"layers/(q|k|v|out|gate|up|down)",)


@dataclasses.dataclass(frozen=True)
class SpatialScoreConfig:
  """Sizes of the reward model.

  Attributes:
    backbone: sizes and dtype of the Qwen2.5-VL.
    lora: its adapters; the targets are paths in a QwenVL.
    reward_token: id of the reward token, a row of the embedding table that no
      text uses; the default is the first one behind the published tokenizer.
    head: channels of the head's hidden layers.
  """

  backbone: QwenVLConfig = QwenVLConfig()
  lora: LoRAConfig = LoRAConfig(rank=32, alpha=64.0, targets=PROJECTIONS)
  reward_token: int = 151665
  head: tuple[int, ...] = (1024, 16)

  def __post_init__(self):
    object.__setattr__(self, "head", tuple(self.head))
    if not 0 <= self.reward_token < self.backbone.vocabulary:
      raise ValueError(
          f"reward_token is {self.reward_token}; allowed are ids from 0 to"
          f" {self.backbone.vocabulary - 1}."
      )
    if self.reward_token == self.backbone.image_token:
      raise ValueError(
          f"reward_token is {self.reward_token}, which is the image token."
      )


class Head(nn.Module):
  """f32[B, D] -> (mu f32[B], log sigma f32[B])."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    for i, width in enumerate(self.widths):
      x = nn.relu(nn.Dense(width, name=f"hidden_{i}")(x))
    out = nn.Dense(2, name="out")(x)
    # Bounded, as in `reward_model.RewardModel`.
    return out[:, 0], 4.0 * jnp.tanh(out[:, 1] / 4.0)


def init(config, key):
  """Random weights of the base: a QwenVL without its language model head."""
  network = QwenVL(config.backbone)
  return network.init(key, *_smallest(config), method=_read)["params"]


def init_trainable(config, key, params):
  """What is trained, in float32: {"lora": ..., "token": f32[D], "head": ...}.

  The adapters add nothing at the start, and the token is the mean of the
  embedding table.

  Args:
    config: SpatialScoreConfig.
    key: of the adapters and the head.
    params: the frozen base.

  Raises:
    ValueError: if no layer is a target of the adapters.
  """
  lora_key, head_key = jax.random.split(key)
  with loras.adapted(config.lora):
    states, made = QwenVL(config.backbone).apply(
        {"params": params},
        *_smallest(config),
        method=_read,
        rngs={"params": lora_key},
        mutable=[loras.COLLECTION],
    )
  return {
      "lora": loras.created(made, config.lora),
      "token": jnp.mean(params["words"], axis=0, dtype=jnp.float32),
      "head": Head(config.head).init(head_key, states[:, 0])["params"],
  }


def log_score(config, params, trainable, inputs):
  """(mu f32[B], log sigma f32[B]), what the preference loss takes.

  Args:
    config: SpatialScoreConfig.
    params: the frozen base.
    trainable: as `init_trainable` gives it.
    inputs: QwenInputs with one reward token a row.
  """
  adapters = jax.tree.map(
      lambda w: w.astype(config.backbone.dtype), trainable["lora"]
  )
  reward = (inputs.ids == config.reward_token)[..., None]
  with loras.adapted(config.lora):
    states = QwenVL(config.backbone).apply(
        {"params": params, loras.COLLECTION: adapters},
        inputs,
        reward,
        trainable["token"],
        method=_read,
    )
  state = jnp.sum(jnp.where(reward, states, 0.0), axis=1)
  return Head(config.head).apply({"params": trainable["head"]}, state)


def score(config, params, trainable, inputs):
  """(mu f32[B], sigma f32[B]) of images under prompts; see `log_score`."""
  mu, log_sigma = log_score(config, params, trainable, inputs)
  return mu, jnp.exp(log_sigma)


def _read(network, inputs, reward, token):
  """Last states f32[B, L, D], with `token` where `reward` bool[B, L, 1] is."""
  x = jnp.where(reward, token[None, None], network.embed(inputs))
  return network.states(x, inputs)


def _smallest(config):
  """Arguments of `_read` for an image of one token and the reward token."""
  c = config.backbone
  ids = np.int32([[c.image_token, config.reward_token]])
  inputs = QwenInputs(
      ids=ids,
      mask=np.ones(ids.shape, bool),
      positions=np.zeros((3, *ids.shape), np.int32),
      patches=np.zeros((c.vision.merge**2, c.vision.patch_values), np.float32),
      grids=((c.vision.merge, c.vision.merge),),
  )
  return inputs, ids[..., None] == config.reward_token, jnp.zeros(c.width)
