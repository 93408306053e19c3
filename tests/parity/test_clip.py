"""CLIP against saved models, transformers and PIL."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from spatialrl.convert import clip as converter
from spatialrl.models import clip, clip_score
from tests.parity import _folders
from tests.parity._folders import near

FOLDERS = ("clip_gelu", "clip_quickgelu")
TEXT = {
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "hidden_act": "gelu",
    "projection_dim": 7,  # CLIPModel does not go by it
    "bos_token_id": 58,
    "eos_token_id": 59,
}
VISION = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 7,
}


@pytest.fixture(params=FOLDERS)
def case(request, golden):
  """(sizes, params, arrays) of each saved model."""
  arrays = golden(f"models/{request.param}/io_0.npz")
  return *_folders.load(converter, request.param), arrays


def test_every_tensor_has_its_place(case):
  sizes, params, arrays = case
  wanted = jax.eval_shape(
      clip.CLIPText(sizes).init, jax.random.key(0), arrays["input_ids"]
  )
  assert jax.tree.map(np.shape, params) == jax.tree.map(
      np.shape, wanted["params"]
  )


def test_every_output_of_the_saved_models(case):
  sizes, params, arrays = case
  found = converter.outputs(sizes, params, arrays)
  names = set(arrays) - {"input_ids", "attention_mask"}
  assert len(names) == 8 and names <= set(found)
  for name in names:
    near(found[name], arrays[name])


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_activations_in_bfloat16(stored, golden):
  arrays = golden("models/clip_gelu/io_0.npz")
  sizes, params = _folders.load(converter, "clip_gelu")
  sizes = dataclasses.replace(sizes, dtype="bfloat16")
  params = jax.tree.map(lambda x: jnp.asarray(x, stored), params)
  encode = jax.jit(clip.conditioning, static_argnums=0)
  found = encode(sizes, params, arrays["input_ids"])
  for ours, name in zip(found, ("hidden_state_2", "text_embeds"), strict=True):
    assert ours.dtype == np.float32
    near(ours, arrays[name], 5e-2)
  np.testing.assert_array_equal(found[0], found[0].astype("bfloat16"))


def test_images_in_bfloat16(rng):
  sizes = clip.CLIPVisionConfig(
      width=16, hidden=24, depth=2, heads=2, projection=8, image=12, patch=4
  )
  half = dataclasses.replace(sizes, dtype="bfloat16")
  pixels = rng.normal(size=(2, 12, 12, 3)).astype(np.float32)
  params = jax.jit(clip.CLIPVision(sizes).init)(jax.random.key(0), pixels)
  wanted = jax.jit(clip.CLIPVision(sizes).apply)(params, pixels)
  for kind in ("float32", "bfloat16"):
    stored = jax.tree.map(lambda x, kind=kind: x.astype(kind), params)
    found = jax.jit(clip.CLIPVision(half).apply)(stored, pixels)
    for ours, theirs in zip(found, wanted, strict=True):
      assert ours.dtype == np.float32
      near(ours, theirs, 5e-2)
    np.testing.assert_array_equal(found[0], found[0].astype("bfloat16"))


def test_the_end_of_a_text():
  ids = jnp.array([[9, 4, 3, 7, 7], [9, 7, 2, 7, 1], [4, 2, 3, 3, 3]])
  # The first 7; the largest id where the config says 2; 0 without an end.
  assert clip.end_positions(ids, 7).tolist() == [3, 1, 0]
  assert clip.end_positions(ids, 2).tolist() == [0, 0, 0]
  assert clip.end_positions(ids[:, 1:], 2).tolist() == [2, 0, 1]


def test_more_tokens_than_places_are_refused(case):
  sizes, params, _ = case
  ids = jnp.zeros((1, sizes.max_tokens + 1), jnp.int32)
  with pytest.raises(ValueError, match="25 tokens; max_tokens allows 24"):
    clip.conditioning(sizes, params, ids)


def test_an_image_of_another_size_is_refused():
  sizes = clip.CLIPVisionConfig(image=12, patch=4)
  pixels = jnp.zeros((1, 12, 16, 3))
  with pytest.raises(ValueError, match="12 x 16; the tower takes 12 x 12"):
    jax.eval_shape(clip.CLIPVision(sizes).init, jax.random.key(0), pixels)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel.*allowed is"),
        ({}, "CLIPTextModel"),
        ({"architectures": ["CLIPTextModel"], "hidden_act": "x"}, "quick_gelu"),
        (
            {"architectures": ["CLIPTextModel"], "num_attention_heads": 5},
            "heads is 5; it must divide width 512",
        ),
    ],
)
def test_other_configs_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    converter.read_config(fields)


@pytest.mark.parametrize("height, width", [(512, 512), (100, 100), (60, 91)])
@pytest.mark.parametrize("kind", ["noise", "stripes"])
def test_images_are_resized_as_pil_does(rng, height, width, kind):
  image = rng.integers(0, 256, (height, width, 3), np.uint8)
  if kind == "stripes":  # where a cubic overshoots
    image[:, ::5], image[::3] = 255, 0
  ours = jax.jit(clip_score.preprocess)(image[None] / np.float32(127.5) - 1)
  shorter = min(height, width)
  size = 224 * width // shorter, 224 * height // shorter
  theirs = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
  left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
  theirs = theirs.crop((left, top, left + 224, top + 224))
  mean = [0.48145466, 0.4578275, 0.40821073]
  std = [0.26862954, 0.26130258, 0.27577711]
  ours = 255 * (np.asarray(ours[0]) * std + mean)
  difference = np.abs(ours - np.asarray(theirs))
  assert difference.max() < 1.1 and difference.mean() < 0.35


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
  """(folder, torch model) of a random CLIPModel whose scale is 5."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  config = transformers.CLIPConfig(
      text_config=TEXT, vision_config=VISION, projection_dim=10
  )
  model = transformers.CLIPModel(config).eval()
  with torch.no_grad():
    for value in model.parameters():
      value.add_(0.2 * torch.randn_like(value))
    model.logit_scale.fill_(np.log(5.0))
  folder = tmp_path_factory.mktemp("clip")
  model.save_pretrained(folder)
  return folder, model


@pytest.fixture
def pairs(rng):
  """Pixels f32[4, 12, 12, 3], ids i32[4, 12] and mask bool[4, 12]."""
  ids = rng.integers(1, 58, (4, 12))
  length = np.array([12, 5, 7, 2])[:, None]
  place = np.arange(12)[None]
  ids = np.where(place < length - 1, ids, 59)
  pixels = rng.normal(size=(4, 12, 12, 3)).astype(np.float32)
  return pixels, ids.astype(np.int32), place < length


def test_both_towers(towers, pairs):
  import torch

  folder, model = towers
  pixels, ids, mask = pairs
  sizes, params = _folders.load(converter, folder)
  arrays = {"pixel_values": pixels.transpose(0, 3, 1, 2), "input_ids": ids}
  found = converter.outputs(sizes, params, arrays)
  with torch.no_grad():
    wanted = model(**{k: torch.tensor(v) for k, v in arrays.items()})
  for name in found:
    near(found[name], getattr(wanted, name))
  cosine = np.diag(wanted.logits_per_image) / 5
  assert cosine.min() < 0 < cosine.max()

  @jax.jit
  def scores(*inputs):
    scores = clip_score.clip_score, clip_score.pick_score
    return [score(sizes, params, *inputs) for score in scores]

  published, pick = scores(pixels, ids, mask)
  near(published, 2.5 * cosine.clip(0))
  near(pick, 5 * cosine)


def test_the_gradient_in_the_pixels(towers, pairs):
  import torch

  folder, model = towers
  pixels, ids, mask = pairs
  sizes, params = _folders.load(converter, folder)
  theirs = torch.tensor(pixels.transpose(0, 3, 1, 2), requires_grad=True)
  wanted = model(pixel_values=theirs, input_ids=torch.tensor(ids))
  wanted.logits_per_image.diagonal().sum().backward()
  ours = jax.jit(
      jax.grad(lambda x: clip_score.pick_score(sizes, params, x, ids).sum())
  )(pixels)
  near(ours.transpose(0, 3, 1, 2), theirs.grad, 1e-4)


@pytest.mark.parametrize(
    "kind", ["CLIPTextModel", "CLIPVisionModelWithProjection"]
)
def test_a_tower_saved_alone(kind, pairs, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  pixels, ids, _ = pairs
  model = getattr(transformers, kind)
  fields = VISION if "Vision" in kind else TEXT
  model = model(model.config_class(**fields)).eval()
  model.save_pretrained(tmp_path)
  name, value = "input_ids", ids
  if "Vision" in kind:
    name, value = "pixel_values", pixels.transpose(0, 3, 1, 2)
  found = converter.outputs(
      *_folders.load(converter, tmp_path), {name: value}
  )
  with torch.no_grad():
    wanted = model(**{name: torch.tensor(value)})
  pooled = "image_embeds" if "Vision" in kind else "pooler_output"
  for output in ("last_hidden_state", pooled):
    near(found[output], wanted[output])


# Counts are those of transformers' classes on torch's meta device.
_L = {"width": 768, "heads": 12, "hidden": 3072, "projection": 768}
_G = {"width": 1280, "heads": 20, "hidden": 5120, "depth": 32}
_H = {"width": 1024, "heads": 16, "hidden": 4096, "depth": 24}


@pytest.mark.parametrize(
    "sizes, count",
    [
        (clip.CLIPTextConfig(**_L), 123_650_304),
        (clip.CLIPTextConfig(**_L | {"projection": 0}), 123_060_480),
        (clip.CLIPTextConfig(**_G, projection=1280), 694_659_840),
        (
            clip.CLIPConfig(
                clip.CLIPTextConfig(**_H, projection=1024),
                clip.CLIPVisionConfig(
                    **_G | {"heads": 16}, projection=1024, patch=14
                ),
            ),
            986_109_441,
        ),
    ],
    ids=["sd3-l", "flux-l", "sd3-g", "pickscore-h"],
)
def test_sizes_of_the_published_models(sizes, count):
  ids, pixels = jnp.zeros((1, 77), jnp.int32), jnp.zeros((1, 224, 224, 3))
  both = isinstance(sizes, clip.CLIPConfig)
  network = clip.CLIP(sizes) if both else clip.CLIPText(sizes)
  inputs = (pixels, ids) if both else (ids,)
  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count
  entries = converter.table(sizes)
  assert sum(int(np.prod(entry.shape)) for entry in entries) == count
