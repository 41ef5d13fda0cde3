"""A Hugging Face Hub on loopback: the HTTP surface that `huggingface_hub` uses, over real git repositories.

It exists so that the tests and the demo push to and load from a Hub with the real client, and without a network. Two
origins are served, as by the real Hub: the *hub* (`HF_ENDPOINT`) and the *storage* (signed LFS URLs and the Xet CAS).
`faults` makes either of them fail on demand. It is a test server: it trusts its process and knows three tokens.
"""

from __future__ import annotations

from tests.hub_server.process import TOKENS, HubServer, Tokens

__all__ = ["TOKENS", "HubServer", "Tokens"]
