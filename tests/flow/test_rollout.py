"""The scan over steps: what is drawn, what is kept, what is decoded."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialrl.flow import rollout as flow
from spatialrl.flow import schedules, transition

B, H, W, C = 6, 4, 4, 3
STEPS = 10
GROUP = jnp.arange(B) // 3
FLOW_SDE = functools.partial(transition.flow_sde, noise_level=0.7)
CPS = functools.partial(transition.cps, noise_level=0.8)
MATRIX = jax.random.normal(jax.random.key(1), (C, C))
START = jax.random.normal(jax.random.key(2), (B, H, W, C))


def network(x, t):
  return jnp.tanh(x @ MATRIX) + t[:, None, None, None] * x


@functools.partial(jax.jit, static_argnames=("window", "last_step", "velocity"))
def run(
  start=2, seed=0, times=None, *, window=3, last_step="ode", velocity=network
):
  return flow.rollout(
    velocity,
    START,
    schedules.sd3(STEPS) if times is None else times,
    jax.random.key(seed),
    GROUP,
    transition=FLOW_SDE,
    log_prob=transition.gaussian_log_prob,
    window_start=start,
    window=window,
    last_step=last_step,
  )


def euler(x, times):
  for t, t_next in zip(times, times[1:], strict=False):
    x = x + network(x, jnp.full(B, t)) * (t_next - t)
  return x


@pytest.mark.parametrize("start", [0, 2, 6])
def test_kept_states_follow_the_transition(start):
  trajectory = run(start=start)
  times = schedules.sd3(STEPS)
  np.testing.assert_array_equal(trajectory.t, times[start : start + 4])
  noise = []
  for k in range(3):
    t, t_next = trajectory.t[k : k + 2]
    v = network(trajectory.x[k], jnp.full(B, t))
    mean, std = FLOW_SDE(v, trajectory.x[k], t, t_next)
    np.testing.assert_allclose(trajectory.mean[k], mean, atol=2e-6)
    log_prob = transition.gaussian_log_prob(trajectory.x[k + 1], mean, std)
    np.testing.assert_allclose(trajectory.log_prob[k], log_prob, atol=1e-4)
    noise.append(np.asarray((trajectory.x[k + 1] - mean) / std).ravel())
  noise = np.stack(noise)  # 3 draws of 288 standard normals
  assert abs(noise.mean()) < 0.15
  assert abs(noise.std() - 1) < 0.15
  assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.25
  # Euler steps lead to the window and on from it.
  before = euler(START, times[: start + 1])
  np.testing.assert_allclose(trajectory.x[0], before, atol=1e-5)
  after = euler(trajectory.x[3], times[start + 3 :])
  np.testing.assert_allclose(trajectory.final, after, atol=1e-5)
  np.testing.assert_array_equal(trajectory.group, GROUP)


def test_without_a_window_it_is_euler():
  trajectory = run(start=0, window=0)
  expected = euler(START, schedules.sd3(STEPS))
  np.testing.assert_allclose(trajectory.final, expected, atol=1e-5)
  assert trajectory.x.shape == (1, B, H, W, C)
  assert trajectory.mean.shape == (0, B, H, W, C)
  assert trajectory.log_prob.shape == (0, B, H, W)


def test_window_over_all_steps_ends_on_the_decoded_state():
  trajectory = run(start=0, window=STEPS, last_step="noise")
  np.testing.assert_array_equal(trajectory.x[-1], trajectory.final)
  np.testing.assert_array_equal(trajectory.x[0], START)
  assert np.isfinite(trajectory.log_prob).all()


def test_last_step_noise_does_not_depend_on_the_window():
  times = schedules.flux(6, tokens=1024)
  end = {
    last: run(start=0, window=3, last_step=last, times=times)
    for last in flow.LAST_STEPS
  }
  np.testing.assert_array_equal(end["noise"].x, end["ode"].x)
  x = euler(end["ode"].x[3], times[3:6])
  v = network(x, jnp.full(B, times[5]))
  np.testing.assert_allclose(end["ode"].final, x - times[5] * v, atol=1e-5)
  mean, std = FLOW_SDE(v, x, *times[5:])
  z = np.asarray((end["noise"].final - mean) / std)
  assert abs(z.mean()) < 0.25 and abs(z.std() - 1) < 0.2


def two_modes(x, t, spread=0.15):
  """Exact velocity of 0.7 N(1, spread^2) + 0.3 N(-1, spread^2)."""
  t = t[:, None, None, None]
  var = (1 - t) ** 2 * spread**2 + t**2
  log_weight, v = [], []
  for weight, mode in ((0.7, 1.0), (0.3, -1.0)):
    r = x - (1 - t) * mode
    log_weight.append(math.log(weight) - 0.5 * r**2 / var)
    v.append((t - (1 - t) * spread**2) / var * r - mode)
  return (jax.nn.softmax(jnp.stack(log_weight), 0) * jnp.stack(v)).sum(0)


@pytest.mark.parametrize(
  ("last_step", "a", "spread"),
  [("noise", 0.7, 0.160), ("noise", 0.9, 0.180), ("ode", 0.7, 0.145)],
)
def test_few_steps_leave_noise_unless_the_last_is_deterministic(
  last_step, a, spread
):
  """Spread of the mode at +1 after 6 even steps; the target has 0.150."""
  group = jnp.zeros(40_000, jnp.int32)
  trajectory = flow.rollout(
    two_modes,
    flow.initial_noise(jax.random.key(0), group, (1, 1, 1), shared=False),
    schedules.shifted(6, shift=1.0),
    jax.random.key(0),
    group,
    transition=functools.partial(transition.flow_sde, noise_level=a),
    log_prob=transition.gaussian_log_prob,
    window_start=0,
    window=5,
    last_step=last_step,
  )
  final = np.asarray(trajectory.final)
  assert abs(final[final > 0].std() - spread) < 0.003


def test_moving_the_window_does_not_compile_again():
  traces = []

  def counted(x, t):
    traces.append(t)
    return network(x, t)

  before = run._cache_size()
  first = run(jnp.int32(0), velocity=counted)
  traced = len(traces)
  for start in range(1, 7):
    moved = run(jnp.int32(start), velocity=counted)
    assert moved.t[0] < first.t[0]
  assert run._cache_size() == before + 1
  assert len(traces) == traced


def test_same_key_same_rollout_and_new_key_new_draws():
  a, b, c = run(), run(), run(seed=1)
  np.testing.assert_array_equal(a.x, b.x)
  np.testing.assert_array_equal(a.x[0], c.x[0])
  assert (np.asarray(a.x[1]) != np.asarray(c.x[1])).mean() > 0.99


def test_memory_holds_the_window_only():
  # 8 images of 64 x 64 x 4 are 512 KiB a state; 40 steps would be 20 MiB.
  state = 8 * 64 * 64 * 4 * 4
  args = jax.ShapeDtypeStruct((8, 64, 64, 4), jnp.float32)

  def sample(x, start):
    return flow.rollout(
      lambda x, t: -x,
      x,
      schedules.sd3(40),
      jax.random.key(0),
      jnp.zeros(8, jnp.int32),
      transition=FLOW_SDE,
      log_prob=transition.gaussian_log_prob,
      window_start=start,
      window=2,
      last_step="ode",
    )

  memory = (
    jax.jit(sample)
    .lower(args, jax.ShapeDtypeStruct((), jnp.int32))
    .compile()
    .memory_analysis()
  )
  assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 24 * state


@pytest.mark.parametrize("shared", [False, True])
def test_one_key_serves_noise_and_steps(shared):
  key = jax.random.key(0)
  group = jnp.arange(4)
  shape = (H, W, C)
  start = flow.initial_noise(key, group, shape, shared=shared)
  trajectory = flow.rollout(
    lambda x, t: jnp.zeros_like(x),
    jnp.zeros((4, *shape)),
    schedules.sd3(STEPS),
    key,
    group,
    transition=CPS,
    log_prob=transition.residual_log_prob,
    window_start=0,
    window=9,
    last_step="ode",
  )
  drawn = np.asarray(trajectory.x[1:] - trajectory.mean)
  drawn = drawn.reshape(-1, H * W * C)
  correlation = np.corrcoef(np.asarray(start).reshape(4, -1), drawn)
  assert np.abs(correlation[:4, 4:]).max() < 0.7


def test_rollout_refuses_what_cannot_be():
  with pytest.raises(ValueError, match="rollout.last_step is 'x0'"):
    run(last_step="x0")
  with pytest.raises(ValueError, match="rollout.window is 10, .* 0 to 9"):
    run(start=0, window=10)


def test_chunks_change_the_calls_and_nothing_else():
  sizes = []

  def field(x, t, cond):
    sizes.append(x.shape[0])
    return network(x, t) + cond[:, None, None]

  cond = jnp.arange(B * C, dtype=jnp.float32).reshape(B, C)
  t = jnp.linspace(0, 1, B)
  whole = field(START, t, cond)
  np.testing.assert_allclose(
    flow.in_chunks(field, 2)(START, t, cond), whole, atol=1e-6
  )
  assert set(sizes) == {B, 2}
  with pytest.raises(ValueError, match="chunks of 4 rows do not divide .* 6"):
    flow.in_chunks(field, 4)(START, t, cond)


def test_a_shared_start_makes_the_window_a_branch():
  """Images of a group agree up to the first noisy step and differ by it."""
  start = flow.initial_noise(jax.random.key(0), GROUP, (H, W, C), shared=True)
  trajectory = flow.rollout(
    network, start, schedules.sd3(STEPS), jax.random.key(1), GROUP,
    transition=FLOW_SDE, log_prob=transition.gaussian_log_prob,
    window_start=4, window=2, last_step="ode",
  )
  for group in range(2):
    mine = np.asarray(GROUP) == group
    prefix = np.asarray(trajectory.x[0])[mine]
    np.testing.assert_array_equal(prefix, prefix[:1].repeat(mine.sum(), 0))
    after = np.asarray(trajectory.x[1])[mine]
    assert np.abs(after[1:] - after[:1]).max((1, 2, 3)).min() > 0.1


def test_a_tree_shares_states_until_its_branches_part():
  group = jnp.arange(8) // 4
  start = flow.initial_noise(jax.random.key(0), group, (H, W, C), shared=True)
  branches = flow.tree(2, 4, 3, (0, 2))
  np.testing.assert_array_equal(
    branches, [[0, 0, 1, 1, 2, 2, 3, 3]] * 2 + [list(range(8))]
  )
  trajectory = flow.rollout(
    network, start, schedules.sd3(STEPS), jax.random.key(1), group,
    transition=FLOW_SDE, log_prob=transition.gaussian_log_prob,
    window_start=2, window=3, last_step="ode", branches=branches,
  )
  for state, node in zip(trajectory.x, [group, *branches], strict=True):
    same = np.asarray(node)[:, None] == np.asarray(node)[None]
    gap = np.abs(state[:, None] - state[None]).max((2, 3, 4))
    assert (gap[same] < 1e-6).all()
    assert gap[~same].min() > 0.1


def test_without_a_density_an_ode_may_have_a_window():
  trajectory = flow.rollout(
    network, START, schedules.sd3(STEPS), jax.random.key(1), GROUP,
    transition=transition.ode, log_prob=None,
    window_start=0, window=STEPS, last_step="noise",
  )
  np.testing.assert_array_equal(trajectory.log_prob, 0.0)
  np.testing.assert_array_equal(trajectory.std, 0.0)
  np.testing.assert_array_equal(trajectory.x[-1], trajectory.final)


def test_maps_of_the_window_are_kept():
  def field(x, t, cond):
    del cond
    return network(x, t), jnp.abs(x).mean(-1)

  cond = jnp.zeros((B, 1))
  trajectory = flow.rollout(
    flow.guided(flow.in_chunks(field, 4), cond, cond, 2.0), START,
    schedules.sd3(STEPS), jax.random.key(1), GROUP,
    transition=FLOW_SDE, log_prob=transition.gaussian_log_prob,
    window_start=3, window=2, last_step="ode", attends=True,
  )
  want = np.abs(trajectory.x[:2]).mean(-1)
  np.testing.assert_allclose(trajectory.attention, want, rtol=1e-6)
