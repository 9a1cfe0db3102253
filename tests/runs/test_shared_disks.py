"""Claims where machines have other clocks, see changes late, have no locks, or are used by two users of one group."""

import contextlib
import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest

from condlora.errors import RunTaken
from condlora.runs import owners
from condlora.runs.lease import Claim, alone, claim_file, living_owner
from condlora.runs.owners import HEARTBEAT, SILENCE, Watch
from condlora.runs.record import read_record, write_record
from condlora.runs.shared_disk import SharedDisk
from tests.faults.harness import KILLED, in_child, kill
from tests.runs.simulated_disk import CachingMachine, Machine, Server

SKEWS = (-600, 0, 600)  # seconds
DELAYS = (0, 60)  # the longest for which NFS answers from its cache by default


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "adhoc" / "rte" / "lora" / "seed-0"


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def claimed(server, folder):
    """claimed(machine): a claim from there, with a heartbeat in simulated time; `claim.is_alive = False` kills its owner."""
    with contextlib.ExitStack() as stack:

        def make(machine):
            claim = Claim(folder, watch=Watch(machine))
            claim.__enter__()
            stack.callback(claim.over.set)  # its thread, which beats in real time, ends
            claim.over.set()
            claim.is_alive = True

            def beat():
                if claim.is_alive:
                    claim.beat()
                    server.plan(server.time + HEARTBEAT, beat)

            beat()
            return claim

        yield make


def owner_by_the_disk(server, folder):
    return json.loads(server.truth(claim_file(folder)).text)["token"]


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("skew", SKEWS)
def test_a_living_run_is_not_stolen_whatever_the_clocks_say(server, folder, claimed, skew, delay):
    owner = claimed(Machine(server))
    server.pass_time(delay + 1000)
    watch = Watch(Machine(server, skew, delay))
    for _ in range(5):
        with pytest.raises(RunTaken, match="is being run by"), Claim(folder, watch=watch):
            pass
        assert living_owner(folder, watch=watch)
        server.pass_time(200)  # for which nobody looked
    owner.check()


@pytest.mark.parametrize("skew", SKEWS)
def test_a_machine_that_sees_no_change_for_a_minute_steals_no_run(server, folder, claimed, skew):
    owner = claimed(Machine(server))
    watch = Watch(CachingMachine(server, skew, delay=60))
    for _ in range(300):
        server.pass_time(1)
        with pytest.raises(RunTaken), Claim(folder, watch=watch):
            pass
    owner.check()


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("hours_dead", [0, 5])
def test_a_dead_owners_run_is_taken_over_within_minutes(
    server, folder, claimed, skew, delay, hours_dead
):
    owner = claimed(Machine(server, skew))
    owner.is_alive = False
    server.pass_time(3600 * hours_dead + delay)
    watch, began = Watch(Machine(server, delay=delay)), server.time
    while True:
        with contextlib.suppress(RunTaken), Claim(folder, watch=watch) as claim:
            claim.check()
            break
        server.pass_time(1)
        assert server.time - began <= SILENCE + 5
    with pytest.raises(RunTaken, match="was taken over"):
        owner.check()


@pytest.mark.parametrize("skew", SKEWS)
def test_two_machines_that_do_not_see_each_others_claims_do_not_both_have_them(
    server, folder, claimed, skew
):
    first = claimed(Machine(server, delay=60))
    for _ in range(20):  # the second sees it only after a minute
        second = Claim(folder, watch=Watch(Machine(server, skew, delay=60)))
        server.plan(server.time + 70, lambda: None)
        with pytest.raises(RunTaken), second:
            pass
        server.pass_time(1)
    first.check()


@pytest.mark.parametrize("delay", DELAYS)
def test_of_many_that_take_over_a_dead_claim_one_has_it(server, folder, claimed, delay):
    claimed(Machine(server)).is_alive = False
    watches = [Watch(Machine(server, skew, delay)) for skew in (-600, -300, 0, 300, 600)]
    for watch in watches:
        living_owner(folder, watch=watch)
    server.pass_time(SILENCE + delay + 5)
    for watch in watches:  # each has seen it silent for long enough
        living_owner(folder, watch=watch)
    first = claimed(watches[0].disk)
    for watch in watches[1:]:
        with pytest.raises(RunTaken), Claim(folder, watch=watch):
            pass
    first.check()
    assert owner_by_the_disk(server, folder) == first.token


def test_who_is_killed_while_it_takes_over_blocks_nobody(server, folder, claimed, monkeypatch):
    claimed(Machine(server)).is_alive = False
    server.pass_time(3600)
    doomed = Machine(server)
    monkeypatch.setattr(doomed, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), Claim(folder, watch=Watch(doomed)):
        pass
    watch, began = Watch(Machine(server)), server.time
    while server.time < began + 3 * SILENCE:
        with contextlib.suppress(RunTaken), Claim(folder, watch=watch) as claim:
            claim.check()
            return
        server.pass_time(1)
    pytest.fail("waited for ever")


def test_who_is_killed_while_it_writes_its_claim_blocks_nobody(server, folder):
    file, machine = claim_file(folder), Machine(server)
    machine.create(file, '{"host": ')
    watch = Watch(machine)
    with (
        pytest.raises(RunTaken, match="is being run by another process"),
        Claim(folder, watch=watch),
    ):
        pass
    server.pass_time(SILENCE + 1)
    with Claim(folder, watch=watch) as claim:
        claim.check()


def test_a_claim_that_is_given_back_leaves_nothing(server, folder, claimed):
    claimed(Machine(server)).is_alive = False
    server.pass_time(3600)
    with Claim(folder, watch=Watch(Machine(server))):
        pass
    assert Machine(server).files(claim_file(folder).parent) == []


def test_no_locks_are_needed(folder, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(fcntl, name, none)
    with Claim(folder), pytest.raises(RunTaken), Claim(folder):
        pass
    assert in_child(lambda: Claim(folder).__enter__() and kill()) == KILLED
    with Claim(folder) as claim:
        claim.check()


def test_a_file_is_created_once_even_where_this_machine_does_not_see_it(tmp_path, monkeypatch):
    file = tmp_path / "claim.json"
    assert SharedDisk().create(file, "first")
    for place, name in ((Path, "exists"), (Path, "is_file"), (os.path, "exists")):
        monkeypatch.setattr(place, name, lambda *_, **__: False)  # as a cache would answer
    assert not SharedDisk().create(file, "second")
    assert file.read_text() == "first"


def test_a_process_of_another_user_that_proc_hides_is_not_gone(monkeypatch):
    who = json.loads(owners.this_process("x"))
    monkeypatch.setattr(owners, "_started", lambda pid: None)

    def refused(pid, _):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert not owners.is_gone(who)

    def ended(pid, _):
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", ended)
    assert owners.is_gone(who)


def test_processes_that_need_a_file_alone_have_it_one_after_the_other(tmp_path):
    count = tmp_path / "count"
    count.write_text("0")

    def add():
        for _ in range(5):
            with alone(tmp_path / ".claims" / "count.json"):
                number = int(count.read_text())
                os.sched_yield()
                count.write_text(str(number + 1))

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                add()
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert count.read_text() == "15"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
@pytest.mark.parametrize("is_killed", [True, False])
def test_two_users_of_a_group_share_a_runs_folder(is_killed):
    """With `umask 002` and a folder that hands its group on, as docs/clusters.md says."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        runs = Path(place) / "runs"
        runs.mkdir()
        os.chown(runs, 0, 5000)
        os.chmod(runs, 0o2775)
        folder = runs / "adhoc" / "rte" / "lora" / "seed-0"
        record = {"schema_version": 2, "recipe_hash": "x", "reason": None}

        def as_user(number, work):
            def act():
                os.setgroups([])
                os.setgid(number)
                os.setgroups([5000])
                os.setuid(number)
                os.umask(0o002)
                work()

            return in_child(act)

        def begin():
            with Claim(folder):
                write_record(folder, record | {"status": "running"})
                if is_killed:
                    kill()

        def finish():
            with Claim(folder) as claim:
                claim.check()
                write_record(folder, record | {"status": "interrupted"})

        assert as_user(5001, begin) == (KILLED if is_killed else 0)
        assert as_user(5002, finish) == 0
        assert read_record(folder)["status"] == "interrupted"
        assert list((runs / "adhoc" / ".claims").iterdir()) == []
