"""The embedded policy: text encoder, MMDiT and image codec as pure functions.

Latents are those of an AutoencoderKL, or the image folded by `fold` x `fold`
pixels into channels; either way a latent position is one token.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp

from spatialrl.models import autoencoder as autoencoders
from spatialrl.models import lora as loras
from spatialrl.models.autoencoder import AutoencoderConfig
from spatialrl.models.mmdit import MMDiT, MMDiTConfig
from spatialrl.models.text_encoder import TextEncoder, TextEncoderConfig
from spatialrl.records import Conditioning

_MIN_TIME = 0.05  # the velocity of a predicted image divides by t
_SMALL = 0.02  # std of soft tokens at the start
PREDICTIONS = ("velocity", "image")


@dataclasses.dataclass(frozen=True)
class Policy:
  """A text-to-image flow model; holds sizes, never weights.

  Attributes:
    size: pixels a side of the images.
    fold: pixels a side that make one latent position; the factor of the
      autoencoder where there is one.
    prediction: "velocity", or "image": the network predicts x0 and the
      velocity is (x - x0) / t, which a network narrower than its patches can
      represent (Li and He, arXiv:2511.13720).
    mmdit: sizes of the velocity network.
    text: sizes of the text encoder.
    autoencoder: sizes of the AutoencoderKL, or None for folded pixels.
    lora: adapters of the velocity network, or None for full fine-tuning.
    soft_tokens: text tokens before every prompt that are trained instead of
      weights; 0 for none.
  """

  size: int
  fold: int
  prediction: str
  mmdit: MMDiTConfig
  text: TextEncoderConfig
  autoencoder: AutoencoderConfig | None = None
  lora: loras.LoRAConfig | None = None
  soft_tokens: int = 0

  def __post_init__(self):
    if self.size % self.fold:
      raise ValueError(
          f"fold is {self.fold}; it must divide the image size {self.size}."
      )
    if self.prediction not in PREDICTIONS:
      raise ValueError(
          f"prediction is {self.prediction!r}; allowed are {PREDICTIONS}."
      )
    coder = self.autoencoder
    if coder and self.fold != coder.factor:
      raise ValueError(
          f"fold is {self.fold}; {coder.factor} needed for the autoencoder."
      )
    channels = coder.latents if coder else 3 * self.fold**2
    if self.mmdit.channels != channels:
      raise ValueError(
          f"channels is {self.mmdit.channels}; {channels} needed for"
          f" {'the autoencoder' if coder else f'fold {self.fold}'}."
      )

  @property
  def latent_shape(self):
    """(h, w, C)."""
    side = self.size // self.fold
    return side, side, self.mmdit.channels

  @property
  def family(self):
    """Key of `partition.RULES`."""
    return "scenes"

  @property
  def remat(self):
    """Whether layers are recomputed in the backward pass."""
    return self.mmdit.remat

  def init(self, key):
    """Random weights: {"text": ..., "mmdit": ...[, "autoencoder": ...]}."""
    text_key, net_key, coder_key = jax.random.split(key, 3)
    ids = jnp.zeros((1, self.text.max_tokens), jnp.int32)
    mask = jnp.ones(ids.shape, bool)
    text = TextEncoder(self.text).init(text_key, ids, mask)["params"]
    cond = self.encode({"text": text}, ids, mask)
    x, t = jnp.zeros((1, *self.latent_shape)), jnp.ones((1,))
    net = MMDiT(self.mmdit).init(
        net_key, x, t, cond.text, cond.pooled, cond.mask
    )
    params = {"text": text, "mmdit": net["params"]}
    if self.autoencoder:
      coder = autoencoders.init(self.autoencoder, coder_key)
      params["autoencoder"] = coder
    return params

  def init_trainable(self, key, params):
    """What RL trains: adapters, soft tokens, or a copy of the MMDiT's weights.
    """
    if self.soft_tokens:
      shape = self.soft_tokens, self.text.width
      return {"tokens": _SMALL * jax.random.normal(key, shape)}
    if self.lora is None:
      return jax.tree.map(jnp.array, params["mmdit"])
    cond = self.encode(
        params, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    )
    x, t = jnp.zeros((1, *self.latent_shape)), jnp.ones((1,))
    with loras.adapted(self.lora):
      variables = MMDiT(self.mmdit).init(
          key, x, t, cond.text, cond.pooled, cond.mask
      )
    return loras.created(variables, self.lora)

  def start(self, params):
    """Where full fine-tuning starts; see `lora.start`."""
    if self.soft_tokens:
      raise ValueError(
          f"lora.soft_tokens is {self.soft_tokens}; it must be 0 where weights"
          " are compared with their start."
      )
    return loras.start(params["mmdit"], self.lora)

  def encode(self, params, ids, mask):
    """Text states: i32[B, L], bool[B, L] -> Conditioning."""
    text, pooled = TextEncoder(self.text).apply(
        {"params": params["text"]}, ids, mask
    )
    return Conditioning(text=text, pooled=pooled, mask=mask)

  def encode_empty(self, params, cond):
    """Conditioning of the empty prompt, shaped like `cond`, for guidance."""
    ids = jnp.zeros(cond.mask.shape, jnp.int32)
    return self.encode(params, ids, jnp.zeros_like(cond.mask))

  def velocity(
      self, params, trainable, x, t, cond, *, words=None, blocks=()
  ):
    """v = noise - image at x_t.

    Args:
      params: the frozen base.
      trainable: what `init_trainable` gives; None for the base itself, which
        is the reference policy.
      x: f32[B, h, w, C].
      t: f32[B], 1 = noise.
      cond: Conditioning of the B prompts.
      words: bool[B, L], words to map; None for none.
      blocks: indices of the MMDiT blocks whose attention is read.

    Returns:
      f32[B, h, w, C]; with `words` also the map f32[B, h, w] of mean 1, how
      much each position looks at them.
    """
    if self.soft_tokens and trainable is not None:
      cond, words = _prefixed(trainable["tokens"], cond, words)
      trainable = None
    variables, adapters = loras.bind(params["mmdit"], trainable, self.lora)
    with loras.adapted(adapters):
      out = MMDiT(self.mmdit).apply(
          variables, x, t, cond.text, cond.pooled, cond.mask, words, blocks
      )
    out, seen = (out, None) if words is None else out
    if self.prediction == "image":
      out = (x - out) / jnp.maximum(t, _MIN_TIME)[:, None, None, None]
    return out if words is None else (out, seen)

  def to_latents(self, params, images):
    """f32[B, size, size, 3] in [-1, 1] -> f32[B, h, w, C]."""
    if self.autoencoder:
      coder = params["autoencoder"]
      return autoencoders.encode(self.autoencoder, coder, images)
    side, fold = self.size // self.fold, self.fold
    x = images.reshape(-1, side, fold, side, fold, 3)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *self.latent_shape)

  def decode(self, params, latents):
    """f32[B, h, w, C] -> f32[B, size, size, 3], clipped to [-1, 1]."""
    side, fold = self.size // self.fold, self.fold
    if self.autoencoder:
      coder = params["autoencoder"]
      images = autoencoders.decode(self.autoencoder, coder, latents)
    else:
      x = latents.reshape(-1, side, side, fold, fold, 3)
      x = x.transpose(0, 1, 3, 2, 4, 5)
      images = x.reshape(-1, self.size, self.size, 3)
    return jnp.clip(images, -1.0, 1.0)

  def to_json(self):
    """The sizes as a JSON string, as stored beside the weights."""
    return json.dumps(dataclasses.asdict(self), sort_keys=True)

  @classmethod
  def from_json(cls, text):
    """The inverse of `to_json`; adapters are not part of a stored base."""
    fields = json.loads(text)
    fields["mmdit"] = MMDiTConfig(**fields["mmdit"])
    fields["text"] = TextEncoderConfig(**fields["text"])
    if fields.get("autoencoder"):
      fields["autoencoder"] = AutoencoderConfig(**fields["autoencoder"])
    fields["lora"] = None
    return cls(**fields)


def _prefixed(tokens, cond, words):
  """Soft tokens f32[n, D] before the text of every prompt (SoftREPA).

  They enter as states of the text encoder do, at the network's input alone;
  the paper has some for each of the first layers.
  """
  shape = cond.mask.shape[0], len(tokens)
  tokens = jnp.broadcast_to(tokens, (*shape, tokens.shape[-1]))
  cond = dataclasses.replace(
      cond,
      text=jnp.concatenate([tokens, cond.text], 1),
      mask=jnp.concatenate([jnp.ones(shape, bool), cond.mask], 1),
  )
  if words is not None:
    words = jnp.concatenate([jnp.zeros(shape, bool), words], 1)
  return cond, words
