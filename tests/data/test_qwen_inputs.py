"""What Qwen2.5-VL is given: the processor's numbers, from text and pixels."""

import jax
import numpy as np
import pytest
import tokenizers
from PIL import Image

from spatialrl.data import qwen_inputs

SPECIAL = [
  "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
  "<|image_pad|>",
]
GRID = (4, 6)  # makes 2 x 3 image tokens
CASES = ["io_single", "io_batch_leftpad", "io_batch_rightpad"]
LIMITS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with a tokenizer of bytes and the special tokens alone."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {byte: i for i, byte in enumerate(alphabet)}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(SPECIAL)
  path = tmp_path_factory.mktemp("qwen")
  made.save(str(path / "tokenizer.json"))
  return path


@pytest.fixture(scope="module")
def tokenizer(folder):
  return qwen_inputs.load_tokenizer(folder)


@pytest.mark.parametrize("name", CASES)
def test_positions_are_those_of_transformers(name, golden):
  data = golden(f"models/qwen2_5_vl/{name}.npz")
  ours = qwen_inputs.rope_positions(
    data["input_ids"],
    data["attention_mask"] > 0,
    [tuple(grid) for grid in data["image_grid_thw"][:, 1:]],
    image_token=151,
  )
  assert ours.dtype == np.int32
  np.testing.assert_array_equal(ours, data["position_ids"])


def test_two_images_of_a_row_follow_one_another():
  ids = np.int32([[7, 9, 9, 9, 9, 8, 9, 9, 6]])
  ours = qwen_inputs.rope_positions(
    ids, ids > 0, [(4, 4), (2, 4)], image_token=9
  )
  time, row, column = ours[:, 0].tolist()
  assert time == [0, 1, 1, 1, 1, 3, 4, 4, 6]
  assert row == [0, 1, 1, 2, 2, 3, 4, 4, 6]
  assert column == [0, 1, 2, 1, 2, 3, 4, 5, 6]


def test_images_that_the_text_has_no_room_for_are_refused():
  ids = np.int32([[7, 9, 9, 6]])
  with pytest.raises(ValueError, match="2 image tokens; the grids .* make 6"):
    qwen_inputs.rope_positions(ids, ids > 0, [GRID], image_token=9)


@pytest.mark.parametrize("name", CASES)
def test_patches_are_those_of_transformers(name, golden):
  data = golden(f"models/qwen2_5_vl/{name}.npz")
  ours = []
  for i in range(len(data["image_grid_thw"])):
    image = data[f"image_{i}_u8"][None] / np.float32(127.5) - 1
    ours.append(qwen_inputs.patches(image, image.shape[1:3]))
  np.testing.assert_allclose(
    np.concatenate(ours), data["pixel_values"], atol=1e-5
  )


@pytest.mark.parametrize("size", [(56, 84), (196, 140), (84, 112)])
def test_images_are_resized_as_pillow_does(size, rng):
  coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
  image = Image.fromarray(coarse).resize((96, 72), Image.Resampling.NEAREST)
  resized = image.resize(size[::-1], Image.Resampling.BICUBIC)
  image, resized = (
    np.asarray(x)[None] / np.float32(127.5) - 1 for x in (image, resized)
  )
  ours = jax.jit(lambda x: qwen_inputs.patches(x, size))(image)
  theirs = qwen_inputs.patches(resized, size)
  # Pillow rounds to a level of 256 after each of its two passes.
  level = 1 / 255 / 0.2613
  assert np.abs(ours - theirs).max() < 1.2 * level


def test_a_size_with_part_of_an_image_token_is_refused():
  image = np.zeros((1, 60, 56, 3), np.float32)
  with pytest.raises(ValueError, match="60 x 56; allowed are multiples of 28"):
    qwen_inputs.patches(image, (60, 56))


@pytest.mark.parametrize(
  "size,expected",
  [
    ((84, 112), (84, 112)),
    ((512, 512), (504, 504)),
    ((1024, 1024), (980, 980)),  # 1036 would be too many pixels
    ((1536, 1536), (980, 980)),
    ((720, 1280), (728, 1288)),
    ((32, 32), (56, 56)),
    ((20, 300), (28, 308)),
    ((98, 154), (112, 168)),  # halves are rounded to even
    ((10, 1990), (28, 812)),
  ],
)
def test_sizes_are_those_of_transformers(size, expected):
  assert qwen_inputs.smart_resize(*size, **LIMITS) == expected


def test_extreme_sizes_are_refused():
  with pytest.raises(ValueError, match="10 x 2010; .* 200 at most"):
    qwen_inputs.smart_resize(10, 2010, **LIMITS)


def test_text_image_and_end_in_their_order(tokenizer):
  prompt = "a red cross é"
  ids, mask, positions = qwen_inputs.encode(
    tokenizer, [prompt, "b"], GRID, max_tokens=160, end=(999,)
  )
  assert ids.dtype == np.int32 and mask.dtype == bool
  image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
  row = ids[0, mask[0]].tolist()
  assert row[-1] == 999 and row.count(image) == 6
  at = row.index(image)
  text = tokenizer.decode(row[:at] + row[at + 5 : -1])
  expected = qwen_inputs.TEMPLATE.replace("{prompt}", prompt)
  assert text == expected
  assert mask[1].sum() == mask[0].sum() - len(prompt.encode()) + 1
  assert not mask[1, mask[1].sum() :].any() and not ids[~mask].any()
  np.testing.assert_array_equal(
    positions,
    qwen_inputs.rope_positions(ids, mask, [GRID] * 2, image_token=image),
  )


def test_the_template_is_the_callers(tokenizer):
  template = f"{qwen_inputs.IMAGE}[{{prompt}}]"
  ids, mask, _ = qwen_inputs.encode(
    tokenizer, ["x"], GRID, max_tokens=11, template=template
  )
  assert mask.all()
  assert tokenizer.decode(ids[0, -3:]) == "[x]"
  for bad in (qwen_inputs.IMAGE, "{prompt}", template + "{prompt}"):
    with pytest.raises(ValueError, match="it must hold .* once each"):
      qwen_inputs.encode(
        tokenizer, ["x"], GRID, max_tokens=11, template=bad
      )


def test_a_long_prompt_is_an_error(tokenizer):
  with pytest.raises(ValueError, match="'xy' makes .* max_tokens allows 11"):
    qwen_inputs.encode(
      tokenizer,
      ["x", "xy"],
      GRID,
      max_tokens=11,
      template=f"{qwen_inputs.IMAGE}[{{prompt}}]",
    )


def test_a_prompt_with_a_special_token_is_an_error(tokenizer):
  with pytest.raises(ValueError, match="holds the special token .*im_end"):
    qwen_inputs.encode(tokenizer, ["x<|im_end|>"], GRID, max_tokens=200)


def test_a_folder_without_the_tokenizer_is_named(tmp_path):
  with pytest.raises(ValueError, match="tokenizer.json' does not exist"):
    qwen_inputs.load_tokenizer(tmp_path)
  (tmp_path / "tokenizer.json").write_text('{"model": ')
  with pytest.raises(ValueError, match=r"tokenizer\.json' cannot be read"):
    qwen_inputs.load_tokenizer(tmp_path)
  made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
  made.save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(ValueError, match="has no '<.image_pad.>'"):
    qwen_inputs.load_tokenizer(tmp_path)
