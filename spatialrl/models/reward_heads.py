"""Small heads on a trained reward backbone: scores by aspect, a map of flaws.

Several methods need a judge that says more than one number: ImageDoctor
(arXiv:2510.01010) scores and marks flawed places, IterComp one judge an aspect,
SRUM and PatchDPO a quality of each place, Adv-GRPO a discriminator. The
backbone stays frozen, so the heads of one file serve all of them and cannot
change the score they stand on.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spatialrl.models.reward_model import Backbone

ASPECTS = ("relations", "things", "quality")


class Heads(nn.Module):
  """States of the backbone to scores and flaws.

  Call with the reward token's state f32[B, D] and the patches' f32[B, P, D];
  returns scores f32[B, 3], in the order of ASPECTS, and logits f32[B, P] that a
  patch shows something that contradicts the prompt.
  """

  @nn.compact
  def __call__(self, state, patches):
    scores = []
    for aspect in ASPECTS:
      hidden = nn.Dense(state.shape[-1], name=f"{aspect}_in")(state)
      scores.append(nn.Dense(1, name=f"{aspect}_out")(nn.relu(hidden))[:, 0])
    # A patch is flawed or not in the light of the verdict on the whole.
    whole = jnp.broadcast_to(state[:, None], patches.shape)
    x = jnp.concatenate([patches, whole], axis=-1)
    x = nn.relu(nn.Dense(state.shape[-1], name="flaws_in")(x))
    return jnp.stack(scores, -1), nn.Dense(1, name="flaws_out")(x)[..., 0]


def init(config, key):
  """Random weights of the heads of a backbone of RewardConfig `config`."""
  patches = (config.size // config.patch) ** 2
  state = jnp.zeros((1, config.width))
  return Heads().init(key, state, jnp.zeros((1, patches, config.width)))[
      "params"
  ]


class Discriminator(nn.Module):
  """States of the backbone to how real an image looks, as a whole and by place.

  Call as `Heads`; returns f32[B] and f32[B, P]. Adv-GRPO has one such head on
  the class token of a frozen encoder and one on its patches.
  """

  @nn.compact
  def __call__(self, state, patches):
    logits = []
    for name, x in (("whole", state), ("patch", patches)):
      x = nn.relu(nn.Dense(state.shape[-1], name=f"{name}_in")(x))
      logits.append(nn.Dense(1, name=f"{name}_out")(x)[..., 0])
    return tuple(logits)


def init_discriminator(config, key):
  """Random weights of a Discriminator; arguments as for `init`."""
  state = jnp.zeros((1, config.width))
  return Discriminator().init(key, state, state[:, None])["params"]


def features(config, params, images, ids, mask):
  """Last states of the frozen backbone, what every head here reads.

  Args:
    config: RewardConfig of the backbone.
    params: weights of the reward model whose backbone it is.
    images: f32[B, S, S, 3] in [-1, 1].
    ids: i32[B, L].
    mask: bool[B, L].

  Returns:
    (f32[B, D] of the reward token, f32[B, P, D] of the patches).
  """
  return Backbone(config).apply(
      {"params": params["backbone"]}, images, ids, mask
  )


def read(config, heads, state, patches):
  """Scores by aspect and flaws by place.

  Args:
    config: RewardConfig of the backbone.
    heads: weights as `init` gives.
    state: f32[B, D], as `features` gives, and so is the next.
    patches: f32[B, P, D].

  Returns:
    f32[B, 3] scores in the order of ASPECTS, higher is better, and
    f32[B, S/patch, S/patch] logits of a flaw.
  """
  scores, flaws = Heads().apply({"params": heads}, state, patches)
  return scores, on_grid(config, flaws)


def on_grid(config, values):
  """f32[B, P] of patches, row by row -> f32[B, S/patch, S/patch]."""
  side = config.size // config.patch
  return values.reshape(-1, side, side)


def judge(config, params, heads, images, ids, mask):
  """`read` of the `features` of images; same arguments, same result."""
  return read(config, heads, *features(config, params, images, ids, mask))


def degraded(images, key, *, noise):
  """Images as an unsure generator draws them: blurred, and noisy.

  Args:
    images: f32[B, S, S, 3].
    key: PRNG key.
    noise: largest std of the added noise.

  Returns:
    f32[B, S, S, 3]; an image keeps a random share, up to 0.8, of itself.
  """
  share_key, level_key, noise_key = jax.random.split(key, 3)
  rows = (images.shape[0], 1, 1, 1)
  box = jnp.full((3, 3, 3, 1), 1 / 9)
  blurred = images
  for _ in range(2):
    blurred = jax.lax.conv_general_dilated(
        jnp.pad(blurred, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"),
        box, (1, 1), "VALID", dimension_numbers=("NHWC", "HWOI", "NHWC"),
        feature_group_count=3,
    )
  share = jax.random.uniform(share_key, rows, maxval=0.8)
  level = noise * jax.random.uniform(level_key, rows)
  drawn = jax.random.normal(noise_key, images.shape)
  return share * images + (1 - share) * blurred + level * drawn
