"""Slots that do not fit together are refused in a sentence that names both."""

import pathlib

import pytest

from spatialrl.train import online
from spatialrl.train.configs import load_config

_METHODS = pathlib.Path(__file__).parents[2] / "configs" / "methods"


@pytest.mark.parametrize(
  ("name", "change", "words"),
  [
    ("diffusion_nft", {"anchor.name": "kl"}, ("anchor.name", "objective")),
    ("r0", {"lora.rank": 4}, ("weight_to_init", "lora.rank 4")),
    ("diffusion_dpo", {"train.updates": 2}, ("'dpo'", "train.updates 2")),
    ("star", {"rollout.attention_blocks": ()}, ("attention_map", "blocks")),
    ("spatial_score", {"aggregate.name": "vector"}, ("pareto_front", "vector")),
    ("b2_diffurl", {"rollout.shared_noise": False}, ("branch", "shared_noise")),
    ("branch_grpo", {"rollout.splits": (0, 9)}, ("splits is (0, 9)", "0 to 6")),
    ("branch_grpo", {"rollout.shared_noise": False}, ("splits", "one root")),
    (
      "branch_grpo",
      {"advantage": {"name": "branch_depth", "window": 7, "splits": (1,)}},
      ("branch_depth", "(0, 2)"),
    ),
    ("iter_comp", {"aggregate.name": "hierarchical"}, ("weighted_sum",)),
    ("align_prop", {"objective.gradient_steps": 9}, ("gradient_steps is 9",)),
    ("align_prop", {"rollout.window": 4}, ("gradient_steps is 8", "1 to 4")),
    (
      "refl",
      {"aggregate.weights": {"oracle": 1.0}, "rewards": {"oracle": {}}},
      ("oracle", "gradient"),
    ),
    ("refl", {"rollout.window_range": (0, 0), "rollout.window": 0,
              "rollout.visited": 0}, ("reward_step", "window 0")),
    ("tempflow", {"rollout.window_range": (0, 0), "rollout.window": 0,
                  "objective": {"name": "nft", "draws": 1, "time_shift": 3.0,
                                "mix": 1.0, "adv_clip": 5.0}},
     ("'reweight'", "'nft'")),
    ("grpo_guard", {"log_prob": "residual"}, ("residual", "ppo_guard")),
    ("flow_grpo", {"transition.noise_level": -1.0}, ("noise_level", "-1")),
    ("flow_grpo", {"aggregate.weights": {"oracle": 1.0}},
     ("aggregate.weights", "'spatial_score'")),
    ("flow_grpo", {"aggregate.caps": {"ocr": 1.0}}, ("aggregate.caps", "ocr")),
    ("mix_grpo", {"rollout.window_moves": "up"}, ("window_moves is 'up'",)),
    ("dance_grpo", {"rollout.visited": 9}, ("visited is 9", "0 (all) to 7")),
    ("dance_grpo", {"transition.name": "ode"}, ("transition", "density")),
    ("pref_grpo",
     {"rewards": {"pairwise": {"group": 3}, "spatial_score": {}}},
     ("rewards.pairwise.group is 3", "rollout.group 4")),
    ("pref_grpo",
     {"aggregate.weights": {"pairwise": 1.0, "spatial_score": 1.0}},
     ("win_rate", "judge of pairs")),
    ("star", {"aggregate.name": "win_rate"}, ("win_rate", "judge of pairs")),
    ("diffusion_nft", {"credit.name": "attention_map"}, ("credit.name",)),
    ("patch_dpo", {"credit.name": "uniform"}, ("'patch_fm'", "'uniform'")),
    ("patch_dpo", {"credit.judge": "spatial_score"}, ("credit.judge", "patch")),
    ("soft_repa", {"objective.others": 2}, ("others is 2", "0 to 1")),
    ("soft_repa", {"select.name": "nonzero_std"}, ("contrastive_fm", "all")),
    ("soft_repa", {"lora.rank": 4}, ("soft_tokens is 4", "lora.rank 4")),
    ("adv_grpo", {"refresh.name": "fixed"}, ("adversarial", "'fixed'")),
    ("adv_grpo", {"refresh.steps": 0}, ("refresh.steps is 0",)),
    (
      "iter_comp",
      {"refresh.experts": {"relations": "things"}, "refresh.every": 0},
      ("refresh.every is 0",),
    ),
    (
      "iter_comp",
      {"refresh.experts": {"relations": "quality", "quality": "trusted"}},
      ("experts.relations is 'quality'", "'spatial_score'"),
    ),
    (
      "iter_comp",
      {"refresh.experts": {"spatial_score": "trusted"}},
      ("lets 'spatial_score' learn", "'relations'"),
    ),
  ],
)
def test_slots_that_do_not_fit_are_named_in_a_sentence(
  name, change, words, mesh
):
  config = load_config(_METHODS / f"{name}.py", "tiny")
  with config.unlocked():
    for field, value in change.items():
      *parents, leaf = field.split(".")
      node = config
      for parent in parents:
        node = node[parent]
      node[leaf] = value
    if "attention_map" in change.values():
      config.credit.alpha = 0.5
  with pytest.raises(ValueError) as caught:
    online.check(config, mesh)
  assert all(word in str(caught.value) for word in words), caught.value
  assert str(caught.value).count("\n") == 0
