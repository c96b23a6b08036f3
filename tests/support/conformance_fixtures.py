"""What MCP's conformance suite calls by name: tools, resources and prompts made for it alone.

`furnish` adds them to a server of ours, whose transport, middleware, extensions and own tools stay
as they are. Names and words are the suite's; nothing of it is in the product.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import anyio
from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.mcpserver import require_client_extension
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.prompts.base import Message, UserMessage
from mcp.server.subscriptions import ListenHandler
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    BlobResourceContents,
    ClientCapabilities,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    ContentBlock,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    DiscoverResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    GetPromptRequestParams,
    ImageContent,
    InputRequest,
    InputRequiredResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListRootsRequest,
    MissingRequiredClientCapabilityErrorData,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    RequestParams,
    Resource,
    ResourceTemplate,
    SamplingCapability,
    SamplingMessage,
    ServerRequest,
    SetLevelRequestParams,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field

from box_mcp import httpd
from box_mcp.settings import Settings, load
from box_mcp.surface.server import Lifespan
from box_mcp.surface.sessions import Backend, Ctx, open_box
from box_mcp.surface.shell import render
from box_mcp.surface.tasks import TASKS, hand_over

T = TypeVar("T", bound=BaseModel)

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
STEP = 0.05
"""Seconds between what a tool tells on its way: the suite wants it in several pieces."""

SOON = 0.2
"""Seconds after which a command becomes a task."""

MAX_OUTPUT = 1000
MIRRORED = Field(json_schema_extra={"x-mcp-header": "Region"})
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

Request = ServerRequestContext[Any, Any]
Asked = str | InputRequiredResult


# --- content


def test_simple_text() -> str:
    """Text."""
    return "This is a simple text response for testing."


def test_image_content() -> ContentBlock:
    """An image."""
    return ImageContent(data=PNG, mime_type="image/png")


def test_audio_content() -> ContentBlock:
    """A sound."""
    return AudioContent(data=WAV, mime_type="audio/wav")


def test_embedded_resource() -> ContentBlock:
    """A resource in full."""
    return embedded("test://embedded-resource", "This is an embedded resource content.")


def test_multiple_content_types() -> list[ContentBlock]:
    """Text, an image and a resource."""
    data = json.dumps({"test": "data", "value": 123})
    return [
        TextContent(text="Multiple content types test:"),
        ImageContent(data=PNG, mime_type="image/png"),
        embedded("test://mixed-content-resource", data, "application/json"),
    ]


def test_error_handling() -> str:
    """An error."""
    raise ToolError("This tool intentionally returns an error for testing")


def embedded(uri: str, text: str, media: str = "text/plain") -> EmbeddedResource:
    return EmbeddedResource(resource=TextResourceContents(uri=uri, text=text, mime_type=media))


# --- what is told on the way


async def test_tool_with_logging(ctx: Ctx) -> str:
    """Log messages before the result."""
    for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await log(ctx, words)
        await anyio.sleep(STEP)
    return "Logged."


async def test_logging_tool(ctx: Ctx) -> str:
    """A log message, for those who asked for such."""
    await log(ctx, "Logging")
    return "Logged."


async def test_tool_with_progress(ctx: Ctx) -> str:
    """Progress before the result."""
    for progress in (0, 50, 100):
        await ctx.report_progress(progress, 100, f"Completed step {progress} of 100")
        await anyio.sleep(STEP)
    return "Progressed."


async def log(ctx: Ctx, words: str) -> None:
    """The SDK has it deprecated, with the capability, as of 2026-07-28."""
    send = ctx.session.send_log_message  # pyright: ignore[reportDeprecated]
    await send("info", words, related_request_id=ctx.request_id)


# --- requests of the server's own, before 2026-07-28


async def asked_back(ctx: Ctx, request: ServerRequest, answer: type[T]) -> T:
    """On the stream of the call: the client may have opened no other yet."""
    by = ServerMessageMetadata(related_request_id=ctx.request_id)
    return await ctx.session.send_request(request, answer, metadata=by)


async def test_sampling(prompt: str, ctx: Ctx) -> str:
    """An answer of the client's model."""
    answer = await asked_back(ctx, sampling(prompt, 100), CreateMessageResult)
    assert isinstance(answer.content, TextContent)
    return f"LLM response: {answer.content.text}"


async def test_elicitation(message: str, ctx: Ctx) -> str:
    """The user's own words."""
    response = {"type": "string", "description": "User's response"}
    return f"User response: {await filled_in(ctx, message, response=response)}"


async def test_elicitation_sep1034_defaults(ctx: Ctx) -> str:
    """A form whose fields have defaults."""
    return await filled_in(
        ctx,
        "Please review",
        required=[],
        name={"type": "string", "default": "John Doe"},
        age={"type": "integer", "default": 30},
        score={"type": "number", "default": 95.5},
        status={"type": "string", "enum": ["active", "inactive"], "default": "active"},
        verified={"type": "boolean", "default": True},
    )


async def test_elicitation_sep1330_enums(ctx: Ctx) -> str:
    """A form of choices, in all ways to describe them."""
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{at}", "title": f"Option {at}"} for at in (1, 2, 3)]
    return await filled_in(
        ctx,
        "Please choose",
        untitledSingle={"type": "string", "enum": plain},
        titledSingle={"type": "string", "oneOf": titled},
        legacyEnum={"type": "string", "enum": plain, "enumNames": ["One", "Two", "Three"]},
        untitledMulti={"type": "array", "items": {"type": "string", "enum": plain}},
        titledMulti={"type": "array", "items": {"anyOf": titled}},
    )


async def filled_in(
    ctx: Ctx, message: str, required: list[str] | None = None, **fields: dict[str, Any]
) -> str:
    asked = form(message, required, **fields)
    answer = await asked_back(ctx, asked, ElicitResult)
    return f"action={answer.action}, content={json.dumps(answer.content or {})}"


def form(
    message: str, required: list[str] | None = None, **fields: dict[str, Any]
) -> ElicitRequest:
    """A form of these fields, which are all required where nothing else is said."""
    needed = list(fields) if required is None else required
    schema = {"type": "object", "properties": fields, "required": needed}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sampling(prompt: str, max_tokens: int) -> CreateMessageRequest:
    said = SamplingMessage(role="user", content=TextContent(text=prompt))
    return CreateMessageRequest(
        params=CreateMessageRequestParams(messages=[said], max_tokens=max_tokens)
    )


# --- results that ask for more, from 2026-07-28 on

NAME = form("What is your name?", name={"type": "string"})
CONFIRM = form("Please confirm", ok={"type": "boolean"})


def test_input_required_result_elicitation(ctx: Ctx) -> Asked:
    """Asks for a name."""
    name = field_of(ctx, "user_name", "name")
    return f"Hello, {name}!" if isinstance(name, str) else ask(user_name=NAME)


def test_streaming_elicitation(ctx: Ctx) -> Asked:
    """The same under another name."""
    return test_input_required_result_elicitation(ctx)


def test_input_required_result_sampling(ctx: Ctx) -> Asked:
    """Asks the client's model."""
    answer = (ctx.input_responses or {}).get("capital_question")
    if isinstance(answer, CreateMessageResult) and isinstance(answer.content, TextContent):
        return answer.content.text
    return ask(capital_question=sampling("What is the capital of France?", 100))


def test_input_required_result_list_roots(ctx: Ctx) -> Asked:
    """Asks for the client's roots."""
    if "client_roots" in (ctx.input_responses or {}):
        return "Roots are there."
    return ask(client_roots=ListRootsRequest())


def test_input_required_result_request_state(ctx: Ctx) -> Asked:
    """Keeps a state with the client."""
    if ctx.request_state == "kept" and field_of(ctx, "confirm", "ok"):
        return "state-ok"
    return ask("kept", confirm=CONFIRM)


def test_input_required_result_tampered_state(ctx: Ctx) -> Asked:
    """The same; another state than its own never comes back to it."""
    return test_input_required_result_request_state(ctx)


def test_input_required_result_multiple_inputs(ctx: Ctx) -> Asked:
    """Asks for three things at once."""
    questions: dict[str, InputRequest] = {
        "user_name": NAME,
        "greeting": sampling("Generate a greeting", 50),
        "client_roots": ListRootsRequest(),
    }
    if questions.keys() <= (ctx.input_responses or {}).keys():
        return "All are there."
    return ask("asked", **questions)


def test_input_required_result_multi_round(ctx: Ctx) -> Asked:
    """Asks for one thing after the other."""
    if ctx.request_state == "second" and field_of(ctx, "step2", "color"):
        return "Done."
    if ctx.request_state == "first" and field_of(ctx, "step1", "name"):
        color = form("Step 2: What is your favorite color?", color={"type": "string"})
        return ask("second", step2=color)
    return ask("first", step1=NAME)


def test_input_required_result_capabilities(ctx: Ctx) -> Asked:
    """Asks for what the client can give."""
    if ctx.input_responses:
        return "Given."
    able = ctx.client_capabilities or ClientCapabilities()
    questions: dict[str, InputRequest] = {}
    if able.elicitation is not None:
        questions["name"] = NAME
    if able.sampling is not None:
        questions["greeting"] = sampling("Generate a greeting", 50)
    return ask(None, **questions) if questions else "Nothing can be asked."


def test_missing_capability(ctx: Ctx) -> str:
    """Needs a model of the client's."""
    if ctx.client_capabilities is not None and ctx.client_capabilities.sampling is not None:
        return "It is there."
    needed = MissingRequiredClientCapabilityErrorData(
        required_capabilities=ClientCapabilities(sampling=SamplingCapability())
    )
    told = needed.model_dump(mode="json", by_alias=True, exclude_none=True)
    raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "Sampling is needed", told)


def ask(state: str | None = None, /, **questions: InputRequest) -> InputRequiredResult:
    return InputRequiredResult(input_requests=questions, request_state=state)


def field_of(ctx: Ctx, question: str, field: str) -> object:
    """What a form that came back says in a field; None where there is nothing of the kind."""
    answer = (ctx.input_responses or {}).get(question)
    return (answer.content or {}).get(field) if isinstance(answer, ElicitResult) else None


# --- tasks: commands in a box, as the product has them


def greet(name: str) -> str:
    """No task."""
    return f"Hello, {name}!"


async def slow_compute(ctx: Ctx, seconds: float, label: str = "") -> str:
    """A task that takes so long."""
    return await in_box(ctx, f"sleep {seconds}; echo {shlex.quote(label)}")


async def failing_job(ctx: Ctx) -> str:
    """A task that fails, for clients that know tasks."""
    require_client_extension(ctx.request_context, TASKS)
    return await in_box(ctx, "sleep 1; exit 1")


async def protocol_error_job(ctx: Ctx) -> str:
    """A task, at least."""
    return await in_box(ctx, "sleep 1; exit 1")


async def test_tool_with_task(ctx: Ctx) -> Asked:
    """Asks for a name, and is a task then."""
    name = field_of(ctx, "user_name", "name")
    if not isinstance(name, str):
        return ask("asked", user_name=NAME)
    return await in_box(ctx, f"sleep 1; echo {shlex.quote(name)}")


async def in_box(ctx: Ctx, command: str) -> str:
    """Runs it in the caller's box; the call becomes a task if the command takes a while."""
    async with open_box(ctx, None) as opened:
        run = opened.shell.run(command, timeout=None, yield_after=SOON, max_output=MAX_OUTPUT)
        outcome = await run
        return "" if hand_over(ctx, opened, outcome, MAX_OUTPUT) else render(outcome)


# --- schemas


def json_schema_2020_12_tool() -> str:
    """A schema with all there is, see `SCHEMA`."""
    return "Done."


def custom_header_tool(region: Annotated[str, MIRRORED]) -> str:
    """An argument that comes as a header, too."""
    return region


# --- lists that change


async def test_trigger_tool_change(ctx: Ctx) -> str:
    """Tells that the list of tools is another."""
    await ctx.notify_tools_changed()
    return "Told."


async def test_trigger_prompt_change(ctx: Ctx) -> str:
    """Tells that the list of prompts is another."""
    await ctx.notify_prompts_changed()
    return "Told."


TOOLS: tuple[Callable[..., Any], ...] = (
    test_simple_text,
    test_image_content,
    test_audio_content,
    test_embedded_resource,
    test_multiple_content_types,
    test_error_handling,
    test_tool_with_logging,
    test_logging_tool,
    test_tool_with_progress,
    test_sampling,
    test_elicitation,
    test_elicitation_sep1034_defaults,
    test_elicitation_sep1330_enums,
    test_input_required_result_elicitation,
    test_streaming_elicitation,
    test_input_required_result_sampling,
    test_input_required_result_list_roots,
    test_input_required_result_request_state,
    test_input_required_result_tampered_state,
    test_input_required_result_multiple_inputs,
    test_input_required_result_multi_round,
    test_input_required_result_capabilities,
    test_missing_capability,
    test_trigger_tool_change,
    test_trigger_prompt_change,
    greet,
    slow_compute,
    failing_job,
    protocol_error_job,
    test_tool_with_task,
    json_schema_2020_12_tool,
    custom_header_tool,
)


# --- prompts


def test_simple_prompt() -> str:
    """A prompt without arguments."""
    return "This is a simple prompt for testing."


def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """A prompt with two."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:  # noqa: N803
    """A prompt with a resource."""
    resource = embedded(resourceUri, "Embedded resource content for testing.")
    return said(resource, "Please process the embedded resource above.")


def test_prompt_with_image() -> list[Message]:
    """A prompt with an image."""
    return said(ImageContent(data=PNG, mime_type="image/png"), "Please analyze the image above.")


def test_input_required_result_prompt(ctx: Ctx) -> Asked:
    """A prompt that asks first."""
    context = field_of(ctx, "user_context", "context")
    if isinstance(context, str):
        return context
    asked = form("What context should the prompt use?", context={"type": "string"})
    return ask(user_context=asked)


def said(content: ContentBlock, words: str) -> list[Message]:
    return [UserMessage(content), UserMessage(words)]


PROMPTS: tuple[Callable[..., Any], ...] = (
    test_simple_prompt,
    test_prompt_with_arguments,
    test_prompt_with_embedded_resource,
    test_prompt_with_image,
    test_input_required_result_prompt,
)


# --- resources

TEXT = "test://static-text"
BINARY = "test://static-binary"
WATCHED = "test://watched-resource"
TEMPLATE = "test://template/{id}/data"
BEFORE, AFTER = TEMPLATE.split("{id}")

RESOURCES = [
    Resource(uri=TEXT, name="static-text", description="Text", mime_type="text/plain"),
    Resource(uri=BINARY, name="static-binary", description="An image", mime_type="image/png"),
    Resource(uri=WATCHED, name="watched", description="Changes", mime_type="text/plain"),
]
TEMPLATES = [
    ResourceTemplate(
        uri_template=TEMPLATE, name="template", description="Any", mime_type="application/json"
    )
]


def content(uri: str) -> TextResourceContents | BlobResourceContents | None:
    """What is at a URI of the suite's."""
    if uri in (TEXT, WATCHED):
        return TextResourceContents(uri=uri, mime_type="text/plain", text="Static text.")
    if uri == BINARY:
        return BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
    if uri.startswith(BEFORE) and uri.endswith(AFTER):
        number = uri.removeprefix(BEFORE).removesuffix(AFTER)
        data = json.dumps({"id": number, "templateTest": True, "data": f"Data for ID: {number}"})
        return TextResourceContents(uri=uri, mime_type="application/json", text=data)
    return None


# --- all of it


async def list_resources(_: Request, _params: PaginatedRequestParams) -> ListResourcesResult:
    return ListResourcesResult(resources=RESOURCES)


async def list_templates(
    _: Request, _params: PaginatedRequestParams
) -> ListResourceTemplatesResult:
    return ListResourceTemplatesResult(resource_templates=TEMPLATES)


async def set_level(_: Request, _params: SetLevelRequestParams) -> EmptyResult:
    return EmptyResult()


async def subscribe(
    _: Request, _params: SubscribeRequestParams | UnsubscribeRequestParams
) -> EmptyResult:
    return EmptyResult()


async def complete(_: Request, _params: CompleteRequestParams) -> CompleteResult:
    return CompleteResult(completion=Completion(values=[]))


def furnish(server: MCPServer[Any]) -> None:
    """Adds the suite's tools and prompts, has its resources in place of the server's own, and what
    of MCP the product has no use for.
    """
    for tool in TOOLS:
        server.add_tool(tool, structured_output=False)
    for prompt in PROMPTS:
        server.add_prompt(Prompt.from_function(prompt))
    # As in the product: MCPServer has no public way to these.
    tool = server._tool_manager.get_tool(json_schema_2020_12_tool.__name__)  # pyright: ignore[reportPrivateUsage]
    assert tool is not None
    tool.parameters = SCHEMA
    handlers = server._lowlevel_server  # pyright: ignore[reportPrivateUsage]
    bus = server._subscriptions  # pyright: ignore[reportPrivateUsage]
    own = handlers.get_request_handler("resources/read")
    assert own is not None

    async def read(ctx: Request, params: ReadResourceRequestParams) -> HandlerResult:
        found = content(params.uri)
        return ReadResourceResult(contents=[found]) if found else await own.handler(ctx, params)

    async def discover(ctx: Request, _params: RequestParams) -> DiscoverResult:
        able = handlers.get_capabilities(protocol_version=ctx.protocol_version)
        return DiscoverResult(supported_versions=[ctx.protocol_version], capabilities=able)

    added: list[tuple[str, type[RequestParams], Any]] = [
        ("resources/list", PaginatedRequestParams, list_resources),
        ("resources/templates/list", PaginatedRequestParams, list_templates),
        ("resources/read", ReadResourceRequestParams, read),
        ("resources/subscribe", SubscribeRequestParams, subscribe),
        ("resources/unsubscribe", UnsubscribeRequestParams, subscribe),
        ("subscriptions/listen", SubscriptionsListenRequestParams, ListenHandler(bus)),
        ("logging/setLevel", SetLevelRequestParams, set_level),
        ("completion/complete", CompleteRequestParams, complete),
        ("server/discover", RequestParams, discover),
        ("prompts/get", GetPromptRequestParams, server._handle_get_prompt),  # pyright: ignore[reportPrivateUsage]
    ]
    for method, params, handler in added:
        handlers.add_request_handler(method, params, handler)


def serve(listen: str) -> None:
    """Serves the product over HTTP, as furnished; for a process of its own."""
    made = httpd.server_of

    def furnished(
        settings: Settings, lifespan: Lifespan, *, remote: bool = False
    ) -> MCPServer[Backend]:
        server = made(settings, lifespan, remote=remote)
        furnish(server)
        return server

    httpd.server_of = furnished
    httpd.serve_http(load(None), listen)


if __name__ == "__main__":
    serve(sys.argv[-1])
