"""Who listens to changes of resources, and how each protocol tells them.

Older protocols: `resources/subscribe` and `resources/unsubscribe`, for as long as the connection
lasts. From 2026-07-28 on: `subscriptions/listen`, a request that names all that is listened to,
for as long as it lasts. Each listener has a bus of its own, so nobody hears of what is another's.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from anyio import BrokenResourceError, ClosedResourceError
from mcp import MCPError
from mcp.server.session import ServerSession
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    ResourcesListChanged,
    ResourceUpdated,
)
from mcp_types import (
    INTERNAL_ERROR,
    EmptyResult,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

from box_mcp.capabilities.watching import Changed, Watch
from box_mcp.errors import LimitReached
from box_mcp.surface.access import FILES
from box_mcp.surface.requests import ends_by, grant
from box_mcp.surface.resources import Request, opened

STATE = "box_mcp.subscriptions"  # where a connection's are kept


@dataclass
class Subscription:
    """What a connection asked for; without a watch while that is being made."""

    watch: Watch | None = None

    @property
    def ended(self) -> bool:
        """True when its box is gone."""
        return self.watch is not None and self.watch.ended


Subscribed = dict[str, Subscription]
"""A connection's subscriptions by URI."""


async def subscribe(ctx: Request, params: SubscribeRequestParams) -> EmptyResult:
    """Tells the connection of changes from now on; twice is fine."""
    own, uri = _subscribed(ctx), params.uri
    if uri not in own or own[uri].ended:
        own[uri] = made = Subscription()
        try:
            made.watch = await _watched(ctx, uri, partial(_tell, ctx.session, uri))
        except BaseException:
            if own.get(uri) is made:
                del own[uri]
            raise
        if own.get(uri) is not made:  # unsubscribed meanwhile
            ctx.lifespan_context.watches.remove(made.watch)
    return EmptyResult()


async def unsubscribe(ctx: Request, params: UnsubscribeRequestParams) -> EmptyResult:
    """Tells the connection no more; twice is fine."""
    _end(ctx, _subscribed(ctx).pop(params.uri, Subscription()))
    return EmptyResult()


async def listen(
    ctx: Request, params: SubscriptionsListenRequestParams
) -> SubscriptionsListenResult:
    """Tells of all that the request names, until it is given up.

    Resources that can't be listened to are left out, as the acknowledgement shows: others of the
    same request should not suffer. A single one is refused with words.
    """
    wanted, given = params.notifications, grant(ctx)
    if not FILES.met_by(given):  # clients ask for news of all that there is, unasked
        wanted = wanted.model_copy(update={"resources_list_changed": None})
    watches, bus = ctx.lifespan_context.watches, InMemorySubscriptionBus()
    honored: list[str] = []
    with ExitStack() as undo:
        try:
            tell = partial(bus.publish, ResourcesListChanged())
            undo.callback(watches.listen(given.principal, tell))
        except LimitReached as error:
            raise MCPError(INTERNAL_ERROR, error.explain()) from None
        for uri in dict.fromkeys(wanted.resource_subscriptions or ()):
            try:
                watch = await _watched(ctx, uri, partial(bus.publish, ResourceUpdated(uri)))
            except MCPError:
                if [uri] == wanted.resource_subscriptions:
                    raise
            else:
                honored.append(uri)
                undo.callback(watches.remove, watch)
        granted = wanted.model_copy(update={"resource_subscriptions": honored or None})
        serve = ListenHandler(bus)
        ends_by(ctx, serve.close)
        return await serve(ctx, params.model_copy(update={"notifications": granted}))


async def _watched(ctx: Request, uri: str, changed: Changed) -> Watch:
    """Watches what a URI means, which wakes its box once; raises MCPError."""
    async with opened(ctx, uri) as place:
        return await ctx.lifespan_context.watches.add(place.claim, place.path, changed)


async def _tell(session: ServerSession, uri: str) -> None:
    with suppress(BrokenResourceError, ClosedResourceError):
        await session.send_resource_updated(uri)


def _subscribed(ctx: Request) -> Subscribed:
    """The subscriptions of the request's connection, which end with it."""
    # Sessions are made for each request; the SDK has no public way to what lasts longer.
    connection = ctx.session._connection  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if STATE not in connection.state:
        connection.state[STATE] = own = Subscribed()
        connection.exit_stack.callback(_end_all, ctx, own)
    return connection.state[STATE]


def _end_all(ctx: Request, own: Subscribed) -> None:
    while own:  # and so are those that are being made
        _end(ctx, own.popitem()[1])


def _end(ctx: Request, subscription: Subscription) -> None:
    if subscription.watch is not None:
        ctx.lifespan_context.watches.remove(subscription.watch)
