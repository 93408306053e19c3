"""Sizes of published models, by name: what planning needs of their weights."""

from spatialrl.models.autoencoder import AutoencoderConfig
from spatialrl.models.flux import FluxConfig
from spatialrl.models.mmdit import MMDiTConfig
from spatialrl.models.qwen_vl import QwenVLConfig

# Name of the repository -> (transformer, autoencoder).
PIPELINES = {
    "FLUX.1-dev": (
        FluxConfig(),
        AutoencoderConfig(scaling=0.3611, shift=0.1159),
    ),
    "stable-diffusion-3.5-medium": (
        MMDiTConfig(
            width=1536,
            depth=24,
            heads=24,
            channels=16,
            patch=2,
            dual_layers=13,
            position_table=384,
            position_base=64,
            text_width=4096,
            pooled_width=2048,
        ),
        AutoencoderConfig(scaling=1.5305, shift=0.0609),
    ),
}
VISION_LANGUAGE = {"Qwen2.5-VL-7B-Instruct": QwenVLConfig()}
