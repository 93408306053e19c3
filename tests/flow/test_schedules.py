"""Times and step deviations against published figures."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import schedules, transition

FLOW_SDE = functools.partial(transition.flow_sde, noise_level=0.7)
CPS = functools.partial(transition.cps, noise_level=0.8)


def test_schedules_are_those_of_the_papers():
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=6e-5)
  close(
    schedules.flux(6, tokens=1024),
    [1, 0.9037, 0.7897, 0.6525, 0.4842, 0.2730, 0],
  )
  close(
    schedules.flux(6, tokens=4096),
    [1, 0.9404, 0.8633, 0.7595, 0.6123, 0.3871, 0],
  )
  close(
    schedules.sd3(10),
    [
      *[1, 0.9601, 0.9133, 0.8577, 0.7904],
      *[0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0],
    ],
  )
  close(schedules.shifted(4, shift=1.0), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_schedules_fall_from_one_to_zero(name, steps):
  setting = {"sd3": {}, "flux": {"tokens": 300}, "shifted": {"shift": 3.0}}
  times = schedules.SCHEDULES[name](steps, **setting[name])
  assert times.shape == (steps + 1,) and times.dtype == np.float32
  assert (times[0], times[-1]) == (1, 0)
  assert (np.diff(times) < 0).all()


def test_schedules_refuse_nonsense():
  with pytest.raises(ValueError, match="steps is 0, .* at least 1"):
    schedules.flux(0, tokens=1024)
  with pytest.raises(ValueError, match="shift is 0, .* positive"):
    schedules.shifted(4, shift=0)


@pytest.mark.parametrize(
  ("times", "kernel", "expected"),
  [
    (
      schedules.flux(6, tokens=1024),
      FLOW_SDE,
      [0.7, 0.7243, 0.5025, 0.3935, 0.3117, 0.2241],
    ),
    (
      schedules.flux(6, tokens=1024),
      CPS,
      [0.8595, 0.7511, 0.6206, 0.4605, 0.2596, 0],
    ),
    (
      schedules.sd3(10),
      FLOW_SDE,
      [
        *[0.7, 0.743, 0.5362, 0.4459, 0.3918],
        *[0.3528, 0.3191, 0.282, 0.2254, 0.0063],
      ],
    ),
  ],
)
def test_step_std_of_the_published_settings(times, kernel, expected):
  x = jnp.zeros((1, 1, 1, 1))
  std = [kernel(x, x, *pair)[1] for pair in zip(times, times[1:], strict=False)]
  np.testing.assert_allclose(std, expected, atol=6e-5)


def test_flux_diffusion_at_its_first_step():
  times = schedules.flux(6, tokens=1024)
  x = jnp.zeros((1, 1, 1, 1))
  _, std = FLOW_SDE(x, x, *times[:2])
  assert abs(std / math.sqrt(times[0] - times[1]) - 2.2561) < 1e-4
