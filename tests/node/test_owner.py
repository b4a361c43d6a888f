import pytest
import trio

from llamanet.node import owner
from llamanet.node.owner import BUSY_S, HIGH, IDLE_S, LOW, LoadMeter, OwnerPolicy, put_owner_first
from llamanet.testing.cluster import Cluster


def observe(policy: OwnerPolicy, *loads: float, start: float = 0.0) -> list[bool]:
    """What the policy says after each second."""
    return [policy.observe(load, start + second) for second, load in enumerate(loads)]


def test_the_owner_has_the_machine_after_some_seconds_of_load() -> None:
    policy = OwnerPolicy()
    assert observe(policy, *[0.1] * 60) == [False] * 60
    assert observe(policy, *[0.9] * 7, start=60) == [False] * int(BUSY_S) + [True] * 2


def test_a_short_burst_changes_nothing() -> None:
    policy = OwnerPolicy()
    assert not any(observe(policy, *[0.9, 0.9, 0.9, 0.9, 0.1] * 20))


def test_the_owner_has_rested_only_after_a_while() -> None:
    policy = OwnerPolicy(busy=True)
    pauses = [0.0] * int(IDLE_S - 1) + [0.9]
    assert all(observe(policy, *pauses * 3))
    assert observe(policy, *[0.0] * (int(IDLE_S) + 1), start=1000)[-2:] == [True, False]


def test_between_the_bounds_nothing_changes() -> None:
    between = [(HIGH + LOW) / 2] * 200
    assert not any(observe(OwnerPolicy(), *between))
    assert all(observe(OwnerPolicy(busy=True), *between))


def test_what_others_compute_is_all_that_is_not_ours(tmp_path, monkeypatch) -> None:
    now, ours = 100.0, 7.0
    monkeypatch.setattr(owner.time, "monotonic", lambda: now)
    monkeypatch.setattr(owner.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(owner.os, "times", lambda: type("Times", (), {"user": ours, "system": 1.0}))
    monkeypatch.setattr(owner, "_JIFFIES", 100)
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 0 500 99999 50 10 20 0 0 0\ncpu0 1 2 3\n")
    meter = LoadMeter(tmp_path)
    # In 10 s, four processors were busy for 15 + 5 + 2 s, and waited for disks; 12 s of that were ours.
    stat.write_text("cpu  2500 500 600 99999 5000 60 70 0 0 0\ncpu0 1 2 3\n")
    now, ours = 110.0, 19.0
    assert meter.others() == pytest.approx((22 - 12) / 40)
    assert meter.others() == 0.0


def test_without_proc_the_load_average_tells(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(owner.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(owner.os, "getloadavg", lambda: (2.0, 0.0, 0.0))
    assert 0.0 <= LoadMeter(tmp_path).others() <= 0.5


async def test_a_node_steps_back_and_returns(autojump_clock, nursery) -> None:
    cluster = Cluster(nursery)
    [node] = await cluster.start_nodes(1)

    class Meter(LoadMeter):
        load = 0.0

        def others(self) -> float:
            return self.load

    meter = Meter()
    nursery.start_soon(put_owner_first, node.host, meter)
    await trio.sleep(60)
    assert node.host.held_by == ()
    meter.load = 1.0
    await trio.sleep(BUSY_S + 2)
    assert node.host.held_by == ("owner",)
    node.host.release("operator")
    assert node.host.endpoint.draining
    meter.load = 0.0
    await trio.sleep(IDLE_S - 1)
    assert node.host.endpoint.draining
    await trio.sleep(3)
    assert not node.host.endpoint.draining
