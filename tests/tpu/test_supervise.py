"""tpu/supervise.sh: restarts after preemptions, and after nothing else."""

import pytest

from spatialrl.train.run import EXIT_STOPPED

_RUN = ("--config", "configs/quickstart.py", "--workdir", "gs://bucket/run")


def _supervise(world, *jobs, code=0, more=(), **environment):
  world.set(jobs="\n".join(jobs))
  return world.run("supervise", *_RUN, *more, code=code, **environment)


def _launches(world):
  created, started = world.calls(" create "), world.calls("worker.sh start")
  return len(created), len(started)


def test_a_job_that_finishes_is_started_once(world):
  _supervise(world, "running", "running", "exit 0")
  assert _launches(world) == (1, 1)
  assert not world.calls(" delete ")


def test_a_running_job_is_only_watched(world):
  world.exists()
  _supervise(world, "running", "exit 0")
  assert _launches(world) == (0, 0)


def test_a_slice_without_a_job_is_used(world):
  world.exists()
  _supervise(world, "absent", "exit 0")
  assert _launches(world) == (0, 1)


def test_every_preemption_makes_a_new_slice(world):
  told = _supervise(
    *(world, "running", "preempted", "running", "preempted", "exit 0"),
    more=("--", "--config.name=two words"),
  )
  assert _launches(world) == (3, 3)
  assert len(world.calls("queued-resources delete", "--force")) == 2
  assert "restart 2 of 10" in told
  commands = [
    next(word for word in call if word.startswith("--command"))
    for call in world.calls("worker.sh start")
  ]
  assert len(set(commands)) == 1 and commands[0].endswith(r"name=two\ words")


def test_restarts_are_bounded(world):
  told = _supervise(
    world, "preempted", code=3, more=("--max-restarts", "2")
  )
  assert _launches(world) == (3, 3)
  assert "all 2 restarts are used" in told


def test_a_slice_found_preempted_is_replaced(world):
  world.set(request="SUSPENDED SERVICE")
  _supervise(world, "exit 0")
  assert _launches(world) == (1, 1)


@pytest.mark.parametrize(
  "job", ("exit 1", "running;exit 137", "exit 75;exit 1")
)
def test_a_failure_is_not_restarted(world, job):
  told = _supervise(world, "running", job, code=1)
  assert _launches(world) == (1, 1)
  assert "no preemption" in told and "logs.sh" in told


def test_a_job_that_vanished_is_not_restarted(world):
  assert "no exit code" in _supervise(world, "running", "lost", code=1)
  assert _launches(world) == (1, 1)


def test_a_job_that_dies_of_its_slice_is_restarted(world):
  _supervise(world, "running", "dying", "exit 0")
  assert _launches(world) == (2, 2)


def test_a_job_stopped_by_a_signal_goes_on_on_its_slice(world):
  told = _supervise(
    world, "running", *(f"exit {EXIT_STOPPED}",) * 2, "running", "exit 0"
  )
  assert _launches(world) == (1, 2)
  assert "restart 1 of 10" in told


def test_all_workers_must_have_finished(world):
  _supervise(world, "exit 0;running", "exit 0;exit 75", "exit 0;exit 0")
  assert len(world.calls("worker.sh status")) == 3


def test_a_job_stopped_by_hand_stays_stopped(world):
  _supervise(world, "running", "stopped", code=EXIT_STOPPED)
  assert _launches(world) == (1, 1)


def test_a_slice_that_a_user_suspended_stays_so(world):
  told = _supervise(world, "running", "suspended", code=5)
  assert _launches(world) == (1, 1) and "by a user" in told


def test_a_refused_request_is_not_repeated(world):
  world.set(quota="yes")
  told = _supervise(world, "running", code=5)
  assert "quota" in told and len(world.calls(" create ")) == 1


def test_silence_for_a_while_is_borne(world):
  _supervise(world, *("silent",) * 6, "running", *("silent",) * 6, "exit 0")
  assert _launches(world) == (1, 1)


def test_silence_for_ever_ends_it(world):
  assert "did not answer" in _supervise(world, "running", "silent", code=4)
  assert len(world.calls("worker.sh status")) == 1 + 10


def test_a_gcloud_that_hangs_is_cut_off(world):
  world.exists()
  told = _supervise(
    *(world, "running", "hang", "running", "exit 0"), TPU_QUERY_SECONDS="1"
  )
  assert "no answer within 1 s" in told
  assert _launches(world) == (0, 0)


def test_a_setup_that_fails_is_said(world):
  world.set(broken="yes")
  told = _supervise(world, "absent", code=1)
  assert "setting up a worker failed" in told
  assert _launches(world) == (1, 0) and len(world.calls("install")) == 5


def test_a_worker_that_cannot_be_reached_yet_is_set_up_later(world):
  world.set(broken="yes\nyes\nno")
  _supervise(world, "absent", "exit 0")
  assert _launches(world) == (1, 1) and len(world.calls("install")) == 3


def test_a_workdir_that_dies_with_the_slice_is_pointed_out(world):
  world.set(jobs="exit 0")
  told = world.run("supervise", *_RUN[:2], "--workdir", "runs/x")
  assert "runs/x is not on gs://" in told
