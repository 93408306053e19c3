"""The remote judge against the reference server, and against bad ones."""

import contextlib
import http.client
import http.server
import json
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.judge_server import server as servers
from experiments.judge_server.__main__ import spatial_score
from spatialrl.parallel.mesh import make_mesh
from spatialrl.rewards import remote
from spatialrl.rewards.judges import SpatialScore, make_judges
from spatialrl.rewards.pool import Pool, WorkerError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
FLOATS = jnp.asarray(IMAGES / np.float32(127.5) - 1)
TIMEOUT = 2.0


def first_value(images, prompts):
  """A scorer: the first value of each image, or what the prompt asks for."""
  if "break" in prompts:
    raise RuntimeError("out of memory")
  if "short" in prompts:
    return []
  odd = {"null": None, "nan": float("nan")}
  return [
    odd.get(p, float(i[0, 0, 0])) for i, p in zip(images, prompts, strict=True)
  ]


@contextlib.contextmanager
def running(server):
  """Serves in a thread; gives the url."""
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield "http://{}:{}".format(*server.server_address)
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def url():
  with running(servers.make_server(first_value, port=0)) as url:
    yield url


@pytest.fixture
def bad_url():
  """A server that misbehaves as the first prompt says."""
  over = threading.Event()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      size = int(self.headers["Content-Length"])
      request = json.loads(self.rfile.read(size))
      fault = request["prompts"][0]
      good = {"protocol": 1, "id": request["id"], "scores": [1.0]}
      if fault == "silent":
        over.wait(60)
      elif fault in ("slow head", "slow body"):
        self.slowly(fault)
      elif fault != "hang up":
        text = {
          "html": "<html>",
          "array": "[1.0]",
          "torn": json.dumps(good)[:-3],
          "other id": json.dumps(good | {"id": "x"}),
          "other protocol": json.dumps(good | {"protocol": 2}),
          "two scores": json.dumps(good | {"scores": [1.0, 2.0]}),
          "no scores": json.dumps(good | {"scores": None}),
        }.get(fault, json.dumps(good))
        self.send_response(503 if fault == "busy" else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def slowly(self, fault):
      with contextlib.suppress(ConnectionError):
        if fault == "slow body":
          self.send_response(200)
          self.end_headers()
        while not over.wait(0.1):
          self.wfile.write(b"H")

    def log_message(self, format, *arguments):
      pass

  with running(http.server.ThreadingHTTPServer(("", 0), Handler)) as url:
    yield url
    over.set()


def config(url, **fields):
  settings = {
    "url": url, "timeout_seconds": 20, "retries": 0, "in_flight": 2, "batch": 4,
  }
  return ConfigDict({"remote": settings | fields})


def test_the_server_scores_what_the_run_drew(url):
  judge = make_judges(config(url), make_mesh((-1, 1, 1)))["remote"]
  prompts = ["a", "null", "é \"b\"", "nan", "c", "d"]
  signals = judge(FLOATS, prompts)
  want = np.array(IMAGES[:, 0, 0, 0], np.float32)
  want[[1, 3]] = -np.inf
  np.testing.assert_array_equal(signals.scalar, want)
  assert signals.scalar.dtype == jnp.float32


def test_pixels_survive_the_way():
  for image in IMAGES:
    text = remote.encode_png(image)
    np.testing.assert_array_equal(remote.decode_png(text), image)


@pytest.mark.parametrize("prompt, said", [
  ("break", "HTTP 500.*RuntimeError: out of memory"),
  ("short", "HTTP 500.*0 scores came for 1 images"),
])
def test_the_server_outlives_its_scorer_s_faults(url, prompt, said):
  client = remote.Client(url, timeout_seconds=20)
  with pytest.raises(WorkerError, match=said):
    client.score(IMAGES[:1], [prompt])
  assert client.score(IMAGES[:1], ["a"]) == IMAGES[0, 0, 0, 0]


@pytest.mark.parametrize("change, said", [
  ({"protocol": 7}, "not of protocol 1"),
  ({"prompts": ["a", "b"]}, "1 images and 2 prompts"),
  ({"prompts": [1]}, "prompts is not a list of strings"),
  ({"images": ["!"]}, "base64|padding"),
  ({"images": ["aGVsbG8="]}, "an image cannot be read"),
  ({"prompts": [], "images": []}, "0 images"),
])
def test_the_server_says_what_is_wrong_with_a_request(url, change, said):
  client = remote.Client(url, timeout_seconds=20)
  good = {
    "protocol": 1, "id": "7", "prompts": ["a"],
    "images": [remote.encode_png(IMAGES[0])],
  }
  answer = client._request("POST", "/score", good)
  assert answer == {
    "protocol": 1, "id": "7", "scores": [float(IMAGES[0, 0, 0, 0])]
  }
  with pytest.raises(WorkerError, match=f"HTTP 400.*({said})"):
    client._request("POST", "/score", good | change)
  with pytest.raises(WorkerError, match="HTTP 404"):
    client._request("POST", "/elsewhere", good)


@pytest.mark.parametrize("path, megabytes, status", [
  ("/elsewhere", 12, 404), ("/score", 12, 413), ("/score", 0, 400),
])
def test_a_client_that_sends_much_hears_why_it_is_refused(
  url, monkeypatch, path, megabytes, status
):
  monkeypatch.setattr(servers, "_LARGEST_REQUEST", 8 << 20)
  place = url.removeprefix("http://")
  with contextlib.closing(http.client.HTTPConnection(place)) as connection:
    connection.request("POST", path, bytes(megabytes << 20))
    answer = connection.getresponse()
    assert answer.status == status and json.loads(answer.read())["error"]


def test_an_answer_nested_too_deep_is_a_failed_score():
  with pytest.raises(WorkerError, match="the answer is no JSON"):
    remote._parse(b"[" * 200_000)


def test_bad_answers_fail_alone_and_in_time(bad_url):
  client = remote.Client(bad_url, timeout_seconds=TIMEOUT)
  pool = Pool([client] * 3, batch=1, retries=0)
  faults = {
    "silent": "no answer came within 2 seconds",
    "slow head": "no answer came within 2 seconds",
    "slow body": "no answer came within 2 seconds",
    "hang up": "RemoteDisconnected",
    "busy": "HTTP 503",
    "html": "the answer is no JSON",
    "torn": "the answer is no JSON",
    "array": "the answer is not of protocol 1",
    "other protocol": "the answer is not of protocol 1",
    "other id": "the answer has id 'x'",
    "two scores": "2 scores came for 1 images",
    "no scores": "the scores are a NoneType",
  }
  for fault, said in faults.items():
    began = time.monotonic()
    scores, reason = pool(IMAGES[:3], ["fine", fault, "fine"])
    assert time.monotonic() - began < TIMEOUT + 8, fault
    np.testing.assert_array_equal(scores, [1, -np.inf, 1], err_msg=fault)
    assert reason.startswith(said), fault
  pool.close()


def test_no_server_and_no_url_are_errors_before_the_run(url):
  mesh = make_mesh((-1, 1, 1))
  server = servers.make_server(first_value, port=0)
  gone = "http://{}:{}".format(*server.server_address)
  server.server_close()
  for place, said in (
    (gone, "no judge answers: ConnectionRefusedError"),
    (url + "/nowhere", "no judge answers: HTTP 404"),
    ("localhost:80", "must be like http://host:8000"),
    ("http://localhost:none", "no judge answers: InvalidURL"),
  ):
    with pytest.raises(ValueError, match=said) as caught:
      make_judges(config(place), mesh)
    assert repr(place) in str(caught.value)
  with pytest.raises(ValueError, match="rewards.remote.batch is 0"):
    make_judges(config(url, batch=0), mesh)


def test_the_packaged_reward_scores_alike_over_the_wire():
  local = SpatialScore(
    ConfigDict({"weights": "reward.safetensors"}), make_mesh((-1, 1, 1))
  )
  side = local.model.size
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 256, (3, side, side, 3), np.uint8)
  images = jnp.asarray(pixels / np.float32(127.5) - 1)
  prompts = ["a red circle left of a blue square"] * 3
  scorer = spatial_score("reward.safetensors", 2)
  with running(servers.make_server(scorer, port=0)) as url:
    judges = make_judges(
      config(url, batch=3, timeout_seconds=120), make_mesh((-1, 1, 1))
    )
    served = judges["remote"](images, prompts).scalar
    client = remote.Client(url, timeout_seconds=120)
    with pytest.raises(WorkerError, match="images are of"):
      client.score(pixels[:, 1:], prompts)
  want = local(images, prompts).scalar
  np.testing.assert_allclose(served, want, rtol=1e-5, atol=1e-5)
  assert np.ptp(served) > 1e-3
