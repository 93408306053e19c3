"""SD3.5 or FLUX.1 with its image codec, as the policy that RL trains.

`policy.Policy` carries its own text encoder; here text states were computed
beforehand (`data.encode`), so that no encoder sits in memory.
"""

import dataclasses

import jax
import jax.numpy as jnp

from spatialrl.models import autoencoder as autoencoders
from spatialrl.models import lora as loras
from spatialrl.models.autoencoder import AutoencoderConfig
from spatialrl.models.flux import Flux, FluxConfig
from spatialrl.models.mmdit import MMDiT, MMDiTConfig
from spatialrl.records import Conditioning

_FLUX_PATCH = 2  # latent positions a side of a token, see `flux.pack`


@dataclasses.dataclass(frozen=True)
class DiffusionPolicy:
  """A text-to-image flow model; holds sizes, never weights.

  Base weights are {"network", "autoencoder", "empty"}; "empty" holds `text`
  [1, L, D] and `pooled` [1, P], the states of the empty prompt.

  Attributes:
    size: pixels a side of the images.
    network: sizes of the velocity network.
    autoencoder: sizes of the AutoencoderKL.
    distilled_guidance: the scale that FLUX.1-dev is told, 3.5 as a rule; None
      for a network that takes none.
    lora: adapters of the network, or None for full fine-tuning.
  """

  size: int
  network: MMDiTConfig | FluxConfig
  autoencoder: AutoencoderConfig
  distilled_guidance: float | None = None
  lora: loras.LoRAConfig | None = None

  def __post_init__(self):
    is_flux = self.family == "flux"
    patch = _FLUX_PATCH if is_flux else self.network.patch
    pixels = self.autoencoder.factor * patch
    if self.size < 1 or self.size % pixels:
      raise ValueError(
          f"size is {self.size}; allowed are multiples of {pixels}, the pixels"
          " a side of one token."
      )
    if self.network.channels != self.autoencoder.latents:
      raise ValueError(
          f"the network takes {self.network.channels} channels; the"
          f" autoencoder makes {self.autoencoder.latents}."
      )
    takes = is_flux and self.network.guidance
    if takes != (self.distilled_guidance is not None):
      raise ValueError(
          f"distilled_guidance is {self.distilled_guidance}; the network needs"
          f" {'a scale, such as 3.5' if takes else 'None, for it takes none'}."
      )

  @property
  def latent_shape(self):
    """(h, w, C)."""
    side = self.size // self.autoencoder.factor
    return side, side, self.network.channels

  @property
  def family(self):
    """Key of `partition.RULES`."""
    return "flux" if isinstance(self.network, FluxConfig) else "sd3"

  @property
  def remat(self):
    """Whether layers are recomputed in the backward pass."""
    return self.network.remat

  def init(self, key, tokens):
    """Random weights, as if the empty prompt had so many tokens."""
    net_key, coder_key = jax.random.split(key)
    empty = {
        "text": jnp.zeros((1, tokens, self.network.text_width)),
        "pooled": jnp.zeros((1, self.network.pooled_width)),
    }
    made = self._made({}, empty, net_key, "params")
    return {
        "network": made["params"],
        "autoencoder": autoencoders.init(self.autoencoder, coder_key),
        "empty": empty,
    }

  def init_trainable(self, key, params):
    """What RL trains: fresh adapters, or a copy of the network's weights."""
    if self.lora is None:
      return jax.tree.map(jnp.array, params["network"])
    variables = {"params": params["network"]}
    with loras.adapted(self.lora):
      made = self._made(variables, params["empty"], key, loras.COLLECTION)
    return loras.created(made, self.lora)

  def _made(self, variables, empty, key, collection):
    """The variables that the network makes for itself, run on one image."""
    # A single image cannot be split over a mesh, as kernels of attention would.
    network = dataclasses.replace(self.network, attention="xla")
    _, made = dataclasses.replace(self, network=network)._apply(
        variables,
        jnp.zeros((1, *self.latent_shape)),
        jnp.ones((1,)),
        self.encode(None, empty["text"], empty["pooled"]),
        rngs={"params": key},
        mutable=[collection],
    )
    return made

  def start(self, params):
    """Where full fine-tuning starts; see `lora.start`."""
    return loras.start(params["network"], self.lora)

  def encode(self, params, text, pooled):
    """Wraps text states: [B, L, D], [B, P] -> Conditioning.

    Padding is part of what these networks attend to, so all is real.
    """
    del params
    mask = jnp.ones(text.shape[:2], bool)
    return Conditioning(text=text, pooled=pooled, mask=mask)

  def encode_empty(self, params, cond):
    """Conditioning of the empty prompt, shaped like `cond`, for guidance."""
    empty = params["empty"]
    return self.encode(
        params,
        jnp.broadcast_to(empty["text"], cond.text.shape),
        jnp.broadcast_to(empty["pooled"], cond.pooled.shape),
    )

  def velocity(
      self, params, trainable, x, t, cond, *, words=None, blocks=()
  ):
    """v = noise - image at x_t; see `policy.Policy.velocity`.

    Args:
      params: the frozen base.
      trainable: as `init_trainable` gives it; None for the base itself.
      x: f32[B, h, w, C].
      t: f32[B], 1 = noise.
      cond: Conditioning of the B prompts.
      words: bool[B, L], words to map; None for none.
      blocks: indices of the blocks whose attention is read.

    Returns:
      f32[B, h, w, C]; with `words` also the map f32[B, h, w] of mean 1.
    """
    variables, adapters = loras.bind(params["network"], trainable, self.lora)
    with loras.adapted(adapters):
      return self._apply(variables, x, t, cond, words=words, blocks=blocks)

  def to_latents(self, params, images):
    """f32[B, size, size, 3] in [-1, 1] -> f32[B, h, w, C]."""
    return autoencoders.encode(self.autoencoder, params["autoencoder"], images)

  def decode(self, params, latents):
    """f32[B, h, w, C] -> f32[B, size, size, 3], clipped to [-1, 1]."""
    images = autoencoders.decode(
        self.autoencoder, params["autoencoder"], latents
    )
    return jnp.clip(images, -1.0, 1.0)

  def _apply(
      self, variables, x, t, cond, *, words=None, blocks=(), rngs=None,
      mutable=False,
  ):
    """The network itself; without a mask, for all of the text is real."""
    network = (Flux if self.family == "flux" else MMDiT)(self.network)
    given = {"words": words, "blocks": blocks}
    if self.distilled_guidance is not None:
      given["guidance"] = jnp.full(t.shape, self.distilled_guidance)
    return network.apply(
        variables, x, t, cond.text, cond.pooled, **given, rngs=rngs,
        mutable=mutable,
    )
