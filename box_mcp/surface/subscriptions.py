"""Who listens to changes of resources, and how each protocol tells them.

Older protocols: `resources/subscribe` and `resources/unsubscribe`, for as long as the connection
lasts. From 2026-07-28 on: `subscriptions/listen`, a request that names all that is listened to,
for as long as it lasts. Each listener has a bus of its own, so nobody hears of what is another's.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
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
from box_mcp.surface.resources import Request, opened

STATE = "box_mcp.subscriptions"  # where a connection's are kept

Subscribed = dict[str, Watch | None]
"""A connection's subscriptions by URI; None while one is being made."""


async def subscribe(ctx: Request, params: SubscribeRequestParams) -> EmptyResult:
    """Tells the connection of changes from now on; twice is fine."""
    own = _subscribed(ctx)
    if params.uri not in own:
        own[params.uri] = None
        try:
            watch = await _watched(ctx, params.uri, partial(_tell, ctx.session, params.uri))
        except BaseException:
            own.pop(params.uri, None)
            raise
        if params.uri in own:
            own[params.uri] = watch
        else:  # unsubscribed meanwhile
            ctx.lifespan_context.watches.remove(watch)
    return EmptyResult()


async def unsubscribe(ctx: Request, params: UnsubscribeRequestParams) -> EmptyResult:
    """Tells the connection no more; twice is fine."""
    if (watch := _subscribed(ctx).pop(params.uri, None)) is not None:
        ctx.lifespan_context.watches.remove(watch)
    return EmptyResult()


async def listen(
    ctx: Request, params: SubscriptionsListenRequestParams
) -> SubscriptionsListenResult:
    """Tells of all that the request names, until it is given up.

    Resources that can't be listened to are left out, as the acknowledgement shows: others of the
    same request should not suffer. A single one is refused with words.
    """
    wanted = params.notifications
    watches, bus = ctx.lifespan_context.watches, InMemorySubscriptionBus()
    honored: list[str] = []
    with ExitStack() as undo:
        try:
            undo.callback(watches.listen(partial(bus.publish, ResourcesListChanged())))
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
    for watch in own.values():
        if watch is not None:
            ctx.lifespan_context.watches.remove(watch)
