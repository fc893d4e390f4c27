"""A worker that ends of its own accord: the two state machines, without MPI."""

from __future__ import annotations

import pytest

from hpcdml.config import PolicyOptions
from hpcdml.protocol.messages import FINAL, Global
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.rounds import Join, Seal
from hpcdml.protocol.server import Server
from hpcdml.protocol.worker import SendPush, Stop, TakeUpdate, Train, Wait, Worker


def pushes(actions: list) -> list:
    return [action.push for action in actions if isinstance(action, SendPush)]


def test_the_final_push_carries_what_is_unsent() -> None:
    worker = Worker(1, make_policy(PolicyOptions("local-sgd", local_steps=8)), 2)
    worker.stepped(3)
    assert isinstance(worker.decide()[-1], Train)
    worker.end()
    taken, sent, stop = worker.decide()
    assert (taken, stop) == (TakeUpdate(keep=False), Stop()) and worker.stopped
    assert isinstance(sent, SendPush) and (sent.push.flags, sent.push.local_steps, sent.push.samples) == (FINAL, 1, 3)


def test_the_final_push_waits_for_the_answer_to_the_last_one() -> None:
    worker = Worker(1, make_policy(PolicyOptions("losp")), 2)
    worker.stepped(1)
    assert len(pushes(worker.decide())) == 1
    worker.end()
    assert worker.decide() == [Wait()]
    worker.arrived(Global(0, 1, 1, 0, 1))
    sent, stop = worker.decide()
    assert isinstance(sent, SendPush) and sent.push.local_steps == 0 and isinstance(stop, Stop)


@pytest.mark.parametrize("name", ["bsp", "asp", "ssp", "losp"])
def test_the_others_go_on_with_their_whole_weight(name: str) -> None:
    policy = make_policy(PolicyOptions(name))
    server, workers = Server(policy, [1, 2]), {rank: Worker(rank, policy, 2) for rank in (1, 2)}

    def push(rank: int) -> list:
        (found,) = pushes(workers[rank].decide())
        actions = server.pushed(found)
        for action in actions:
            if isinstance(action, Seal):
                for to in action.round.recipients:
                    workers[to].arrived(server.message(action.round, to))
        return [action.round for action in actions if isinstance(action, (Join, Seal))]

    def step(rank: int) -> None:
        if not policy.overlaps and workers[rank].holds:
            workers[rank].decide()  # it has waited for these
        workers[rank].stepped(1)

    step(1)
    step(2)
    push(1)
    assert push(2)[-1].share == (1.0 if policy.collective else 0.5)
    step(1)
    workers[1].end()
    left = push(1)[-1]
    assert server.active == {2} and workers[1].stopped
    for _ in range(3):
        step(2)
        rounds = push(2)
        assert left.sealed and rounds[-1].share == 1.0 and not rounds[-1].stop
    workers[2].end()
    push(2)
    assert server.finished and server.version >= 4


def test_final_pushes_after_a_stop_keep_their_weight() -> None:
    policy = make_policy(PolicyOptions("asp"))
    server = Server(policy, [1, 2], max_samples=1)
    workers = {rank: Worker(rank, policy, 2) for rank in (1, 2)}
    for worker in workers.values():
        worker.stepped(1)
    rounds = []
    for rank in (1, 2):
        (found,) = pushes(workers[rank].decide())
        for action in server.pushed(found):
            if isinstance(action, Seal):
                rounds.append(action.round)
                for to in action.round.recipients:
                    workers[to].arrived(server.message(action.round, to))
    for rank in (1, 2):
        workers[rank].stepped(1)
        (found,) = pushes(workers[rank].decide())
        rounds += [action.round for action in server.pushed(found) if isinstance(action, Seal)]
    assert [round_.share for round_ in rounds] == [0.5] * 4 and server.finished
