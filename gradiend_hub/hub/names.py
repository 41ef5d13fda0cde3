"""Names that mean something on the Hub, where users of the Hub look for them; `artifact.names` tells them from paths."""

from __future__ import annotations

from gradiend_hub.artifact.names import hub_id, shown_name

__all__ = ["hub_id", "shown_name"]
