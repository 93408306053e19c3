"""The Inverse Diffuser: a policy that starts from an image and not from noise.

RL-RIG (arXiv:2602.19974) names this part and says that it edits an existing
image; how it does so is ours. The image is re-noised to time s, and

  x_t = (1 - t/s) z' + (t/s) x_s,   x_s = (1 - s) z + s eps

is the straight path from there to the edited latents z', whose velocity is
(x_t - z') / t = (x_s - z') / s. Since the path starts where sampling starts,
nothing of the old picture has to be unlearned on the way. Outside of the
region z' = z is known, so the velocity there is given and not predicted: each
step blends the source in, and the last one lands on it.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp

from spatialrl.data import tokenizers
from spatialrl.io import assets
from spatialrl.models.policy import Policy
from spatialrl.models.text_encoder import TextEncoderConfig
from spatialrl.scenes import instructions


@dataclasses.dataclass(frozen=True)
class Editor:
  """Sizes of an Inverse Diffuser, never weights; called like a `Policy`.

  Attributes:
    policy: Policy whose network sees, beside x_t, the source's latents and the
      region, and whose text encoder reads instructions.
    start: s, the time to which an image is re-noised.
  """

  policy: Policy
  start: float

  def __post_init__(self):
    if not 0 < self.start < 1:
      raise ValueError(f"start is {self.start}; it must be between 0 and 1.")

  @property
  def latent_shape(self):
    """(h, w, C)."""
    return self.policy.latent_shape

  @property
  def remat(self):
    """Whether layers are recomputed in the backward pass."""
    return self.policy.remat

  def init_trainable(self, key, params):
    """What RL trains: a copy of the network's weights."""
    return self.policy.init_trainable(key, params)

  def encode(self, params, ids, mask, source, region):
    """What the network sees of an edit.

    Args:
      params: as `from_policy` gives.
      ids: i32[B, LENGTH] of `instructions.encode`.
      mask: bool[B, LENGTH].
      source: f32[B, h, w, C] latents.
      region: bool[B, h, w].

    Returns:
      Conditioning with `source`.
    """
    cond = self.policy.encode(params, ids, mask)
    seen = jnp.concatenate([source, region[..., None].astype(jnp.float32)], -1)
    return dataclasses.replace(cond, source=seen)

  def velocity(self, params, trainable, x, t, cond):
    """f32[B, h, w, C]: predicted in the region, given outside of it."""
    channels = x.shape[-1]
    seen = jnp.concatenate([x, cond.source], -1)
    v = self.policy.velocity(params, trainable, seen, t, cond)[..., :channels]
    given = (x - cond.source[..., :channels]) / t[:, None, None, None]
    return jnp.where(cond.source[..., channels:] > 0, v, given)

  def renoised(self, source, noise):
    """x_s of source latents, both f32[B, h, w, C]."""
    return (1 - self.start) * source + self.start * noise

  def to_latents(self, params, images):
    """f32[B, S, S, 3] in [-1, 1] -> f32[B, h, w, C]."""
    return self.policy.to_latents(params, images)

  def decode(self, params, latents):
    """f32[B, h, w, C] -> f32[B, S, S, 3]."""
    return self.policy.decode(params, latents)

  def to_json(self):
    """The sizes as a JSON string, as stored beside the weights."""
    return json.dumps({
        "policy": json.loads(self.policy.to_json()), "start": self.start,
    })

  @classmethod
  def from_json(cls, text):
    fields = json.loads(text)
    policy = Policy.from_json(json.dumps(fields["policy"]))
    return cls(policy, fields["start"])


def from_policy(policy, params, start, key):
  """An editor that begins as a policy which ignores the source.

  The embeddings of colours and shapes are the policy's; those of other words
  are new.

  Args:
    policy: Policy.
    params: its weights.
    start: time to which images are re-noised.
    key: PRNG key of what is new.

  Returns:
    (Editor, its weights).
  """
  text = TextEncoderConfig(
      vocabulary=len(instructions.WORDS),
      max_tokens=instructions.LENGTH,
      width=policy.text.width,
      depth=policy.text.depth,
      heads=policy.text.heads,
  )
  channels, seen = policy.latent_shape[-1], 2 * policy.latent_shape[-1] + 1
  known = tokenizers.load().get_vocab()
  old = params["text"]
  words = jax.random.normal(key, (text.vocabulary, text.width))
  for i, word in enumerate(instructions.WORDS):
    if word in known:
      words = words.at[i].set(old["words"][known[word]])
  new_text = old | {
      "words": words,
      "places": old["places"][: text.max_tokens],
      "pool": old["pool"][: text.max_tokens],
  }
  net = params["mmdit"]
  embed, project = net["patch_embed"], net["proj_out"]
  more = seen - channels
  new_net = net | {
      "patch_embed": {
          "kernel": jnp.pad(embed["kernel"], ((0, more), (0, 0))),
          "bias": embed["bias"],
      },
      "proj_out": {
          "kernel": jnp.pad(project["kernel"], ((0, 0), (0, more))),
          "bias": jnp.pad(project["bias"], (0, more)),
      },
  }
  made = dataclasses.replace(policy, text=text, lora=None)
  return Editor(made, start), params | {"text": new_text, "mmdit": new_net}


def load(name):
  """A trained editor: (Editor, weights as numpy arrays).

  Raises:
    ValueError: if the file is missing, cut short or of another model.
  """
  params, metadata = assets.load(name)
  if "editor" not in metadata:
    raise ValueError(f"weights {str(name)!r} are not those of an editor.")
  editor = Editor.from_json(metadata["editor"])
  base = dataclasses.replace(
      editor.policy,
      text=dataclasses.replace(
          editor.policy.text, vocabulary=len(tokenizers.load())
      ),
  )

  def grow(key):
    return from_policy(base, base.init(key), editor.start, key)[1]

  assets.check_shapes(
      params, jax.eval_shape(grow, jax.random.key(0)), str(name)
  )
  return editor, params
