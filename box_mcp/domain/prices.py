"""What models cost where the settings say nothing else; pure."""

from __future__ import annotations

from box_mcp.domain.models import Prices

DEFAULT_PRICES = Prices()
