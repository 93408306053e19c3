"""Which windows are refused, and in which words."""

import pytest

from spatialrl.flow import rollout as flow


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ({"transition": "heun"}, "rollout.transition is 'heun', .* ode, flow_sde"),
    ({"last_step": "x0"}, "rollout.last_step is 'x0', .* noise, ode"),
    ({"window": 4}, r"rollout.window is 4, .* 0 to 3 .* \(1, 4\)"),
    ({"window": -1}, "rollout.window is -1, .* 0 to 3"),
    ({"window_range": (-1, 3)}, r"window_range is \(-1, 3\), .* \(0, 9\)"),
    ({"window_range": (4, 1)}, r"window_range is \(4, 1\), .* increasing"),
    ({"window_range": (0, 10)}, r"\(0, 10\), .* \(0, 9\): .*last_step ode"),
    (
      {"window_range": (0, 11), "last_step": "noise"},
      r"\(0, 11\), .* \(0, 10\): there are 10 steps",
    ),
    (
      {"window_range": (0, 10), "last_step": "noise", "transition": "cps"},
      r"\(0, 10\), .* \(0, 9\): cps has no noise in the last step",
    ),
    ({"transition": "ode"}, "rollout.window is 3, it must be 0 with .* ode"),
  ],
)
def test_check_window_names_the_field(override, message):
  good = {
    "steps": 10,
    "window_range": (1, 4),
    "window": 3,
    "transition": "flow_sde",
    "last_step": "ode",
  }
  flow.check_window(**good)
  with pytest.raises(ValueError, match=message) as error:
    flow.check_window(**{**good, **override})
  assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_check_window_allows_what_is_published():
  check = flow.check_window
  check(10, (0, 10), 10, "flow_sde", "noise")  # every step, noise kept
  check(10, (0, 9), 9, "flow_sde", "noise")  # last one noisy, not trained
  check(10, (0, 5), 3, "cps", "ode")  # Flow-GRPO-Fast
  check(10, (0, 9), 9, "cps", "noise")
  check(10, (0, 0), 0, "ode", "ode")
