"""Every worker in the documents loses nothing but the job in its hands, whichever of its processes is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from tests.docs.kill import SIGNALS, Trial
from tests.docs.worker import WORKERS, Worker
from tests.harness.process import Server
from tests.harness.waiting import wait_until

every_worker = pytest.mark.parametrize(("page", "name"), WORKERS, ids=[f"{page}-{name}" for page, name in WORKERS])

NOBODY = '{"success": true, "key": "jobs", "value": null}', '{"value": null}'
JOB = '{"success": true, "key": "jobs", "value": "{\\"id\\": 7}"}', '{"value": "{\\"id\\": 7}"}'
"""Answers in the fields dialect and on one line."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


@pytest.fixture
def worker(server: Server, page: str, name: str, tmp_path: Path) -> Iterator[Worker]:
    server.post({"command": "DELETE jobs"})
    with Worker(page, name, server.port, tmp_path) as worker:
        yield worker


def push(server: Server, job: int) -> None:
    assert server.post({"command": "QPUSH", "key": "jobs", "value": json.dumps({"id": job})})[0] == 200


def waiters(server: Server) -> int:
    found: int = server.get("/stats")[1]["waiters"]
    return found


def test_the_documents_have_workers_in_three_languages() -> None:
    assert {Path(name).suffix for page, name in WORKERS if page == "README.md"} == {".sh", ".py", ".mjs"}


@every_worker
@pytest.mark.parametrize("number", SIGNALS)
def test_a_worker_that_is_killed_while_it_waits_takes_no_job(
    server: Server, worker: Worker, number: signal.Signals
) -> None:
    wait_until(lambda: waiters(server) == 1, lambda: worker.log)
    worker.end(number)
    wait_until(lambda: waiters(server) == 0)
    push(server, 1)
    assert server.post({"command": "QLEN jobs"}) == (200, {"value": 1})
    assert worker.done == []


@every_worker
@pytest.mark.parametrize("number", SIGNALS)
def test_a_worker_whose_other_process_is_killed_goes_on(server: Server, worker: Worker, number: signal.Signals) -> None:
    wait_until(lambda: waiters(server) == 1, lambda: worker.log)
    for pid in worker.processes():
        if pid != worker.pid:
            os.kill(pid, number)
            wait_until(lambda: waiters(server) == 0)
    push(server, 1)
    wait_until(lambda: worker.done == [1], lambda: worker.log)
    assert worker.is_running


def tool(scratch: Path, name: str, text: str) -> Path:
    """Returns a directory with one program, to be found before the real one."""
    tools = scratch / "tools"
    tools.mkdir()
    (tools / name).write_text(text)
    (tools / name).chmod(0o755)
    return tools


def test_a_shell_without_a_working_jq_takes_one_job_and_ends(server: Server, tmp_path: Path) -> None:
    server.post({"command": "DELETE jobs"})
    for job in range(3):
        push(server, job)
    with Worker(
        "README.md", "worker.sh", server.port, tmp_path, tool(tmp_path, "jq", "#!/bin/sh\nexit 127\n")
    ) as worker:
        assert worker.wait() == 1
    assert 'cannot read {"value": "{\\"id\\": 0}"}' in worker.log
    assert server.post({"command": "QLEN jobs"}) == (200, {"value": 2})


_SLOW_SETPRIV = """\
#!/bin/bash
touch "$0.began"
while kill -0 "$PPID" 2>/dev/null; do sleep 0.01; done
exec "$(type -ap setpriv | tail -n 1)" "$@"
"""


def test_a_shell_that_is_killed_before_its_curl_is_tied_to_it_leaves_none(server: Server, tmp_path: Path) -> None:
    server.post({"command": "DELETE jobs"})
    tools = tool(tmp_path, "setpriv", _SLOW_SETPRIV)
    push(server, 1)
    with Worker("README.md", "worker.sh", server.port, tmp_path, tools) as worker:
        wait_until((tools / "setpriv.began").exists)
        worker.end()
    assert server.post({"command": "QLEN jobs"}) == (200, {"value": 1})


@every_worker
def test_kills_at_random_moments_cost_one_job_each_at_most(
    server: Server, page: str, name: str, tmp_path: Path
) -> None:
    server.post({"command": "DELETE jobs"})
    result = Trial(server, page, name, tmp_path, seed=1).round()
    assert len(result.lost) <= result.kills
    assert result.twice == []
    assert result.done > 0
    assert result.waiting > 0


@every_worker
def test_a_worker_lives_through_a_crash_of_the_server(page: str, name: str, tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, Worker(page, name, server.port, tmp_path) as worker:
        wait_until(lambda: waiters(server) == 1, lambda: worker.log)
        server.kill()
        wait_until(lambda: "trying again" in worker.log)
        with Server(tmp_path / "data", "--bind", f"127.0.0.1:{server.port}") as another:
            push(another, 1)
            wait_until(lambda: worker.done == [1], lambda: worker.log)


class Script(ThreadingHTTPServer):
    """A server that gives the answers it was told, one after the other, and then hangs up.

    Args:
        answers: status, and the body in the fields dialect and on one line.
    """

    def __init__(self, answers: Sequence[tuple[int, tuple[str, str]]]) -> None:
        self.answers = list(answers)
        super().__init__(("127.0.0.1", 0), _Answering)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()


class _Answering(BaseHTTPRequestHandler):
    server: Script

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.server.answers:
            return
        status, (fields, line) = self.server.answers.pop(0)
        body = (fields if "key" in request else line).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Is quiet."""


REFUSED = '{"success": false, "message": "no: not so", "key": "jobs"}', '{"error": "no", "detail": "not so"}'


def run(page: str, name: str, scratch: Path, *answers: tuple[int, tuple[str, str]]) -> Worker:
    """Gives a worker these answers, of which the last one ends it."""
    with Script(answers) as server, Worker(page, name, server.server_port, scratch) as worker:
        assert worker.wait() == 1
        assert server.answers == []
    return worker


@every_worker
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_a_worker_ends_with_a_message_where_trying_again_does_not_help(
    page: str, name: str, tmp_path: Path, status: int
) -> None:
    worker = run(page, name, tmp_path, (status, REFUSED))
    assert "not so" in worker.log


@every_worker
def test_a_worker_goes_on_after_a_null_and_after_what_passes(page: str, name: str, tmp_path: Path) -> None:
    worker = run(page, name, tmp_path, (200, NOBODY), (503, REFUSED), (200, JOB), (200, NOBODY), (401, REFUSED))
    assert "trying again" in worker.log
    assert worker.done == [7]
