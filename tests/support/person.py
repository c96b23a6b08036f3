"""Who answers what a client is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcp_types import ElicitRequestFormParams, ElicitResult

YES = ElicitResult(action="accept", content={"allow": True})
NO = [
    ElicitResult(action="accept", content={"allow": False}),
    ElicitResult(action="decline"),
    ElicitResult(action="cancel"),
]


@dataclass
class Person:
    """Says `answer` to each question, and remembers it."""

    answer: ElicitResult
    questions: list[str] = field(default_factory=list[str])

    async def ask(self, context: object, params: object) -> ElicitResult:
        """As the SDK's clients ask."""
        del context
        assert isinstance(params, ElicitRequestFormParams)
        assert params.requested_schema["required"] == ["allow"]
        self.questions.append(params.message)
        return self.answer
