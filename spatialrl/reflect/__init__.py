"""Generate, check, act, edit: RL-RIG's chain and what trains its parts.

RL-RIG (arXiv:2602.19974) is known from its abstract, which fixes the four
parts, the loop and two separate GRPO phases. Everything else here is our
reconstruction; docs/rl_rig.md says what is whose.
"""
