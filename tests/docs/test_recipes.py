"""The recipes in the documents hold when something goes wrong at the worst moment."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import httpx

from tests.docs.kill import SIGNALS
from tests.docs.pages import programs
from tests.docs.worker import Worker
from tests.harness.effort import many
from tests.harness.process import Server


class Forgetful(ThreadingHTTPServer):
    """Passes requests on to a server, and loses its first answers: the connection ends without one.

    Args:
        url: of the server.
        losses: how many answers.
    """

    def __init__(self, url: str, losses: int) -> None:
        self.url, self.losses = url, losses
        super().__init__(("127.0.0.1", 0), _Forgetting)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()


class _Forgetting(BaseHTTPRequestHandler):
    server: Forgetful

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        answer = httpx.post(self.server.url + self.path, content=content, trust_env=False)
        if self.server.losses > 0:
            self.server.losses -= 1
            return
        self.send_response(answer.status_code)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *args: object) -> None:
        """Is quiet."""


def test_a_job_is_pushed_once_though_answers_get_lost(tmp_path: Path) -> None:
    for name, text in programs("docs/clients.md").items():
        (tmp_path / name).write_text(text)
    with Server(tmp_path / "data") as server, Forgetful(server.url, losses=2) as proxy:
        environment = os.environ | {"HOLDFAST_URL": f"http://127.0.0.1:{proxy.server_port}"}
        ran = subprocess.run(
            [sys.executable, "push_once.py", "7"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr.count("trying again") == 2
        assert server.post({"command": "QLEN jobs"}) == (200, {"value": 1})
        assert json.loads(server.post({"command": "QPOP jobs"})[1]["value"])["id"] == "7"


def test_a_job_that_is_kept_until_it_is_done_outlives_every_kill(tmp_path: Path) -> None:
    jobs = [str(number) for number in range(1, many(80) + 1)]
    with Server(tmp_path / "data") as server, Worker("docs/clients.md", "keeper.py", server.port, tmp_path) as keeper:
        for job in jobs:
            server.post(
                [
                    {"command": "SET", "key": f"todo:{job}", "value": json.dumps({"id": job})},
                    {"command": "QPUSH", "key": "todos", "value": job},
                ],
                "/multi",
            )
        draw = random.Random(1)
        while server.post({"command": "QLEN todos"})[1]["value"]:
            time.sleep(draw.random())  # the moment is what is drawn
            keeper.end(draw.choice(SIGNALS))
            keeper.start()
        keeper.end()
        kept = [job for job in jobs if server.post({"command": f"EXISTS todo:{job}"})[1]["value"]]
        done = [str(job) for job in keeper.done]
        assert {*kept, *done} == {*jobs}


def test_a_nightly_job_is_pushed_once_though_many_machines_run_the_script(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        script = programs("docs/clients.md")["nightly.sh"].replace(":8080", f":{server.port}")
        runs = [subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE) for _ in range(5)]
        answers = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
        assert answers.count([{}, {}]) == 1
        assert server.post({"command": "QLEN reports"}) == (200, {"value": 1})
