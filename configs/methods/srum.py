"""SRUM: images of one's own, learned by place and by worth.

Flow matching on the policy's own images, each weighted by its score and each
position by how unflawed it is, beside flow matching on a trusted image of the
prompt. In the public repository scores of boxes and of the layout come from
the model's own understanding side, and the trusted image counts 0.1; here our
heads, a map in place of boxes, and renders that count 1: at 0.1 the policy
learns its own images, drawn in 8 steps, and forgets how to draw
(experiments/checks).
"""

import pathlib

from spatialrl.train.configs import load_config, reward_by_aspect


def get_config(arg=""):
  """The config; `arg` "tiny" makes two iterations, mostly compiling."""
  c = load_config(pathlib.Path(__file__).with_name("flow_grpo.py"), arg)
  c.rollout.update({"window": 0, "window_range": (0, 0)})
  c.transition = {"name": "ode"}
  reward_by_aspect(c, {"relations": 1.0}, squash=True)
  c.select = {"name": "all"}
  c.advantage = {"name": "raw"}
  c.credit = {
      "name": "judge_map", "judge": "relations", "alpha": 1.0, "invert": True,
  }
  c.objective = {"name": "weighted_fm", "draws": 4, "time_shift": 3.0}
  c.anchor = {"name": "fm_replay", "time_shift": 3.0}
  c.train.anchor_weight = 1.0
  return c
