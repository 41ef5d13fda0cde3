"""Names that saving, loading, uploading and the tests share."""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 1
"""Major version of the artifact. A reader refuses a higher one."""

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
ENCODER_FILE: Final = "gradiend_encoder.safetensors"
REPORT_FILE: Final = "gradiend_report.json"
PROBES_FILE: Final = "gradiend_probes.jsonl"
REFERENCES_FILE: Final = "gradiend_references.safetensors"
CARD_FILE: Final = "README.md"
HTML_FILE: Final = "report.html"
ASSETS_FOLDER: Final = "assets"
"""Folder of the card's figures."""
REPORTS_FOLDER: Final = "reports"
"""Folder of the reports that others than the author have added."""

SLOT: Final = "[MASK]"
"""Placeholder of the slot in a row's `masked` text, whatever the model's own mask token is."""

HUB_TAGS: Final = ("gradiend", "feature-direction")
