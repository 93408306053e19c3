"""How well images fit their prompts, by CLIP's two towers.

Pure functions of a CLIP network, differentiable in the image.
"""

import jax
import jax.numpy as jnp
import numpy as np

from spatialrl.models.clip import CLIP

# Of the channels of CLIP's training images in [0, 1].
_MEAN = np.float32([[[[0.48145466, 0.4578275, 0.40821073]]]])
_STD = np.float32([[[[0.26862954, 0.26130258, 0.27577711]]]])


def preprocess(images, side=224):
  """Images of a policy as the image tower takes them.

  The shorter side is resized to `side` by an antialiased cubic (a = -0.5, as
  PIL's), the centre is cut out, and the channels are normalised. PIL takes
  8-bit images and rounds after either axis, which has no gradient; here
  nothing is rounded. Before the normalisation the two differ by at most 1.1
  of 255, on average by 0.3, on 8-bit noise and on smooth images, enlarged
  from 100 pixels a side or reduced from 1024.

  Args:
    images: f32[B, H, W, 3]; values outside [-1, 1] are clipped.
    side: S of the tower, pixels.

  Returns:
    f32[B, S, S, 3].
  """
  batch, height, width, channels = images.shape
  shorter = min(height, width)
  rows, columns = side * height // shorter, side * width // shorter
  pixels = jnp.clip((images + 1.0) / 2.0, 0.0, 1.0)
  # A cubic overshoots at edges; like PIL, cut that off after either axis.
  for shape in (
      (batch, height, columns, channels),
      (batch, rows, columns, channels),
  ):
    pixels = jax.image.resize(pixels, shape, method="cubic")
    pixels = jnp.clip(pixels, 0.0, 1.0)
  top, left = (rows - side) // 2, (columns - side) // 2
  pixels = pixels[:, top : top + side, left : left + side]
  return (pixels - _MEAN) / _STD


def cosine(sizes, params, pixels, ids, mask=None):
  """Cosine of every image with its own text.

  Args:
    sizes: CLIPConfig.
    params: parameters of CLIP.
    pixels: f32[B, S, S, 3], as `preprocess` gives them.
    ids: i32[B, L].
    mask: bool[B, L], True at real tokens; None for all. With padding behind
      the text it changes nothing, for the tower is causal.

  Returns:
    f32[B].
  """
  image, text, _ = CLIP(sizes).apply({"params": params}, pixels, ids, mask)
  return (image * text).sum(-1)


def clip_score(sizes, params, pixels, ids, mask=None, *, weight=2.5):
  """CLIPScore, w max(cos, 0) (Hessel et al., arXiv:2104.08718, section 3).

  The published scores are those of ViT-B/32 with "A photo depicts" before
  every text; both are the caller's to choose.

  Args:
    sizes: as for `cosine`, and so are params, pixels, ids and mask.
    weight: w; 2.5 stretches the usual range to about [0, 1].

  Returns:
    f32[B].
  """
  return weight * jnp.maximum(cosine(sizes, params, pixels, ids, mask), 0.0)


def pick_score(sizes, params, pixels, ids, mask=None):
  """PickScore, exp(logit scale) cos (Kirstain et al., arXiv:2305.01569).

  As yuvalkirstain/PickScore computes it, with a CLIP ViT-H/14 tuned on
  preferences; usual values are about 20.

  Args:
    sizes: as for `cosine`, and so are params, pixels, ids and mask.

  Returns:
    f32[B].
  """
  scale = jnp.exp(jnp.asarray(params["logit_scale"], jnp.float32))
  return scale * cosine(sizes, params, pixels, ids, mask)
