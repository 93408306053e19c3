"""Tiny random models in the layout of the published folders, for a dry run.

A config with the field `tiny` ("sd3" or "flux") runs its whole job on these
instead of on its paths: they are read, checked and exported as real ones are,
so what works on them fails on real weights for want of memory only.
"""

import json
import pathlib

import jax
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from spatialrl.convert import folder
from spatialrl.data import qwen_inputs
from spatialrl.models import spatial_score
from spatialrl.models.lora import LoRAConfig
from spatialrl.models.spatial_score import SpatialScoreConfig
from spatialrl.parallel.mesh import one_device
from spatialrl.rewards import clip, qwen

PIXELS = 16  # a side of the images of the policy
READING = qwen.Reading(pixels=56, max_tokens=224)
REWARD_TOKEN = 270
_PROMPTS = [
    f"a {a} left of a {b}"
    for a in ("dog", "cat", "cup", "hat")
    for b in ("tree", "car")
]
_CLIP = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 8,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 514,
    "max_position_embeddings": 77,
    "eos_token_id": 513,
}
_TOWER = tuple(_CLIP)[:7]  # what the image tower has as well
_T5 = {
    "architectures": ["T5EncoderModel"],
    "d_model": 16,
    "d_kv": 8,
    "num_heads": 2,
    "d_ff": 16,
    "num_layers": 1,
    "vocab_size": 32,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 1.5,
    "shift_factor": 0.06,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_TRANSFORMERS = {
    "sd3": {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": 8,
        "caption_projection_dim": 16,
        "dual_attention_layers": [0],
        "in_channels": 4,
        "joint_attention_dim": 16,
        "num_attention_heads": 2,
        "num_layers": 3,
        "out_channels": 4,
        "patch_size": 2,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 8,
        "qk_norm": "rms_norm",
        "sample_size": 8,
    },
    "flux": {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": 8,
        "axes_dims_rope": [4, 2, 2],
        "guidance_embeds": True,
        "in_channels": 16,
        "joint_attention_dim": 16,
        "num_attention_heads": 2,
        "num_layers": 1,
        "num_single_layers": 2,
        "out_channels": None,
        "patch_size": 1,
        "pooled_projection_dim": 8,
    },
}
_QWEN = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "image_token_id": 260,
    "vocab_size": 272,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
    "tie_word_embeddings": True,
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [1],
        "window_size": 28,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "hidden_act": "silu",
    },
}
_QWEN_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    qwen_inputs.IMAGE_TOKEN,
)


def prepare(config, workdir):
  """Writes what the config's job reads into the folder `tiny` of its workdir.

  Args:
    config: of a job on real backbones.
    workdir: of the run.

  Returns:
    `config` itself where its field `tiny` is "" or absent; else a copy whose
    paths lead to the tiny models.
  """
  if not config.get("tiny"):
    return config
  if config.tiny not in _TRANSFORMERS:
    raise ValueError(
        f"tiny is {config.tiny!r}; allowed are {sorted(_TRANSFORMERS)} and ''."
    )
  config = config.copy_and_resolve_references()
  root = pathlib.Path(workdir).expanduser().absolute() / "tiny"
  root.mkdir(parents=True, exist_ok=True)
  if "model" in config:
    config.model.folder = str(write_pipeline(root / "model", config.tiny))
    config.text.cache = str(root / "states")
  if "prompts" in config:
    config.prompts.file = str(_write_prompts(root / "prompts.txt"))
  if config.job == "online":
    config.prompts.held_out = str(_write_prompts(root / "held_out.jsonl"))
  for name in config.get("rewards", ()):
    if name in clip.SCORES:
      config.rewards[name].folder = str(write_clip(root / "clip"))
    elif name == "qwen_score":
      base = write_qwen(root / "qwen")
      config.rewards.qwen_score.update({
          "folder": str(base),
          "weights": str(write_trained(root / "trained.safetensors", base)),
      })
  if config.job == "reward":
    config.base = str(write_qwen(root / "qwen"))
    config.data.update({
        "folder": str(root / "images"),
        "pairs": str(_write_pairs(root / "images", "pairs.jsonl", 1)),
        "held_out": str(_write_pairs(root / "images", "held_out.jsonl", 2)),
    })
  return config


def write_model(path, fields, seed=0):
  """Writes a model folder with random weights.

  Args:
    path: folder, made if need be.
    fields: dict, its config.json, of a class that `convert` reads.
    seed: of the weights.

  Returns:
    `path`.
  """
  path.mkdir(parents=True, exist_ok=True)
  (path / "config.json").write_text(json.dumps(fields, indent=2))
  module = folder.recognise(path).module
  rng, tensors = np.random.default_rng(seed), {}
  for entry in module.table(module.read_config(fields)):
    if len(entry.shape) > 1:
      spread = np.prod(entry.shape[1:]) ** -0.5
      value = spread * rng.normal(size=entry.shape)
    else:  # scales about 1, biases about 0
      value = 0.1 * rng.normal(size=entry.shape)
      value = value + entry.path.endswith("scale")
    tensors[entry.name] = np.asarray(value, np.float32)
  diffusers = "_class_name" in fields
  stem = "diffusion_pytorch_model" if diffusers else "model"
  save_file(tensors, path / f"{stem}.safetensors", {"format": "pt"})
  return path


def write_pipeline(path, family):
  """Writes the folder of a whole pipeline, "sd3" or "flux"."""
  write_model(path / "transformer", _TRANSFORMERS[family])
  write_model(path / "vae", VAE)
  projected = {"architectures": ["CLIPTextModelWithProjection"]}
  plain = {"architectures": ["CLIPTextModel"]}
  encoders = {
      "sd3": [_CLIP | projected, _CLIP | projected, _T5],
      "flux": [_CLIP | plain, _T5],
  }[family]
  for i, fields in enumerate(encoders):
    suffix = f"_{i + 1}" if i else ""
    write_model(path / f"text_encoder{suffix}", fields, seed=i)
    write = _write_t5_tokenizer if fields is _T5 else _write_clip_tokenizer
    write(path / f"tokenizer{suffix}")
  return path


def write_clip(path):
  """Writes a CLIP of both towers with a tokenizer that spells."""
  sizes = {"image_size": 8, "patch_size": 4}
  write_model(path, {
      "architectures": ["CLIPModel"],
      "projection_dim": _CLIP["projection_dim"],
      "text_config": _CLIP,
      "vision_config": {k: _CLIP[k] for k in _TOWER} | sizes,
  })
  _write_clip_tokenizer(path)
  return path


def write_qwen(path):
  """Writes a Qwen2.5-VL folder with a tokenizer that spells."""
  import tokenizers  # slow to import

  write_model(path, _QWEN)
  vocabulary = {letter: i for i, letter in enumerate(_alphabet())}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False)
  made.add_special_tokens(list(_QWEN_TOKENS))
  made.save(str(path / "tokenizer.json"))
  return path


def _alphabet():
  """The 256 letters into which byte-level tokenizers turn bytes."""
  import tokenizers

  return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def _write_clip_tokenizer(path):
  letters = _alphabet()
  tokens = [
      *letters, *(f"{letter}</w>" for letter in letters),
      "<|startoftext|>", "<|endoftext|>",
  ]
  path.mkdir(parents=True, exist_ok=True)
  (path / "vocab.json").write_text(
      json.dumps({token: i for i, token in enumerate(tokens)})
  )
  (path / "merges.txt").write_text("#version: 0.2\n")
  (path / "tokenizer_config.json").write_text(
      json.dumps({
          "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"
      })
  )


def _write_t5_tokenizer(path):
  import transformers  # slow to import

  scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -2.0}
  scores |= dict.fromkeys("abcdefghijklmnopqrstuvwxyz", -3.0)
  made = transformers.T5TokenizerFast(vocab=list(scores.items()), extra_ids=0)
  made.save_pretrained(path)


def write_trained(path, base):
  """An untrained trained part of SpatialScore, for a folder of `write_qwen`."""
  mesh = one_device()
  backbone, params = qwen.load_base(base, "float32", mesh)
  model = SpatialScoreConfig(
      backbone,
      LoRAConfig(2, 4.0, spatial_score.PROJECTIONS),
      REWARD_TOKEN,
      head=(8,),
  )
  init = jax.jit(
      lambda key, params: spatial_score.init_trainable(model, key, params)
  )
  with jax.set_mesh(mesh):
    qwen.save(path, model, READING, init(jax.random.key(0), params))
  return path


def _write_prompts(path):
  """Eight prompts, as text or as JSONL with a tag as GenEval has it."""
  lines = _PROMPTS
  if path.suffix == ".jsonl":
    lines = [json.dumps({"tag": "position", "prompt": p}) for p in lines]
  path.write_text("\n".join(lines) + "\n")
  return path


def _write_pairs(path, name, seed):
  """Eight pairs of random images, the better ones brighter."""
  path.mkdir(parents=True, exist_ok=True)
  rng, lines = np.random.default_rng(seed), []
  for i, prompt in enumerate(_PROMPTS):
    line = {"prompt": prompt}
    for side, low in (("better", 128), ("worse", 0)):
      line[side] = f"{seed}_{i}_{side}.png"
      pixels = rng.integers(low, low + 128, (PIXELS, PIXELS, 3), np.uint8)
      Image.fromarray(pixels).save(path / line[side])
    lines.append(json.dumps(line))
  (path / name).write_text("\n".join(lines) + "\n")
  return path / name
