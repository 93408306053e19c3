"""Prompts to token ids to arrays to a cache folder, and back."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.data import encode
from spatialrl.data.cache import Cache, Writer
from tests.data import _tokenizers

PROMPTS = ["red cat", "", "a red hat", "cat", "dog"]
LONG = "red cat and dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """{"clip", "clip_g", "t5"} -> folder of its tokenizer."""
  root = tmp_path_factory.mktemp("tokenizers")
  return {
      "clip": _tokenizers.clip(root / "clip"),
      "clip_g": _tokenizers.clip(root / "clip_g", pad="!"),
      "t5": _tokenizers.t5(root / "t5"),
  }


@pytest.fixture
def encoders(folders):
  """Encoder of CLIP and of T5 whose states are random rows for each id."""
  made = []
  for kind, length, width, size in (
      ("clip", 12, 4, _tokenizers.CLIP_SIZE),
      ("t5", 9, 6, _tokenizers.T5_SIZE),
  ):
    table = np.random.default_rng(width).normal(size=(size, width))
    table = jnp.asarray(table, jnp.float32)

    def apply(ids, table=table):
      assert ids.shape[0] == 2
      return table[ids], table[ids].sum(1)

    tokenizer = encode.load_tokenizer(folders[kind], kind)
    made.append(encode.Encoder(tokenizer, length, apply))
  return made


@pytest.fixture
def fill(encoders, tmp_path):
  """Encodes prompts into one folder, by default two a batch, three a shard."""

  def call(prompts, **changes):
    settings = {
        "encoders": encoders, "join": "flux", "model": "one", "batch": 2,
        "shard": 3, **changes,
    }
    return encode.encode_prompts(tmp_path / "cache", prompts, **settings)

  return call


def test_ids_are_those_of_transformers(folders):
  prompts = [*PROMPTS, LONG]
  for name, folder in folders.items():
    tokenizer = encode.load_tokenizer(folder, name.split("_")[0])
    ids, cut = encode.token_ids(tokenizer, prompts, 9, too_long="cut")
    wanted = tokenizer(
        prompts, padding="max_length", max_length=9, truncation=True
    )["input_ids"]
    assert ids.dtype == np.int32 and ids.tolist() == wanted
    assert [c.prompt for c in cut] == [LONG]
    assert cut[0].removed and LONG.replace(" ", "").endswith(
        cut[0].removed.replace(" ", "")
    )


def test_padding_is_that_of_the_folder(folders):
  pads = {"clip": 56, "clip_g": 0, "t5": 0}
  for name, pad in pads.items():
    tokenizer = encode.load_tokenizer(folders[name], name.split("_")[0])
    ids, _ = encode.token_ids(tokenizer, [""], 6)
    assert ids[0, -1] == pad


@pytest.mark.parametrize(
    "kind, file", [("clip", "merges.txt"), ("t5", "tokenizer.json")]
)
def test_a_missing_tokenizer_file_is_named(folders, tmp_path, kind, file):
  for path in folders[kind].iterdir():
    if path.name != file:
      (tmp_path / path.name).write_bytes(path.read_bytes())
  for _ in range(2):
    with pytest.raises(ValueError, match=f"needs .*{file}"):
      encode.load_tokenizer(tmp_path, kind)
    (tmp_path / file).touch()  # as a download that was cut off at once


def test_a_broken_tokenizer_file_is_refused(folders, tmp_path):
  (tmp_path / "tokenizer.json").write_text('{"model": ')
  with pytest.raises(ValueError, match="cannot be read"):
    encode.load_tokenizer(tmp_path, "t5")


def test_a_long_prompt_is_refused_or_cut(fill):
  with pytest.raises(ValueError, match="'red cat and dog' .* cut 'd dog' "):
    fill(["red", LONG])
  with pytest.raises(ValueError, match="too_long is 'drop'"):
    fill(["red"], too_long="drop")
  count, cut = fill(["red", LONG], too_long="cut")
  assert count == 2
  assert [(c.prompt, c.max_tokens) for c in cut] == [(LONG, 9)]
  # It is said again where nothing is left to encode.
  assert fill([LONG], too_long="cut") == (0, cut)


def test_the_join_of_sd3():
  rng = np.random.default_rng(0)
  large, giant, t5 = (
      rng.normal(size=(2, n, d)) for n, d in ((3, 2), (3, 4), (5, 8))
  )
  clips = (large, large[:, 0]), (giant, giant[:, 0])
  text, pooled = encode.join_sd3(*clips, (t5, None))
  assert text.shape == (2, 8, 8) and pooled.shape == (2, 6)
  np.testing.assert_array_equal(text[:, :3, :2], large)
  np.testing.assert_array_equal(text[:, :3, 2:6], giant)
  assert not text[:, :3, 6:].any()
  np.testing.assert_array_equal(text[:, 3:], t5)
  np.testing.assert_array_equal(pooled[:, :2], large[:, 0])
  with pytest.raises(ValueError, match="6 channels; T5's 5 must"):
    encode.join_sd3(*clips, (t5[..., :5], None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_stored_is_found(fill, encoders, tmp_path, dtype):
  assert fill([*PROMPTS, PROMPTS[0]], dtype=dtype) == (5, [])
  clip, t5 = encoders
  asked = [PROMPTS[i] for i in (4, 0, 1, 4)]
  asked_ids = [
      encode.token_ids(e.tokenizer, asked, e.max_tokens)[0] for e in encoders
  ]
  text, pooled = Cache(tmp_path / "cache").lookup(asked)
  assert text.dtype == pooled.dtype == jnp.dtype(dtype)
  for pair in (slice(0, 2), slice(2, 4)):
    wanted = t5.apply(asked_ids[1][pair])[0].astype(dtype)
    np.testing.assert_array_equal(text[pair], wanted)
    wanted = clip.apply(asked_ids[0][pair])[1].astype(dtype)
    np.testing.assert_array_equal(pooled[pair], wanted)


def test_only_new_prompts_are_encoded(fill, encoders, tmp_path):
  fill(PROMPTS[:2])
  before = Cache(tmp_path / "cache").lookup(PROMPTS[:2])
  seen = []
  watched = [
      encode.Encoder(
          e.tokenizer, e.max_tokens, lambda x, e=e: seen.append(x) or e.apply(x)
      )
      for e in encoders
  ]
  assert fill(PROMPTS, encoders=watched)[0] == 3
  assert len(seen) == 4  # two batches of two encoders
  cache = Cache(tmp_path / "cache")
  assert len(cache) == 5
  for ours, wanted in zip(cache.lookup(PROMPTS[:2]), before, strict=True):
    np.testing.assert_array_equal(ours, wanted)
  assert fill(PROMPTS, encoders=watched)[0] == 0 and len(seen) == 4


def test_a_second_writer_is_refused_and_a_reader_is_not(fill, tmp_path):
  folder = tmp_path / "cache"
  fill(PROMPTS[:1])
  settings = {"join": "flux"}
  early = Writer(folder, settings)
  rows = np.zeros((1, 2, 2), np.float32), np.zeros((1, 2), np.float32)
  with Writer(folder, settings).locked():
    with pytest.raises(ValueError, match="being written by another process"):
      fill(PROMPTS)
    assert fill(PROMPTS[:1]) == (0, [])
  with pytest.raises(RuntimeError, match="locked"):
    early.add(["dog"], *rows)
  assert fill(PROMPTS)[0] == 4
  with early.locked():  # It has seen what was written meanwhile.
    assert all(prompt in early for prompt in PROMPTS)


def test_an_absent_prompt_is_named(fill, tmp_path):
  fill(["red", "cat"])
  with pytest.raises(ValueError, match="prompt 'dog' is not in the cache"):
    Cache(tmp_path / "cache").lookup(["red", "dog", "hat"])


@pytest.mark.parametrize("file", ["00001.safetensors", "index.json"])
def test_an_interrupted_run_resumes(fill, tmp_path, monkeypatch, file):
  folder = tmp_path / "cache"
  replace, shards = type(folder).replace, []

  def dies(self, target):
    shards.append(target.name)
    if target.name == file and len(shards) > 2:
      raise KeyboardInterrupt
    return replace(self, target)

  with monkeypatch.context() as patch:
    patch.setattr(type(folder), "replace", dies)
    with pytest.raises(KeyboardInterrupt):
      fill(PROMPTS)
  assert len(Cache(folder)) == 3
  assert fill(PROMPTS)[0] == 2
  text, _ = Cache(folder).lookup(PROMPTS)
  assert len({row.tobytes() for row in text}) == 5
  assert sorted(path.name for path in folder.iterdir()) == [
      ".lock", "00000.safetensors", "00001.safetensors", "index.json",
  ]


@pytest.mark.parametrize(
    "changes", [{"model": "two"}, {"dtype": "float32"}, {"join": "sd3"}]
)
def test_a_cache_of_other_encoders_is_refused(fill, changes):
  fill(["red"])
  (name,) = changes
  with pytest.raises(ValueError, match=f"was made with {name} "):
    fill(["red", "cat"], **changes)


def test_bad_settings_and_files_are_named(fill, tmp_path):
  with pytest.raises(ValueError, match="join is 'sd4'; allowed are"):
    fill(["red"], join="sd4")
  with pytest.raises(ValueError, match="dtype is 'int8'; allowed are"):
    fill(["red"], dtype="int8")
  with pytest.raises(ValueError, match="batch is 0; it must be at least 1"):
    fill(["red"], batch=0)
  with pytest.raises(ValueError, match="cache/index.json"):
    Cache(tmp_path / "cache")
  fill(["red"])
  shard = tmp_path / "cache" / "00000.safetensors"
  shard.write_bytes(shard.read_bytes()[:-3])
  with pytest.raises(ValueError, match="00000.safetensors' of the cache"):
    Cache(tmp_path / "cache").lookup(["red"])


def test_the_key_changes_with_any_file(tmp_path):
  (tmp_path / "model.safetensors").write_bytes(b"1234")
  (tmp_path / "config.json").write_text(json.dumps({"width": 1}))
  keys = {encode.model_key([tmp_path])}
  assert keys == {encode.model_key([tmp_path])}
  for name, content in (
      ("model.safetensors", "12345"),
      ("config.json", '{"width": 2}'),
      ("vocab.json", "{}"),
  ):
    (tmp_path / name).write_text(content)
    keys.add(encode.model_key([tmp_path]))
  keys.add(encode.model_key([tmp_path, tmp_path]))
  assert len(keys) == 5
  with pytest.raises(ValueError, match="none' does not exist or is empty"):
    encode.model_key([tmp_path / "none"])
