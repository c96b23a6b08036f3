"""What of the tests runs beside the rest, where there are two workers (`pytest --numprocesses=2`).

One of them begins with all files that use what there is once, the stand-in internet and the second
engine; whoever is free takes the next of the others.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest_timeout
from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import NodeManager

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

TIDY_TIMEOUT = 60  # s that an interrupted worker has at most for taking down what it made
ONE = "one after another"
TOGETHER = (
    "tests/attacks/",
    "tests/engines/",
    "tests/gateway/test_lfs.py",
    "tests/test_network_on_docker.py",
    "tests/test_outbound_on_docker.py",
    "tests/test_reconciliation.py",
    "tests/test_snapshots_on_docker.py",
)
"""Files and folders whose tests are never beside one another."""


def goes_with_others(nodeid: str) -> bool:
    """Whether a test may only run in the worker that has all its like."""
    return nodeid.startswith(TOGETHER)


class Sharing(LoadScopeScheduling):
    """Deals files out in their order; those of `TOGETHER` as if they were one."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        setattr(NodeManager, "EXIT_TIMEOUT", TIDY_TIMEOUT)  # noqa: B010 -- its type is its value
        config.option.loadscopereorder = False  # by how many tests each has, short as they may be

    def _split_scope(self, nodeid: str) -> str:
        return ONE if goes_with_others(nodeid) else nodeid.split("::", 1)[0]

    def remove_node(self, node: WorkerController) -> str | None:
        """As of the base, which would run once more what ended a worker, and so end the next.

        That is every test that is longer than its limit: pytest-timeout ends the process.
        """
        work = self.assigned_work.pop(node)
        left = [(unit, test) for unit in work.values() for test, done in unit.items() if not done]
        if not left:
            return None
        unit, ended_by = left[0]
        unit[ended_by] = True
        self.workqueue.update(work)
        for other in self.nodes:
            self._reschedule(other)
        return ended_by


def show_hung_tests(config: pytest.Config) -> None:
    """Has a worker tell where a test hangs; what it writes otherwise goes nowhere."""
    timeouts: Any = pytest_timeout
    end = timeouts.timeout_timer

    def tell_and_end(item: pytest.Item, limits: object) -> None:
        terminal: Any = config.get_terminal_writer()
        terminal._file = sys.__stderr__
        end(item, limits)

    timeouts.timeout_timer = tell_and_end
