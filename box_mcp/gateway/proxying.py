"""The proxies of this server's boxes, and how boxes get to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from box_mcp.capabilities import tunnels
from box_mcp.channel import Channel
from box_mcp.domain.box import Box, State
from box_mcp.domain.network import Mode, Network, Surroundings
from box_mcp.events import BoxMoved, Event, NetworkChanged
from box_mcp.gateway.dialling import LookUp
from box_mcp.gateway.egress import Egress
from box_mcp.gateway.ways import Limits

PROXY_PORT = 3128  # on the box's own loopback; the number that proxies have by custom

GONE = (State.DELETED, State.LOST)


def proxy_env() -> dict[str, str]:
    """What tells programs in a box to use the proxy.

    ALL_PROXY does not say SOCKS, though the proxy speaks it: Python's httpx can't be used at all
    where it does and no library for it is installed. Node looks at these when told to.
    """
    proxy = f"http://127.0.0.1:{PROXY_PORT}"
    env = {
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
        "ALL_PROXY": proxy,
        "NO_PROXY": "localhost,127.0.0.1,::1",
    }
    lower = {name.lower(): value for name, value in env.items()}
    return env | lower | {"NODE_USE_ENV_PROXY": "1"}


class Proxies:
    """A proxy for each box that needs one, and what each refused."""

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        look_up: LookUp | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._make = partial(Egress, surroundings=surroundings, look_up=look_up, limits=limits)
        self._proxies: dict[str, Egress] = {}
        self._policies: dict[str, Callable[[], Network]] = {}

    def egress(self, box: str) -> Egress:
        """The proxy of a box, made when it is first asked for; it lets nothing through at first."""
        if box not in self._proxies:
            self._proxies[box] = self._make(partial(self._policy, box))
        return self._proxies[box]

    def way(self, box: Box, /) -> object:
        """As `Service`: boxes whose network has the mode for it need the proxy."""
        return True if box.network.mode is Mode.ALLOWLIST else None

    async def attend(
        self,
        channel: Channel,
        box: Callable[[], Box],
        /,
        *,
        task_status: TaskStatus[None] = TASK_STATUS_IGNORED,
    ) -> None:
        """As `Service`: serves connections to the proxy; raises what `tunnels.listen` raises."""
        self._policies[channel.box] = lambda: box().network
        serve = self.egress(channel.box).serve
        await tunnels.listen(channel, PROXY_PORT, proxy_env(), serve, task_status=task_status)

    def notice(self, event: Event) -> None:
        """Hears of what happens to boxes: cuts what is not allowed any more, forgets boxes."""
        if isinstance(event, NetworkChanged) and event.box in self._proxies:
            self._proxies[event.box].enforce()
        elif isinstance(event, BoxMoved) and event.after in GONE:
            self._policies.pop(event.box, None)
            if proxy := self._proxies.pop(event.box, None):
                proxy.cut()

    def _policy(self, box: str) -> Network:
        policy = self._policies.get(box)
        return Network(Mode.NONE) if policy is None else policy()
