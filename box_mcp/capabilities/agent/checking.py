"""Whether an answer fits its JSON schema; a program of its own: it reads a question, tells, ends.

What an agent answers may be made to keep a regular expression of the schema busy for ever, which
nothing can stop within a process; and jsonschema's import takes longer than a server's start.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import islice
from typing import Any

MAX_VIOLATIONS = 10
MAX_WORDS = 300  # characters of each


def told(question: dict[str, Any]) -> dict[str, Any]:
    """``violations`` of ``schema`` by ``answer``, or why it is ``unusable``; references stay here.

    Without ``answer`` the schema alone is looked at.
    """
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    schema = question["schema"]
    try:
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
        errors = kind(schema, registry=Registry()).iter_errors(question.get("answer"))
        found = list(islice(errors, MAX_VIOLATIONS))
    except SchemaError as error:
        return {"unusable": f"{error.json_path}: {error.message}"[:MAX_WORDS]}
    except (Unresolvable, re.error, RecursionError) as error:
        return {"unusable": str(error)[:MAX_WORDS] or "it refers to itself without end"}
    return {"violations": [f"{one.json_path}: {one.message}"[:MAX_WORDS] for one in found]}


if __name__ == "__main__":
    json.dump(told(json.load(sys.stdin)), sys.stdout)
