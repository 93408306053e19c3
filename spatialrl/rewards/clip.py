"""Judges `clip_score` and `pick_score`: how well an image fits, by CLIP.

Both read a folder of transformers' `CLIPModel` with its tokenizer beside it.
"""

import dataclasses
import functools

import jax

from spatialrl.convert import folder as folders
from spatialrl.convert import stream
from spatialrl.data import encode
from spatialrl.models import clip_score
from spatialrl.models.clip import CLIPConfig
from spatialrl.parallel import mesh as meshes
from spatialrl.records import Signals
from spatialrl.rewards.batches import in_batches

# Name of a judge -> (its score, what its paper puts before every prompt).
SCORES = {
    "clip_score": (clip_score.clip_score, "A photo depicts "),
    "pick_score": (clip_score.pick_score, ""),
}


class ClipJudge:
  """One of the two scores, as its paper computes it.

  CLIPScore (Hessel et al., arXiv:2104.08718) is published for
  openai/clip-vit-base-patch32, PickScore (Kirstain et al., arXiv:2305.01569)
  for yuvalkirstain/PickScore_v1; other folders of the class work as well.
  """

  def __init__(self, config, mesh, *, name):
    """Loads the model.

    Args:
      config: fields `folder`, `dtype` (of weights and activations) and `batch`
        (images of a call; 0 for all).
      mesh: the mesh in use; every device holds all weights.
      name: a key of `SCORES`.

    Raises:
      ValueError: see `convert.folder.open_model` and `data.encode`.
    """
    meshes.check_divides(mesh, f"rewards.{name}.batch", config.batch)
    whole, self._tokenizer = _open(config.folder)
    replicated = meshes.replicated(mesh)
    self._params = stream.load_whole(
        whole, dtype=config.dtype, placement=lambda path, shape: replicated
    )
    self._sizes = dataclasses.replace(
        whole.sizes,
        text=dataclasses.replace(whole.sizes.text, dtype=config.dtype),
        vision=dataclasses.replace(whole.sizes.vision, dtype=config.dtype),
    )
    self._name, self._batch = name, config.batch
    self._mesh = mesh
    self._score = jax.jit(self._run, out_shardings=replicated)

  def __call__(self, images, prompts):
    """Signals of images f32[B, S, S, 3] in [-1, 1] under B prompts."""
    ids, _ = _ids(self._name, self._tokenizer, self._sizes, prompts)
    score = functools.partial(self._score, self._params)
    return in_batches(score, (images, ids), self._batch, self._mesh)

  def compilations(self):
    """How many programs were compiled; 1 for a steady batch shape."""
    return self._score._cache_size()

  def _run(self, params, images, ids):
    pixels = clip_score.preprocess(images, self._sizes.vision.image)
    score, _ = SCORES[self._name]
    return Signals(scalar=score(self._sizes, params, pixels, ids))


def check(config, prompts, *, name):
  """Refuses a folder that `ClipJudge` would, and reports what it will cut.

  Args:
    config: as for `ClipJudge`.
    prompts: list of str that it will be asked about.
    name: of the judge.
  """
  whole, tokenizer = _open(config.folder)
  _, cut = _ids(name, tokenizer, whole.sizes, prompts)
  encode.report_cuts(cut)


def _open(folder):
  """(convert.folder.Whole of both towers, tokenizer) of a folder."""
  whole = folders.open_model(folder, "clip")
  if not isinstance(whole.sizes, CLIPConfig):
    raise ValueError(
        f"{folder} holds {whole.model.class_name}; CLIPModel is needed, with"
        " both towers."
    )
  return whole, encode.load_tokenizer(folder, "clip")


def _ids(name, tokenizer, sizes, prompts):
  """(i32[B, L] ids, list of encode.Cut); both papers' code cuts, as here."""
  _, prefix = SCORES[name]
  return encode.token_ids(
      tokenizer, [prefix + prompt for prompt in prompts],
      sizes.text.max_tokens, too_long="cut",
  )
