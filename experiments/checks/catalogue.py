"""Every check, and the methods that each of them speaks for."""

from experiments.checks import (
    chains,
    judged,
    pairs,
    rewards,
    samplers,
    trained,
    updates,
)

CHECKS = {
    entry.__name__: entry
    for room in (samplers, judged, rewards, updates, pairs, chains, trained)
    for entry in room.CHECKS
}
# A method holds where all of its checks do.
METHODS = {
    "adv_grpo": ("adversarial_reward",),
    "align_prop": ("chain_gradient",),
    "b2_diffurl": ("shared_prefix", "moving_windows"),
    "branch_grpo": ("branch_credit",),
    "d3po": ("d3po_gain",),
    "dance_grpo": ("dance_marginals", "reinforce"),
    "diffusion_dpo": ("dpo_pairs",),
    "diffusion_nft": ("nft_closed_form",),
    "ema_grpo": ("task_spreads", "group_weights"),
    "flow_cps": ("cps_noise_level",),
    "flow_grpo": ("reinforce",),
    "flow_grpo_fast": ("moving_windows",),
    "grpo_guard": ("centred_ratio",),
    "hicogen": ("hicogen_noise",),
    "image_doctor": ("flaw_map",),
    "iter_comp": ("refreshed_judges",),
    "mix_grpo": ("moving_windows",),
    "paco": ("log_taming",),
    "parrot": ("pareto_selection",),
    "patch_dpo": ("patch_quality",),
    "prdp": ("prdp_gibbs",),
    "pref_grpo": ("pref_grpo_ties",),
    "r0": ("step_rewards",),
    "rank_dpo": ("rank_of_two",),
    "refl": ("late_prediction",),
    "soft_repa": ("soft_tokens",),
    "spatial_score": ("topk_balance",),
    "srum": ("flaw_map",),
    "star": ("star_attention",),
    "tempflow": ("tempflow_weights",),
}
