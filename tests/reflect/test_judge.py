"""A chat-style judge as Checker and Actor, against servers good and bad."""

import contextlib
import http.server
import json
import threading

import numpy as np
import pytest

from spatialrl.reflect.judge import Judge
from spatialrl.scenes import instructions

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
PROMPTS = ["a dog left of a cat; a cat near a cup", "a hat above a car"]
TRIED = [["move the cat", "add a cup"], []]


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers as `server.scores` and `server.texts` say."""

  def do_GET(self):
    self.answer({"protocol": 1, "status": "ok"})

  def do_POST(self):
    size = int(self.headers["Content-Length"])
    request = json.loads(self.rfile.read(size))
    self.server.asked = request["prompts"]
    answer = {"protocol": 1, "id": request["id"]}
    field = {"/score": "scores", "/write": "texts"}[self.path]
    self.answer(answer | {field: getattr(self.server, field)})

  def answer(self, content):
    body = json.dumps(content).encode()
    self.send_response(200)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(scores=None, texts=None, read=str):
  server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
  server.scores, server.texts = scores, texts
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  url = "http://{}:{}".format(*server.server_address)
  try:
    yield server, Judge(url, timeout_seconds=5.0, separator="; ", read=read)
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def test_one_question_a_relation():
  with serving(scores=[0.9, 0.2, 1.0]) as (server, judge):
    said = judge.check(IMAGES, PROMPTS)
  assert server.asked == [
      "a dog left of a cat", "a cat near a cup", "a hat above a car"
  ]
  np.testing.assert_allclose(said, np.float32([[0.9, 0.2], [1.0, np.nan]]))


def test_the_actor_is_told_what_failed():
  with serving(texts=["move the dog", "nothing"]) as (server, judge):
    said = np.float32([[0.9, 0.2], [0.1, np.nan]])
    told = judge.act(IMAGES, PROMPTS, said, None, TRIED, None)
  assert told == ["move the dog", "nothing"]
  assert "Tried in vain: move the cat\nTried in vain: add a cup\n" in (
      server.asked[0]
  )
  assert "Tried" not in server.asked[1]
  assert "Not true of it: a cat near a cup\n" in server.asked[0]
  assert "Not true of it: a hat above a car\n" in server.asked[1]


@pytest.mark.parametrize("scores, said", [
    ([0.9, 1.2, 0.3], "answers 1.2.* on 'a cat near a cup'; a probability"),
    ([0.9, None, 0.3], "answers -inf on 'a cat near a cup'"),
    ([0.9], "1 scores came for 3 images"),
    ("yes", "the scores are a str"),
])
def test_no_probability_is_one_clear_error(scores, said):
  with serving(scores=scores) as (_, judge):
    with pytest.raises(ValueError, match=said):
      judge.check(IMAGES, PROMPTS)


@pytest.mark.parametrize("texts", [["one"], "move it", ["", "x"], [1, 2]])
def test_no_text_is_one_clear_error(texts):
  with serving(texts=texts) as (_, judge):
    with pytest.raises(ValueError, match="does not keep to the protocol"):
      judge.act(IMAGES, PROMPTS, np.ones((2, 2)), None, [[], []], None)


def test_an_instruction_of_no_grammar_is_refused():
  with serving(texts=["move the red circle to the upper left", "paint it"],
               read=instructions.parse) as (_, judge):
    with pytest.raises(ValueError, match="wrote no instruction: .*'paint it'"):
      judge.act(IMAGES, PROMPTS, np.ones((2, 2)), None, [[], []], None)


def test_nobody_there():
  with pytest.raises(ValueError, match="does not keep to the protocol"):
    Judge("http://127.0.0.1:9", timeout_seconds=1.0, separator="; ", read=str)
