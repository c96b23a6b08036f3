"""The server's side of the wire: requests, streams and cancellation over one byte stream to a box.

What comes out of a box is untrusted. Frames are parsed by `boxd.wire`; any breach of its rules,
and any flood, closes the channel with words, and every call on it hears of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any

import anyio

from box_mcp.boxd import wire
from box_mcp.engines.base import ByteStream
from box_mcp.errors import BoxBroken, CallInterrupted, CallRefused
from box_mcp.events import BoxAsked, Hook

HELLO_TIMEOUT = 15.0  # s; a fresh box answers in 0.1
MAX_NOTES = 256  # notes of one stream that nobody has read; boxd sends four a second
MAX_NOTE = 8 * 1024  # bytes of one note; boxd's carry one line of 400
MAX_HELD = 64 * 1024  # objects of all streams that nobody has read; each takes some 100 bytes
JOINED = 4096  # bytes of data that more of it is joined to, while nobody has read it
PIECE = 64 * 1024  # bytes that are received at once
MANY_FRAMES = 512  # in such a piece: boxd seldom sends as small ones, and others have their turn
FRAME_REST = 20e-6  # s for each then; to take one costs a tenth of it
SEND_TIMEOUT = 5.0  # s for one frame; boxd reads all the time, so a box that does not is frozen
CLOSE_TIMEOUT = 1.0  # s for telling the engine good-bye
MAX_CODE = 32  # characters of a refusal's code, which is one word

DEAD_LINE = (
    anyio.EndOfStream,
    anyio.ClosedResourceError,
    anyio.BrokenResourceError,
    OSError,
)

Item = bytes | dict[str, Any]
NOTHING = (-1, b"", 0)


class RemoteCall:
    """One request under way. Made by `Channel.call`.

    Iterate `labelled()` to get what the box sends; afterwards `result` holds its END.
    """

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._inbox: deque[tuple[int, Item, int]] = deque()
        self._arrived = anyio.Event()
        self._credit = anyio.Event()
        self._outgoing = wire.Window()
        self._incoming = wire.Window()
        self._notes = 0
        self._failure: Exception | None = None
        self._began = perf_counter()
        self._seconds: float | None = None
        self.result: dict[str, Any] | None = None

    async def send(self, data: bytes, label: int = wire.CONTENT) -> None:
        """Sends `data`, waiting for credit as often as needed."""
        for start in range(0, len(data), wire.CHUNK):
            piece = data[start : start + wire.CHUNK]
            while self._outgoing.left < len(piece) and not self.ended:
                self._credit = anyio.Event()
                await self._credit.wait()
            if self.ended:
                return  # boxd has answered already: the rest is of no interest to it
            self._outgoing.spend(len(piece))
            await self._channel.send(wire.pack(wire.DATA, self._number, piece, label))

    def widened(self, expected: int) -> bytes:
        """A frame that grants credit for so many bytes at once, where that takes one."""
        credit = self._incoming.widened(expected)
        return wire.pack_credit(self._number, credit) if credit else b""

    def whole(self, data: bytes) -> bytes:
        """`data`, for which there must be credit, as frames with the end of the data behind."""
        self._outgoing.spend(len(data))
        end = wire.pack(wire.FINISH, self._number)
        return wire.pack_data(self._number, data) + end

    async def finish(self) -> None:
        """No more data will come."""
        await self._channel.send(wire.pack(wire.FINISH, self._number))

    async def labelled(self) -> AsyncIterator[tuple[int, Item]]:
        """What the box sends, until its END: ``(label, bytes)`` for data, ``(-1, dict)`` for notes.

        Raises CallRefused when boxd refuses, CallInterrupted when box or channel go away.
        """
        while (arrived := await self.receive()) is not None:
            yield arrived

    async def receive(self) -> tuple[int, Item] | None:
        """The next of what `labelled` yields, None at its end; raises as it does.

        Nothing is lost where this is cancelled.
        """
        while not self._inbox:
            if self._failure is not None:
                raise self._failure
            if self.result is not None:
                return None
            self._arrived = anyio.Event()
            await self._arrived.wait()
        label, item, weight = self._inbox.popleft()
        self._channel.held -= weight
        if isinstance(item, bytes):
            await self._consumed(len(item))
        else:
            self._notes -= 1
        return label, item

    async def wait(self) -> dict[str, Any]:
        """The END's object; whatever else the box sends is dropped. Raises as `labelled` does."""
        async for _ in self.labelled():
            pass
        assert self.result is not None  # labelled() returned
        return self.result

    @property
    def ended(self) -> bool:
        """True when END or FAIL has come, or the channel is closed."""
        return self.result is not None or self._failure is not None

    def told(self, request: str) -> BoxAsked:
        """What came of it so far."""
        seconds = perf_counter() - self._began if self._seconds is None else self._seconds
        return BoxAsked(self._channel.box, request, self._outcome(), seconds)

    def _outcome(self) -> str:
        match self._failure:
            case None:
                return "left" if self.result is None else "ok"
            case CallRefused(code=code):  # the box's own word
                return code if len(code) <= MAX_CODE and code.isidentifier() else "refused"
            case _:
                return "lost"

    def deliver(self, frame: wire.Frame) -> None:
        """Takes a frame from the channel's reader; raises WireError on a breach."""
        if frame.kind == wire.CREDIT:
            self._outgoing.grant(frame.credit())
            self._credit.set()
            return
        if self.ended:
            raise wire.WireError(f"a frame came for the stream {self._number} after its end")
        if frame.kind == wire.DATA:
            self._take_data(frame)
        elif frame.kind == wire.NOTE:
            self._take_note(frame)
        elif frame.kind == wire.END:
            self.result = frame.object()
        elif frame.kind == wire.FAIL:
            failure = frame.object()
            code, message = _text(failure.get("code")), _text(failure.get("message"))
            self._failure = CallRefused(code, message)
        else:
            raise wire.WireError(f"a frame of kind {frame.kind} is not for a stream")
        if self.ended:
            self._seconds = perf_counter() - self._began
        self._wake()

    def _take_data(self, frame: wire.Frame) -> None:
        self._incoming.spend(len(frame.payload))
        if not frame.payload:  # credit bounds what waits in the inbox, but empty frames cost none
            return
        label, last, weight = self._inbox[-1] if self._inbox else NOTHING
        if label == frame.label and isinstance(last, bytes) and len(last) < JOINED:
            self._inbox[-1] = label, last + frame.payload, weight
        else:
            self._keep(frame.label, frame.payload, 1)

    def _take_note(self, frame: wire.Frame) -> None:
        note = frame.object()
        _, last, weight = self._inbox[-1] if self._inbox else NOTHING
        if isinstance(last, dict) and "newest" in last and "newest" in note:
            self._inbox.pop()  # nobody has read it, and it is not the newest any more
            self._channel.held -= weight
            self._notes -= 1
        self._notes += 1
        if self._notes > MAX_NOTES or len(frame.payload) > MAX_NOTE:
            raise wire.WireError("a stream was flooded with notes")
        self._keep(-1, note, 1 + len(frame.payload) // 3)  # as in [[],[],[]

    def interrupt(self, error: Exception) -> None:
        """The channel is closed."""
        if not self.ended:
            self._failure = error
        self._wake()

    def forget(self) -> None:
        """What nobody has read is not read any more."""
        while self._inbox:
            self._channel.held -= self._inbox.pop()[2]

    def _keep(self, label: int, item: Item, weight: int) -> None:
        self._inbox.append((label, item, weight))
        self._channel.held += weight
        if self._channel.held > MAX_HELD:
            raise wire.WireError("it sends more small pieces than anybody reads")

    def _wake(self) -> None:
        self._arrived.set()
        if self.ended:
            self._credit.set()

    async def _consumed(self, size: int) -> None:
        credit = self._incoming.consumed(size)
        if credit and not self.ended:
            with anyio.CancelScope(shield=True):  # each send before it is over within SEND_TIMEOUT
                await self._channel.send(wire.pack_credit(self._number, credit))


class Channel:
    """An open connection to the boxd of one box. Made by `open_channel`.

    `held` is how much waits for its readers. `busy` tells whether commands run in the box that
    outlived the call that started them, and `keeps_awake` whether one of them is to keep the box
    awake. `hook` hears of each request, in the task that made it.
    """

    def __init__(self, box: str, stream: ByteStream) -> None:
        self.box = box
        self.hello: dict[str, Any] = {}
        self.held = 0
        self.busy = False
        self.keeps_awake: bool = False
        self.on_change: Callable[[], None] = lambda: None
        self.hook: Hook = lambda _: None
        self._stream = stream
        self._decoder = wire.Decoder(wire.FROM_BOXD)
        self._sending = anyio.Lock(fast_acquire=True)
        self._calls: dict[int, RemoteCall] = {}
        self._abandoned: set[int] = set()
        self._next = 1
        self._closed: Exception | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Channel {self.box} {state} {len(self._calls)} calls busy={self.busy}>"

    @property
    def open(self) -> bool:
        """False from the moment that the box, the engine or we ended the connection."""
        return self._closed is None

    @property
    def broken(self) -> bool:
        """True when the box broke the rules of the wire."""
        return isinstance(self._closed, BoxBroken)

    @asynccontextmanager
    async def call(
        self, op: str, *, upload: bytes | None = None, expect: int = 0, **arguments: Any
    ) -> AsyncGenerator[RemoteCall, None]:
        """Opens a stream with a request. Leaving it before its END cancels it in the box.

        `upload` is all the data that goes with it, if any: a little travels in one piece with the
        request. Of `expect` bytes that may come, many come without a word from here. Raises
        CallRefused when the arguments are too large for a frame, and what `send` raises.
        """
        number, self._next = self._next, self._next + 1
        request = _packed(number, {"op": op, **arguments})
        call = RemoteCall(self, number)
        request += call.widened(expect)
        self._calls[number] = call
        try:
            if upload is None:
                await self.send(request)
            elif len(upload) <= wire.CHUNK:
                await self.send(request + call.whole(upload))
            else:
                await self.send(request)
                await call.send(upload)
                await call.finish()
            yield call
        finally:
            del self._calls[number]
            call.forget()
            self.hook(call.told(op))
            if not call.ended:
                self._abandoned.add(number)
                with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await self._send_quietly(wire.pack(wire.CANCEL, number))

    async def request(
        self, op: str, *, upload: bytes | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """A request that is answered without data: its END's object."""
        async with self.call(op, upload=upload, **arguments) as call:
            return await call.wait()

    async def send(self, data: bytes) -> None:
        """Sends whole frames; raises CallInterrupted or BoxBroken when the line is dead."""
        async with self._sending:
            if self._closed is not None:
                raise self._closed
            # A frame cut off by a cancelled caller would garble all that follow.
            with anyio.move_on_after(SEND_TIMEOUT, shield=True) as sending:
                try:
                    await self._stream.send(data)
                except DEAD_LINE as error:
                    broke = CallInterrupted(self.box, "its connection broke")
                    raise self._close(broke) from error
            if sending.cancelled_caught:
                deaf = CallInterrupted(self.box, "its daemon takes nothing any more")
                raise self._close(deaf)

    async def receive_forever(self) -> None:
        """Reads until the connection ends; run it as a task while the channel lives."""
        error: Exception = CallInterrupted(self.box, "its daemon ended")
        try:
            while True:
                frames = self._decoder.feed(await self._stream.receive(PIECE))
                for frame in frames:
                    self._dispatch(frame)
                if len(frames) > MANY_FRAMES:
                    await anyio.sleep(len(frames) * FRAME_REST)
        except wire.WireError as breach:
            error = BoxBroken(self.box, f"its daemon broke the protocol ({breach})")
        except DEAD_LINE:
            pass
        finally:
            self._close(error)
            await self.aclose()

    async def aclose(self, why: CallInterrupted | None = None) -> None:
        """Closes the connection; boxd lets running commands go on. Calls under way raise `why`."""
        self._close(why or CallInterrupted(self.box, "this server closed the connection"))
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await self._stream.aclose()

    async def greet(self) -> None:
        """Exchanges HELLOs; raises BoxBroken when the other end is no boxd of our version."""
        complaint = ""
        try:
            with anyio.fail_after(HELLO_TIMEOUT):
                await self._stream.send(wire.pack_object(wire.HELLO, 0, {"version": wire.VERSION}))
                frames: list[wire.Frame] = []
                while not frames:
                    frames = self._decoder.feed(await self._stream.receive())
            self.hello = _hello(frames[0])
            self.busy = self.hello.get("busy") is True
            self.keeps_awake = self.hello.get("keeps_awake") is True
            for frame in frames[1:]:
                self._dispatch(frame)
        except wire.WireError as breach:
            complaint = str(breach)
        except TimeoutError:
            complaint = f"no word from its daemon within {HELLO_TIMEOUT:g} s"
        except DEAD_LINE:
            said = getattr(self._stream, "complaint", b"").decode(errors="replace").strip()
            complaint = said or "its daemon hung up"
        if complaint:
            raise BoxBroken(self.box, complaint)

    def _dispatch(self, frame: wire.Frame) -> None:
        call = self._calls.get(frame.stream)
        if call is not None:
            call.deliver(frame)
        elif frame.stream == 0 and frame.kind == wire.NOTE:
            self._take_word_of_box(frame.object())
        elif frame.stream in self._abandoned:
            if frame.kind in (wire.END, wire.FAIL):
                self._abandoned.remove(frame.stream)
        elif frame.kind != wire.CREDIT or not 0 < frame.stream < self._next:
            # Credit for a stream may cross its END on the way; all else is out of place.
            raise wire.WireError(f"a frame came for the stream {frame.stream}, which is not open")

    def _take_word_of_box(self, word: dict[str, Any]) -> None:
        busy, keeps_awake = word.get("busy") is True, word.get("keeps_awake") is True
        if (busy, keeps_awake) != (self.busy, self.keeps_awake):
            self.busy, self.keeps_awake = busy, keeps_awake
            self.on_change()

    async def _send_quietly(self, data: bytes) -> None:
        with suppress(CallInterrupted, BoxBroken):
            await self.send(data)

    def _close(self, error: Exception) -> Exception:
        """Closes for `error`, or returns the one that closed the channel before."""
        if self._closed is None:
            self._closed = error
            for call in list(self._calls.values()):
                call.interrupt(error)
            self.on_change()
        return self._closed


async def open_channel(box: str, stream: ByteStream) -> Channel:
    """A greeted channel over `stream`, which it closes on failure; raises BoxBroken.

    Nothing is received until a task runs `Channel.receive_forever`.
    """
    channel = Channel(box, stream)
    try:
        await channel.greet()
    except BaseException:
        await channel.aclose()
        raise
    return channel


def _hello(first: wire.Frame) -> dict[str, Any]:
    if first.kind != wire.HELLO:
        raise wire.WireError("its daemon did not greet")
    hello = first.object()
    if hello.get("version") != wire.VERSION:
        raise wire.WireError(f"its daemon speaks version {hello.get('version')!r}")
    return hello


def _packed(number: int, request: dict[str, Any]) -> bytes:
    try:
        return wire.pack_object(wire.OPEN, number, request)
    except ValueError as error:
        raise CallRefused("too_large", f"The request is too large: {error}") from None


def _text(value: object) -> str:
    """What a box says as text that any encoding takes: lone surrogates are escaped."""
    return str(value).encode(errors="backslashreplace").decode()
