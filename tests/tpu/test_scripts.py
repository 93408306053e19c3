"""What the scripts of tpu/ ask of gcloud, and how they answer mistakes."""

import pathlib
import shutil
import subprocess
import sysconfig

import pytest

from tests.tpu._world import TPU

_NAMES = sorted(path.stem for path in TPU.glob("*.sh") if path.stem != "common")
_USER = [name for name in _NAMES if name != "worker"]
_RUN = ("--config", "configs/a b.py:tiny", "--workdir", "/mnt/a b")


def test_create_asks_for_spot_machines_and_waits(world):
  world.run("create")
  (call,) = world.calls("queued-resources create")
  assert call[:4] == ["compute", "tpus", "queued-resources", "create"]
  assert set(call[4:]) == {
    "spatialrl",
    "--node-id=spatialrl",
    "--accelerator-type=v5litepod-8",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--zone=us-west4-a",
    "--spot",
    "--quiet",
  }
  assert len(world.calls("describe")) == 2


def test_create_on_demand_with_everything_named(world):
  world.run(
    *("create", "--on-demand", "--type=v6e-8", "--zone", "europe-west4-a"),
    *("--name", "mine", "--project", "ours", "--runtime", "v3"),
  )
  (call,) = world.calls("queued-resources create")
  assert set(call[4:]) == {
    "mine",
    "--node-id=mine",
    "--accelerator-type=v6e-8",
    "--runtime-version=v3",
    "--zone=europe-west4-a",
    "--project=ours",
    "--quiet",
  }


def test_create_goes_on_waiting_for_a_request(world):
  world.exists()
  world.run("create")
  assert not world.calls("queued-resources create")


@pytest.mark.parametrize(
  "states, sentence",
  (
    ({"quota": "yes"}, "the request was refused"),
    ({"refused": "yes", "why": "no capacity"}, "failed: no capacity"),
    ({"request": "SUSPENDED"}, "is SUSPENDED; remove it"),
    ({"request": "WAITING_FOR_RESOURCES"}, "WAITING_FOR_RESOURCES after 0 s"),
  ),
)
def test_create_says_why_there_is_no_slice(world, states, sentence):
  world.set(**states)
  assert sentence in world.run("create", "--wait-seconds=0", code=1)


_WAITING = "WAITING_FOR_RESOURCES\n"


def test_create_bears_polls_without_an_answer(world):
  world.set(
    request=_WAITING + 9 * "DENIED\n" + _WAITING + "DENIED\nACTIVE"
  )
  world.run("create")
  assert len(world.calls("describe")) == 13


def test_create_does_not_wait_for_an_answer_for_ever(world):
  world.set(request=_WAITING + "DENIED")
  assert "stays in the queue" in world.run("create", code=1)
  assert len(world.calls("describe")) == 11


def test_run_quotes_what_reaches_the_workers(world):
  world.run("run", *_RUN, "--", "--config.name=it's $HOME")
  (call,) = world.calls("worker.sh start")
  command = next(word for word in call if word.startswith("--command="))
  (world.root / "home/spatialrl/tpu").mkdir(parents=True)
  worker = world.root / "home/spatialrl/tpu/worker.sh"
  worker.write_text('printf "%s\\n" "$@"')
  words = subprocess.run(
    ["bash", "-c", command.removeprefix("--command=")],
    cwd=world.root / "home",
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  assert words == ["start", _RUN[1], _RUN[3], "--config.name=it's $HOME"]
  assert "--worker=all" in call


def test_a_mirrored_workdir_needs_a_single_worker(world):
  world.set(workers="4")
  told = world.run(
    "run", "--config=configs/x.py", "--workdir=gs://bucket/run", code=2
  )
  assert "has 4 workers" in told
  assert not world.calls("ssh")


def test_logs_of_one_worker_or_of_all(world):
  world.run("logs", "--worker", "2", "--lines", "7")
  world.run("logs", "--follow")
  world.run("logs", "--fetch", str(world.root / "a b"))
  tail, follow, fetch = world.calls("tpu-vm ssh")
  assert {"--worker=2", "--command=tail -n 7 spatialrl-run/log"} <= set(tail)
  assert "--command=tail -n 50 -F spatialrl-run/log" in follow
  assert {"--worker=all", f"--output-directory={world.root / 'a b'}"} <= set(
    fetch
  )


def test_delete_of_something_absent(world):
  for named in ({"TPU_ZONE": "us-west4-a"}, {"TPU_TYPE": "v5litepod-8"}):
    assert "nothing to delete" in world.run("delete", **named)
  assert not world.calls(" delete ")


def test_absent_from_the_default_zone_is_not_gone(world):
  world.exists(zone="us-east1-d")
  told = world.run("delete", "--yes", code=1)
  assert "in us-west4-a, which is the default zone; name yours" in told
  assert "nothing of it is left" in world.run("delete", "--yes", "--type=v6e-8")


def test_delete_asks_first(world):
  world.exists()
  assert "not deleted" in world.run("delete", code=1, stdin="n\n")
  assert not world.calls(" delete ")
  assert "nothing of it is left" in world.run("delete", stdin="y\n")
  (call,) = world.calls("queued-resources delete")
  assert "--force" in call


def test_delete_of_machines_without_a_request(world):
  world.set(machines="READY")
  world.run("delete", "--yes")
  assert world.calls("tpu-vm delete")
  assert not world.calls("queued-resources delete")


def test_delete_says_what_is_left(world):
  world.exists(undeletable="yes")
  told = world.run("delete", "--yes", code=1)
  assert "still there" in told and "paid for" in told


def test_an_error_of_gcloud_is_not_taken_for_absence(world):
  world.set(request="DENIED")
  assert "PERMISSION_DENIED" in world.run("delete", "--yes", code=1)
  assert not world.calls(" delete ")


@pytest.mark.parametrize("script", _USER)
def test_a_dry_run_prints_commands_and_runs_none(world, script):
  needs = _RUN if script in ("run", "supervise") else ()
  (world.root / "bin/gcloud").unlink()  # Nor is it needed.
  told = world.run(script, *needs, DRY_RUN="1")
  assert "gcloud compute tpus " in told
  assert not world.calls()


@pytest.mark.parametrize("script", _USER)
def test_help_shows_the_command_and_the_mistakes_name_the_option(world, script):
  assert f"tpu/{script}.sh" in world.run(script, "--help")
  assert "--typo is not an option" in world.run(script, "--typo=3", code=2)
  assert "--name needs a value" in world.run(script, "--name", code=2)
  assert "unexpected argument 'x'" in world.run(script, "x", code=2)
  assert not world.calls()


@pytest.mark.parametrize(
  "arguments, sentence",
  (
    (("run", "--workdir=x"), "--config is missing"),
    (("run", "--config=x"), "--workdir is missing"),
    (("run", "--config=x", "--workdir=gs://bucket"), "gs://BUCKET/PATH"),
    (("supervise", *_RUN, "--max-restarts=few"), "--max-restarts is 'few'"),
    (("create", "--type=v9-8"), "known are v4-N, v5litepod-N"),
    (("create", "--name=A b"), "--name is 'A b'"),
    (("create", "--poll-seconds=often"), "allowed is a number of seconds"),
    (("setup", "--ref=main"), "it needs --repo"),
    (("logs", "--worker=all"), "the number of one worker"),
    (("delete", "--", "x"), "nothing may follow --"),
  ),
)
def test_a_mistake_is_one_sentence(world, arguments, sentence):
  told = world.run(*arguments, code=2, TPU_REPO="")
  assert sentence in told and told.count("\n") == 1
  assert not world.calls()


def test_a_missing_gcloud_is_said(world):
  path = world.root / "bare"
  path.mkdir()
  for tool in ("bash", "dirname", "timeout"):
    (path / tool).symlink_to(shutil.which(tool))
  told = world.run("create", code=2, PATH=str(path))
  assert "gcloud is not installed" in told


def _copy(world):
  """The scripts at another place, where a file of settings may be written."""
  world.scripts = world.root / "a copy" / "tpu"
  shutil.copytree(TPU, world.scripts, ignore=shutil.ignore_patterns("env"))


def test_settings_option_before_environment_before_file(world):
  _copy(world)
  shutil.copy(world.scripts / "env.example", world.scripts / "env")
  world.run("create", "--name=option", TPU_ON_DEMAND="1", TPU_TYPE="v4-8")
  (call,) = world.calls("queued-resources create")
  assert {"--node-id=option", "--accelerator-type=v4-8"} <= set(call)
  assert "--project=my-project" in call and "--spot" not in call


def test_a_file_of_settings_is_not_executed(world):
  _copy(world)
  env = world.scripts / "env"
  env.write_text("TPU_PROJECT=$(touch bad) x")
  world.run("create")
  (call,) = world.calls("queued-resources create")
  assert "--project=$(touch bad) x" in call
  env.write_text("# mine\n\nTPU_ZON=here\n")
  assert "line 3 is 'TPU_ZON=here'" in world.run("create", code=2)


def test_the_example_names_every_setting(world):
  names = subprocess.run(
    ["bash", "-c", 'source "$0"; echo "${SETTINGS[*]}"', TPU / "common.sh"],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  lines = (TPU / "env.example").read_text().splitlines()
  shown = [
    line.lstrip("#").removeprefix("TPU_").split("=")[0]
    for line in lines
    if line.lstrip("#").startswith("TPU_")
  ]
  assert sorted(shown) == sorted(names)


def test_shellcheck_is_content():
  fake = pathlib.Path(__file__).with_name("fake_gcloud.sh")
  # The extra [dev] puts it beside this interpreter, whatever PATH says.
  shellcheck = pathlib.Path(sysconfig.get_path("scripts")) / "shellcheck"
  subprocess.run(
    [shellcheck, "-x", "-P", "SCRIPTDIR", *TPU.glob("*.sh"), fake],
    check=True,
  )
