"""Links: what is sent in which pipeline, and what becomes of it when the connection breaks, at any moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import trio
from coredis.exceptions import MovedError, ResponseError
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.redis.endpoint import Address
from engine.redis.errors import Lost, NotReplicated, NotSent, NotYet
from engine.redis.group import ANSWERS_BYTES_MAX, GROUP_BYTES_MAX, GROUP_MAX
from engine.redis.link import LOOK_AGAIN_S, RECONNECT_S, Link, LinkSettings
from engine.redis.node import ANSWER_TIMEOUT_S
from engine.redis.request import Request
from engine.redis.scripts import SCRIPTS
from tests.harness.fake_redis import HOLD, FakeNet, FakeNode, Fault

NAME = "10.0.0.1:7000"
ADDRESS = Address("10.0.0.1", 7000)
OPTIONS = {"username": None, "password": None, "db": 0, "ssl_context": None}
CACHING = (b"CLIENT", b"CACHING", b"YES")


class Owner:
    """Whom the link tells; and a shorthand for requests."""

    def __init__(self) -> None:
        self.link: Link
        self.results: list[tuple[Request, Any]] = []
        self.heard: list[Any] = []
        self.on_answer: Callable[[Request], None] = lambda _request: None

    def link_up(self, link: Link) -> None:
        assert link.up
        self.heard.append("up")

    def link_down(self, link: Link) -> None:
        assert not link.up
        self.heard.append("down")

    def answered(self, request: Request, result: Any) -> None:
        assert all(request is not other for other, _ in self.results), "answered twice"
        self.results.append((request, result))
        self.on_answer(request)

    def key_changed(self, key: bytes | None) -> None:
        self.heard.append(key)

    def round_trip(self, duration_s: float, requests: int) -> None:
        self.heard.append(requests)

    def post(self, *words: bytes, **options: bool) -> Request:
        request = Request(words[0], words[1:], 0, lambda _result: None, **options)
        self.link.post(request)
        return request

    def result(self, request: Request) -> Any:
        [result] = [result for other, result in self.results if other is request]
        return result

    def kinds(self, *requests: Request) -> list[type]:
        return [type(self.result(request)) for request in requests]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    return FakeNet(monkeypatch, NAME)[NAME]


@pytest.fixture
async def owner(node: FakeNode, autojump_clock: MockClock) -> Owner:
    """With a link that is not connected yet."""
    owner = Owner()
    owner.link = Link(ADDRESS, LinkSettings(OPTIONS), owner)
    return owner


@pytest.fixture
async def up(owner: Owner, nursery: trio.Nursery) -> AsyncIterator[Owner]:
    """With a link that is connected."""
    nursery.start_soon(owner.link.run)
    await wait_all_tasks_blocked()
    assert owner.heard == ["up"]
    owner.heard.clear()
    yield owner
    nursery.cancel_scope.cancel()


def held(node: FakeNode, *names: bytes) -> None:
    """Has a node say nothing to these commands, though it has read them."""
    for name in names:
        node.answers[name] = lambda _words: HOLD


# What is sent


async def test_a_connection_is_set_up_before_it_is_used(up: Owner, node: FakeNode) -> None:
    node.sent.clear()
    node.loaded.clear()
    node.cut()
    await trio.sleep(1)
    assert node.loaded == [script.source for script in SCRIPTS.values()]
    [[kill, *others]] = node.sent
    assert kill == (b"CLIENT", b"KILL", b"ID", b"1", b"ADDR", b"10.9.9.9:1")
    assert others == [
        (b"CLIENT", b"SETNAME", b"holdfast"),
        (b"CLIENT", b"TRACKING", b"ON", b"OPTIN"),
        (b"CLIENT", b"INFO"),
    ]
    assert up.link.vitals.config == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}


async def test_whom_a_node_that_has_started_again_has_given_an_old_number_is_left_alone(
    up: Owner, node: FakeNode, nursery: trio.Nursery
) -> None:
    node.start_again()
    other = Owner()
    other.link = Link(ADDRESS, LinkSettings(OPTIONS), other)
    nursery.start_soon(other.link.run)
    await trio.sleep(1)
    assert [connection.number for connection in node.connections] == [1, 2]
    assert (up.heard, other.heard) == (["down", "up"], ["up"])


async def test_requests_of_one_turn_share_a_pipeline_and_are_answered_in_order(up: Owner, node: FakeNode) -> None:
    requests = [up.post(b"SET", b"k", b"v"), up.post(b"GET", b"k"), up.post(b"GET", b"nothing")]
    await wait_all_tasks_blocked()
    assert node.sent[-1] == [(b"SET", b"k", b"v"), (b"GET", b"k"), (b"GET", b"nothing")]
    assert up.results == list(zip(requests, [b"OK", b"v", None], strict=True))
    assert up.heard == [3]


async def test_words_may_be_numbers(up: Owner, node: FakeNode) -> None:
    up.link.post(Request(b"HDEL", (b"h", 7, 10**15), 0, lambda _result: None))
    await wait_all_tasks_blocked()
    assert node.sent[-1] == [(b"HDEL", b"h", b"7", b"1000000000000000")]


async def test_a_pipeline_has_its_limits(up: Owner, node: FakeNode) -> None:
    for _ in range(GROUP_MAX + 1):
        up.post(b"GET", b"k")
    for _ in range(3):
        up.post(b"SET", b"k", b"x" * (GROUP_BYTES_MAX // 2))
    await wait_all_tasks_blocked()
    assert up.heard == [GROUP_MAX, 3, 1]
    assert len(up.results) == GROUP_MAX + 4


async def test_a_pipeline_is_short_while_answers_are_long(up: Owner, node: FakeNode) -> None:
    """F5: all answers to a pipeline are in memory at once."""
    node.keys.held |= {b"long": b"x" * (ANSWERS_BYTES_MAX // 4), b"short": b"x"}

    async def lengths(key: bytes, count: int) -> list[int]:
        requests = [up.post(b"GET", key) for _ in range(count)]
        await wait_all_tasks_blocked()
        assert [up.result(request) for request in requests] == [node.keys.held[key]] * count
        heard, up.heard = up.heard, []
        return heard

    assert await lengths(b"long", 5) == [5], "nobody can know"
    assert await lengths(b"long", 12) == [4, 4, 4]
    assert (await lengths(b"short", 20))[0] == 4, "of pipelines that were sent with that in mind"
    assert await lengths(b"short", GROUP_MAX) == [GROUP_MAX]


async def test_few_pipelines_are_under_way_and_the_rest_gathers(up: Owner, node: FakeNode) -> None:
    node.silent = True
    for number in range(10):
        up.post(b"GET", b"%d" % number)
        await wait_all_tasks_blocked()
    node.speak()
    await wait_all_tasks_blocked()
    assert [len(pipeline) for pipeline in node.pipelines(without=(b"CLIENT",))] == [1, 1, 8]
    assert [request.serialized_arguments for request, _ in up.results] == [(b"%d" % number,) for number in range(10)]


async def test_prefixes_stand_before_their_request_and_their_answers_are_nobodys(up: Owner, node: FakeNode) -> None:
    requests = [
        up.post(b"GET", b"a", tracked=True),
        up.post(b"GET", b"b", asking=True),
        up.post(b"GET", b"c", asking=True, tracked=True),
        up.post(b"GET", b"d"),
    ]
    node.keys.held |= {b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"}
    await wait_all_tasks_blocked()
    assert node.sent[-1] == [
        *(CACHING, (b"GET", b"a")),
        *((b"ASKING",), (b"GET", b"b"), (b"ASKING",), (b"GET", b"c"), (b"GET", b"d")),
    ]
    assert [up.result(request) for request in requests] == [b"1", b"2", b"3", b"4"]


async def test_an_error_stands_in_the_place_of_its_request(up: Owner, node: FakeNode) -> None:
    def get(words: Sequence[bytes]) -> Any:
        raise Fault({b"a": "MOVED 7 10.0.0.2:7000", b"b": "MISCONF no disk"}[words[1]])

    node.answers[b"GET"] = get
    requests = [up.post(b"GET", b"a"), up.post(b"EXISTS", b"k"), up.post(b"GET", b"b")]
    await wait_all_tasks_blocked()
    assert up.kinds(*requests) == [MovedError, int, ResponseError]


# Replicas


@pytest.fixture
async def careful(node: FakeNode, nursery: trio.Nursery, autojump_clock: MockClock) -> AsyncIterator[Owner]:
    """With a link that waits for two replicas, of which there are two."""
    node.answers[b"ROLE"] = lambda _words: [b"master", 0, [[b"10.0.0.2", b"7000", b"0"]] * 2]
    owner = Owner()
    owner.link = Link(ADDRESS, LinkSettings(OPTIONS, min_replicas=2), owner)
    nursery.start_soon(owner.link.run)
    await wait_all_tasks_blocked()
    yield owner
    nursery.cancel_scope.cancel()


async def test_replicas_are_waited_for_behind_what_writes_and_only_there(careful: Owner, node: FakeNode) -> None:
    node.replicas = 2
    careful.post(b"GET", b"k")
    await wait_all_tasks_blocked()
    assert node.sent[-1] == [(b"GET", b"k")]
    write, read = careful.post(b"SET", b"k", b"v", writes=True), careful.post(b"GET", b"k", tracked=True)
    await wait_all_tasks_blocked()
    assert node.sent[-1] == [(b"SET", b"k", b"v"), CACHING, (b"GET", b"k"), (b"WAIT", b"2", b"1000")]
    assert [careful.result(write), careful.result(read)] == [b"OK", b"v"]


@pytest.mark.parametrize("answer", [0, 1, Fault("ERR WAIT cannot be used with replica instances")], ids=str)
async def test_what_too_few_replicas_have_is_said_to_be_so(careful: Owner, node: FakeNode, answer: Any) -> None:
    """Of a write; what is read is what there is."""
    node.answers[b"WAIT"] = lambda _words: answer
    node.answers[b"DEL"] = lambda _words: Fault("OOM no room")
    write, read = careful.post(b"SET", b"k", b"v", writes=True), careful.post(b"GET", b"k")
    failed = careful.post(b"DEL", b"k", writes=True)
    await wait_all_tasks_blocked()
    assert careful.kinds(write, read, failed) == [NotReplicated, bytes, ResponseError]
    assert careful.result(write).result == b"OK"


async def test_who_follows_is_asked_when_a_write_was_not_followed(careful: Owner, node: FakeNode) -> None:
    """One question at a time; the router's own are held up like all else, and not waited for so long."""
    careful.on_answer = lambda request: request.done(careful.result(request))
    node.answers[b"WAIT"] = lambda _words: 0
    asked: list[Any] = [[b"master", 0, []], HOLD]
    node.answers[b"ROLE"] = lambda _words: asked.pop(0)
    write = careful.post(b"SET", b"k", b"v", writes=True)
    await wait_all_tasks_blocked()
    assert careful.kinds(write) == [NotReplicated]
    assert asked == [HOLD]
    assert careful.kinds(careful.post(b"SET", b"k", b"v", writes=True)) == [NotYet]
    for _ in range(2):
        write = careful.post(b"SET", b"k", b"v", writes=True, insists=True)
        await wait_all_tasks_blocked()
    assert not asked


async def test_what_has_changed_nothing_needs_no_replica(careful: Owner, node: FakeNode) -> None:
    node.answers[b"SET"] = lambda _words: None
    node.answers[b"EVALSHA"] = lambda _words: [0, 1, b"key not found"]
    requests = [careful.post(b"SET", b"k", b"v", b"NX", writes=True), careful.post(b"UNLINK", b"k", writes=True)]
    requests.append(careful.post(b"EVALSHA", b"a unit that is refused", writes=True))
    await wait_all_tasks_blocked()
    assert [careful.result(request) for request in requests] == [None, 0, [0, 1, b"key not found"]]


async def test_a_write_whose_wait_is_lost_with_the_connection_is_lost(careful: Owner, node: FakeNode) -> None:
    held(node, b"WAIT")
    write, read = careful.post(b"SET", b"k", b"v", writes=True), careful.post(b"GET", b"k")
    await wait_all_tasks_blocked()
    node.cut()
    await wait_all_tasks_blocked()
    assert careful.kinds(write, read) == [Lost, bytes]


async def test_without_the_replicas_a_write_is_not_even_sent_and_reads_do_not_wait_behind_it(
    careful: Owner, node: FakeNode
) -> None:
    vitals = careful.link.vitals
    vitals.learn(0, [b"master", 0, []], {}, b"")
    node.sent.clear()
    write, read = careful.post(b"SET", b"k", b"v", writes=True), careful.post(b"EXISTS", b"k")
    await wait_all_tasks_blocked()
    assert careful.kinds(write, read) == [NotYet, int]
    assert str(careful.result(write)) == f"{ADDRESS} has 0 replicas, and writes need 2"
    assert node.sent == [[(b"EXISTS", b"k")]]
    insisting = careful.post(b"SET", b"k", b"v", writes=True, insists=True)
    await wait_all_tasks_blocked()
    assert careful.kinds(insisting) == [NotReplicated]
    vitals.learn(0, [b"master", 0, [[b"10.0.0.2", b"7000", b"0"]] * 2], {}, b"")
    node.replicas = 2
    write = careful.post(b"SET", b"k", b"v", writes=True)
    await wait_all_tasks_blocked()
    assert careful.result(write) == b"OK"


async def test_writes_that_wait_behind_one_that_was_not_followed_are_refused_too(
    careful: Owner, node: FakeNode
) -> None:
    """Two pipelines of them are under way when it turns out, and one more is sent while it is looked who follows."""
    careful.on_answer = lambda request: request.done(careful.result(request))
    node.answers[b"WAIT"] = lambda _words: 0
    node.answers[b"ROLE"] = lambda _words: [b"master", 0, []]
    writes = [careful.post(b"SET", b"k", b"%d" % number, writes=True) for number in range(10 * GROUP_MAX)]
    read = careful.post(b"GET", b"k")
    await wait_all_tasks_blocked()
    kinds = careful.kinds(*writes)
    done = kinds.index(NotYet)
    assert kinds == [NotReplicated] * done + [NotYet] * (10 * GROUP_MAX - done)
    assert done <= 3 * GROUP_MAX
    assert careful.result(read) == b"%d" % (done - 1)


async def test_a_write_that_is_refused_has_it_looked_whether_replicas_follow_again(
    careful: Owner, node: FakeNode
) -> None:
    """Nobody else looks at a node that is about to get its first slot."""
    careful.on_answer = lambda request: request.done(careful.result(request))
    careful.link.learn(role=[b"master", 0, []])
    node.replicas = 2
    careful.heard.clear()
    assert careful.kinds(careful.post(b"SET", b"k", b"v", writes=True)) == [NotYet]
    await wait_all_tasks_blocked()
    assert "up" in careful.heard, "what is owed can go back, and who waits be served"
    write = careful.post(b"SET", b"k", b"v", writes=True)
    await wait_all_tasks_blocked()
    assert careful.result(write) == b"OK"


async def test_writes_that_are_refused_have_it_looked_a_few_times_a_second_however_many_they_are(
    careful: Owner, node: FakeNode
) -> None:
    looks = 0

    def role(_words: object) -> list[object]:
        nonlocal looks
        looks += 1
        return [b"master", 0, []]

    node.answers[b"ROLE"] = role
    careful.on_answer = lambda request: request.done(careful.result(request))
    careful.link.learn(role=[b"master", 0, []])
    for _ in range(100):
        assert careful.kinds(careful.post(b"SET", b"k", b"v", writes=True)) == [NotYet]
        await trio.sleep(LOOK_AGAIN_S / 20)
    assert 4 <= looks <= 6


# Broken connections


async def test_what_was_answered_before_the_connection_broke_is_answered_and_the_rest_is_lost(
    up: Owner, node: FakeNode
) -> None:
    held(node, b"GET")
    requests = [up.post(b"EXISTS", b"k"), up.post(b"EXISTS", b"k"), up.post(b"GET", b"k"), up.post(b"GET", b"k")]
    await wait_all_tasks_blocked()
    assert not up.results
    node.cut()
    await wait_all_tasks_blocked()
    assert up.kinds(*requests) == [int, int, Lost, Lost]


async def test_what_was_not_sent_is_not_sent_and_what_was_is_lost(up: Owner, node: FakeNode) -> None:
    node.silent = True
    sent = []
    for _ in range(2):
        sent.append(up.post(b"GET", b"k"))
        await wait_all_tasks_blocked()
    waiting = [up.post(b"GET", b"k") for _ in range(3)]
    await wait_all_tasks_blocked()
    node.cut()
    await trio.lowlevel.checkpoint()
    late = up.post(b"GET", b"k")
    await wait_all_tasks_blocked()
    assert up.kinds(*sent) == [Lost, Lost]
    assert up.kinds(*waiting, late) == [NotSent] * 4
    assert not up.link.busy


async def test_a_cut_in_the_very_turn_of_a_post_leaves_nobody_without_an_answer(up: Owner, node: FakeNode) -> None:
    for turns in range(12):
        request = up.post(b"SET", b"k", b"%d" % turns)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        node.cut()
        await trio.sleep(5)
        result = up.result(request)
        done = node.keys.held.get(b"k") == b"%d" % turns
        assert (result == b"OK" and done) or isinstance(result, Lost) or (isinstance(result, NotSent) and not done)
        assert up.link.up


async def test_who_is_told_of_a_loss_may_post_at_once_and_is_refused(up: Owner, node: FakeNode) -> None:
    held(node, b"GET")
    lost = up.post(b"GET", b"k")
    up.on_answer = lambda request: again.append(up.post(b"GET", b"k")) if request is lost else None
    again: list[Request] = []
    await wait_all_tasks_blocked()
    node.cut()
    await wait_all_tasks_blocked()
    assert up.kinds(lost, again[0]) == [Lost, NotSent]


async def test_a_node_that_does_not_answer_counts_as_gone(up: Owner, node: FakeNode) -> None:
    node.silent = True
    first, second = up.post(b"GET", b"k"), up.post(b"GET", b"k")
    began_s = trio.current_time()
    up.on_answer = lambda _request: times.append(trio.current_time() - began_s)
    times: list[float] = []
    await trio.sleep(20)
    assert up.kinds(first, second) == [Lost, Lost]
    assert times == [pytest.approx(ANSWER_TIMEOUT_S), pytest.approx(ANSWER_TIMEOUT_S)]
    assert "down" in up.heard


async def test_what_the_old_connection_has_sent_is_not_done_behind_our_back(up: Owner, node: FakeNode) -> None:
    """I6: whoever looks after a lost pop once the link is up has to find what there is for good."""
    node.silent = True
    request = up.post(b"SET", b"k", b"v")
    await trio.sleep(ANSWER_TIMEOUT_S + 0.1)
    assert up.kinds(request) == [Lost]
    node.silent = False
    await trio.sleep(10)
    assert up.link.up
    node.speak()  # only now it would read what the old one has sent
    assert b"k" not in node.keys.held


async def test_attempts_to_connect_have_growing_pauses(owner: Owner, node: FakeNode, nursery: trio.Nursery) -> None:
    node.refuses = True
    nursery.start_soon(owner.link.run)
    await trio.sleep(60)
    first_s, longest_s = RECONNECT_S
    assert 60 / longest_s <= owner.heard.count("down") <= 60 / longest_s + 8
    assert owner.link.fault == f"{NAME} does not answer: Connection refused"
    assert owner.link.tried.is_set()
    node.refuses = False
    await trio.sleep(2 * longest_s)
    assert owner.link.up
    owner.heard.clear()
    node.cut()
    await trio.sleep(1.5 * first_s)
    assert owner.heard == ["down", "up"], "the next pause is short again"
    nursery.cancel_scope.cancel()


async def test_requests_wait_for_the_first_attempt_and_are_refused_when_it_fails(
    owner: Owner, node: FakeNode, nursery: trio.Nursery
) -> None:
    node.silent = True
    nursery.start_soon(owner.link.run)
    early = owner.post(b"GET", b"k")
    await trio.sleep(1)
    assert not owner.results
    await trio.sleep(20)
    assert owner.kinds(early) == [NotSent]
    assert owner.kinds(owner.post(b"GET", b"k")) == [NotSent]
    node.speak()
    await trio.sleep(10)
    assert owner.link.up
    request = owner.post(b"GET", b"k")
    await wait_all_tasks_blocked()
    assert owner.result(request) is None
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [b"6.2.14", b"6.2", b"3"])
async def test_a_redis_that_is_too_old_is_refused(
    owner: Owner, node: FakeNode, nursery: trio.Nursery, version: bytes
) -> None:
    node.version = version
    nursery.start_soon(owner.link.run)
    await wait_all_tasks_blocked()
    assert owner.link.fault == f"{NAME} runs Redis {version.decode()}, which is too old: it takes 7.0"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [b"7.0.0", b"7.2.4", b"8.0.1", b"10.1", b"7.4.0-rc1"])
async def test_newer_ones_are_fine(owner: Owner, node: FakeNode, nursery: trio.Nursery, version: bytes) -> None:
    node.version = version
    nursery.start_soon(owner.link.run)
    await wait_all_tasks_blocked()
    assert owner.link.up
    nursery.cancel_scope.cancel()


async def test_a_user_who_may_not_ask_for_the_configuration_is_no_obstacle(
    owner: Owner, node: FakeNode, nursery: trio.Nursery
) -> None:
    node.answers[b"CONFIG"] = lambda _words: Fault("NOPERM this user has no permissions")
    nursery.start_soon(owner.link.run)
    await wait_all_tasks_blocked()
    assert owner.link.up
    assert not owner.link.vitals.config
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", [b"HELLO", b"SCRIPT", b"CLIENT"])
async def test_a_node_that_refuses_to_be_set_up_is_said_not_to_answer(
    owner: Owner, node: FakeNode, nursery: trio.Nursery, name: bytes
) -> None:
    node.answers[name] = lambda _words: Fault("NOPERM this user has no permissions")
    nursery.start_soon(owner.link.run)
    await wait_all_tasks_blocked()
    assert not owner.link.up
    assert "no permissions" in owner.link.fault
    nursery.cancel_scope.cancel()


async def test_retiring_ends_it_with_everything_answered(up: Owner, node: FakeNode) -> None:
    node.silent = True
    requests = []
    for _ in range(4):
        requests.append(up.post(b"GET", b"k"))
        await wait_all_tasks_blocked()
    up.link.retire()
    await wait_all_tasks_blocked()
    assert up.kinds(*requests) == [Lost, Lost, NotSent, NotSent]
    assert up.kinds(up.post(b"GET", b"k")) == [NotSent]
    node.speak()
    await wait_all_tasks_blocked()
    assert not node.connections


async def test_cancelling_while_it_connects_answers_everything(
    owner: Owner, node: FakeNode, nursery: trio.Nursery
) -> None:
    node.silent = True
    nursery.start_soon(owner.link.run)
    request = owner.post(b"GET", b"k")
    await wait_all_tasks_blocked()
    owner.link.retire()
    await wait_all_tasks_blocked()
    assert owner.kinds(request) == [NotSent]


# Keys that change


async def test_a_tracked_key_that_changes_is_told_once(up: Owner, node: FakeNode) -> None:
    up.post(b"GET", b"k", tracked=True)
    up.post(b"GET", b"other")
    await wait_all_tasks_blocked()
    up.heard.clear()
    for key in (b"k", b"k", b"other"):
        node.keys.do([b"SET", key, b"v"])
    await wait_all_tasks_blocked()
    assert up.heard == [b"k"]


async def test_changes_are_told_before_and_behind_answers(up: Owner, node: FakeNode) -> None:
    up.post(b"GET", b"k", tracked=True)
    up.post(b"SET", b"k", b"v")  # its own writes are told too
    up.post(b"GET", b"k", tracked=True)
    await wait_all_tasks_blocked()
    node.keys.do([b"SET", b"k", b"w"])
    await wait_all_tasks_blocked()
    assert [one for one in up.heard if isinstance(one, bytes)] == [b"k", b"k"]
    assert [result for _, result in up.results] == [None, b"OK", b"v"]


async def test_a_flush_is_told_as_a_change_of_any_key(up: Owner, node: FakeNode) -> None:
    node.connections[0].push(b"invalidate", None)
    node.connections[0].push(b"invalidate", [b"a", b"b"])
    node.connections[0].push(b"something else", [b"a"])
    await wait_all_tasks_blocked()
    assert up.heard == [None, b"a", b"b"]


async def test_nonsense_from_a_node_breaks_the_connection_and_nothing_else(up: Owner, node: FakeNode) -> None:
    held(node, b"GET")
    request = up.post(b"GET", b"k")
    await wait_all_tasks_blocked()
    node.connections[0]._out += b"HTTP/1.1 400 Bad Request\r\n"
    node.connections[0]._something.set()
    await trio.sleep(5)
    assert up.kinds(request) == [Lost]
    assert up.link.up
    assert not up.link.busy


@pytest.mark.parametrize("turns", range(8))
async def test_a_post_while_the_connection_breaks_for_nonsense_is_answered(
    up: Owner, node: FakeNode, turns: int
) -> None:
    node.connections[0]._out += b"HTTP/1.1 400 Bad Request\r\n"
    node.connections[0]._something.set()
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    request = up.post(b"EXISTS", b"k")
    await trio.sleep(5)
    assert up.kinds(request)[0] in (int, Lost, NotSent)
    assert up.link.up


async def test_a_connection_that_was_closed_is_called_that(up: Owner, node: FakeNode) -> None:
    node.refuses = True
    node.cut()
    await wait_all_tasks_blocked()
    assert up.link.fault == f"{NAME} has closed the connection"


async def test_a_node_that_falls_silent_is_said_not_to_answer(up: Owner, node: FakeNode) -> None:
    node.silent = True
    up.post(b"GET", b"k")
    await trio.sleep(ANSWER_TIMEOUT_S + 0.01)
    assert up.link.fault == f"{NAME} does not answer"
