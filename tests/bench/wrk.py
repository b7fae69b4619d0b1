"""Runs wrk, one thread, and reads what it found: requests a second, latencies, errors.

wrk itself prints no percentile above 99, so a script prints what the rows need, on one line that begins with `bench`.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from tests.bench.peers import NotMeasured

Sample = dict[str, float]
"""What one run found, by the names below; a row has those that apply to it."""

PER_S = "per_s"
P50_MS, P99_MS, P999_MS = "p50_ms", "p99_ms", "p999_ms"
CLIENT = "client_cpu"
"""Share of one core that the client took; close to 1 the figure says more about the client than about the server."""

KIB_EACH = "kib_each"

END_WITHIN_S = 60.0

_LINE = re.compile(r"^bench ([0-9 .]+)$", re.MULTILINE)
_DONE = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("bench %d %d %d %d %d %d %d %.3f %.3f %.3f\\n", summary.requests, summary.duration,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""
_ERRORS = ("failed connections", "failed reads", "failed writes", "answers that are errors", "timeouts")


@dataclass(frozen=True)
class Request:
    """A HTTP request, and what the body of its answer must hold."""

    path: str = "/"
    body: str | None = None
    method: str = "POST"
    holds: str = ""

    def check(self, client: httpx.Client, url: str) -> None:
        """Sends it once to a server.

        Raises:
            NotMeasured: the answer is not what it should be.
        """
        response = client.request(self.method, url + self.path, content=self.body)
        if response.status_code != 200 or self.holds not in response.text or "error" in response.text:
            raise NotMeasured(f"{self.method} {self.path} answers {response.status_code} {response.text[:100]!r}")


def in_turn(requests: Sequence[Request]) -> str:
    """Lua for wrk: sends these in turn. A single one is made once, before the time is taken."""
    formatted = [
        f"wrk.format({_lua(request.method)}, {_lua(request.path)}, nil, {_lua(request.body)})" for request in requests
    ]
    if len(requests) == 1:
        (request,) = requests
        settings = (
            f"wrk.method, wrk.path, wrk.body = {_lua(request.method)}, {_lua(request.path)}, {_lua(request.body)}"
        )
        return f"{settings}\n"
    made = f"init = function() made = {{{', '.join(formatted)}}}; turn = 0 end"
    taken = f"request = function() turn = turn % {len(requests)} + 1; return made[turn] end"
    return f"{made}\n{taken}\n"


def _lua(text: str | None) -> str:
    return "nil" if text is None else json.dumps(text)  # the bodies here are plain ASCII, which both write alike


def parse(output: str) -> Sample:
    """What the script printed.

    Raises:
        NotMeasured: there were errors, or no answers.
    """
    found = _LINE.search(output)
    if found is None:
        raise NotMeasured("wrk printed no result")
    requests, duration_us, *errors, p50_us, p99_us, p999_us = (float(word) for word in found[1].split())
    for count, name in zip(errors, _ERRORS, strict=True):
        if count:
            raise NotMeasured(f"{count:,.0f} {name}")
    if not requests:
        raise NotMeasured("no request was answered")
    return {
        PER_S: requests / duration_us * 1e6,
        P50_MS: p50_us / 1000,
        P99_MS: p99_us / 1000,
        P999_MS: p999_us / 1000,
    }


def run(url: str, connections: int, seconds: int, script: str) -> Sample:
    """One run of wrk.

    Args:
        url: of the server.
        connections: how many, each with one request at a time.
        seconds: how long.
        script: what they send, in Lua.

    Raises:
        NotMeasured: wrk failed, or counted an error.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + _DONE)
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", file.name, url]
        before_s = children_cpu_s()
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + END_WITHIN_S, check=False)
        cpu_s = children_cpu_s() - before_s
    if ran.returncode:
        raise NotMeasured(f"wrk: {ran.stderr.strip() or ran.stdout.strip()}")
    return {**parse(ran.stdout), CLIENT: cpu_s / seconds}


def children_cpu_s() -> float:
    """CPU time of the processes that we have started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
