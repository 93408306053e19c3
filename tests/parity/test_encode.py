"""Encoded prompts against what the pipelines of diffusers make of them."""

import functools

import jax
import pytest

from spatialrl.convert import clip as clip_converter
from spatialrl.convert import t5 as t5_converter
from spatialrl.data import encode
from spatialrl.data.cache import Cache
from spatialrl.models import clip, t5
from tests.data import _tokenizers
from tests.parity import _folders
from tests.parity._folders import near

PROMPTS = ["a red cat", "", "nine words that go on and on for ever"]
CLIP = {
    "vocab_size": _tokenizers.CLIP_SIZE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "projection_dim": 10,
    "bos_token_id": _tokenizers.CLIP_SIZE - 2,
    "eos_token_id": 2,  # as in the published folders of both
    "pad_token_id": 1,
}
T5 = {
    "vocab_size": _tokenizers.T5_SIZE,
    "d_model": 40,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
  """make(kind, class name, fields, pad) -> (torch model, tokenizer, Encoder).

  The weights are saved by transformers and read from that folder.
  """
  torch = pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  import transformers

  def call(kind, name, fields, **pad):
    folder = tmp_path_factory.mktemp(kind)
    torch.manual_seed(len(name))
    model = getattr(transformers, name)
    model = model(model.config_class(**fields)).eval()
    model.save_pretrained(folder)
    tokenizer = encode.load_tokenizer(
        getattr(_tokenizers, kind)(folder / "tokenizer", **pad), kind
    )
    converter, network, length = {
        "clip": (clip_converter, clip, encode.CLIP_TOKENS),
        "t5": (t5_converter, t5, 20),
    }[kind]
    sizes, params = _folders.load(converter, folder)
    apply = jax.jit(network.conditioning, static_argnums=0)
    apply = functools.partial(apply, sizes, params)
    return model, tokenizer, encode.Encoder(tokenizer, length, apply)

  return call


def encoded(folder, made, join):
  """(text, pooled) of PROMPTS through a cache in float32."""
  encode.encode_prompts(
      folder,
      PROMPTS,
      [encoder for _, _, encoder in made],
      join=join,
      model="",
      dtype="float32",
      batch=2,
      too_long="cut",
  )
  return Cache(folder).lookup(PROMPTS)


def test_sd3(make, tmp_path):
  projected = "CLIPTextModelWithProjection"
  made = (
      make("clip", projected, CLIP),
      make("clip", projected, CLIP | {"hidden_act": "gelu"}, pad="!"),
      make("t5", "T5EncoderModel", T5),
  )
  import diffusers

  (large, large_words, _), (giant, giant_words, _), (t, t_words, _) = made
  pipeline = diffusers.StableDiffusion3Pipeline(
      transformer=None,
      scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
      vae=None,
      text_encoder=large,
      tokenizer=large_words,
      text_encoder_2=giant,
      tokenizer_2=giant_words,
      text_encoder_3=t,
      tokenizer_3=t_words,
  )
  # The pipeline goes by the first tokenizer's limit, 77 in the real folder.
  pipeline.tokenizer_max_length = encode.CLIP_TOKENS
  text, _, pooled, _ = pipeline.encode_prompt(
      PROMPTS,
      None,
      None,
      do_classifier_free_guidance=False,
      max_sequence_length=20,
  )
  ours = encoded(tmp_path / "cache", made, "sd3")
  near(ours[0], text.detach())
  near(ours[1], pooled.detach())


def test_flux(make, tmp_path):
  made = (
      make("clip", "CLIPTextModel", CLIP),
      make("t5", "T5EncoderModel", T5),
  )
  import diffusers

  (large, large_words, _), (t, t_words, _) = made
  pipeline = diffusers.FluxPipeline(
      transformer=None,
      scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
      vae=None,
      text_encoder=large,
      tokenizer=large_words,
      text_encoder_2=t,
      tokenizer_2=t_words,
  )
  pipeline.tokenizer_max_length = encode.CLIP_TOKENS
  text, pooled, _ = pipeline.encode_prompt(
      PROMPTS, None, max_sequence_length=20
  )
  ours = encoded(tmp_path / "cache", made, "flux")
  near(ours[0], text.detach())
  near(ours[1], pooled.detach())
