"""Single values of a safetensors file on the Hub, asked for by their place: the file is not downloaded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from gradiend_hub.artifact.tensor_files import StoredTensor, listed_tensors
from gradiend_hub.errors import BaseModelError

from .patience import bounded
from .retry import FAILURES, summary, with_retries

_MOST_HEADER: Final = 2**25
"""Largest header that is read, in bytes."""
_READERS: Final = 8
"""Values that are asked for at a time."""


class RemoteTensorFile:
    """The tensors of one safetensors file of a repository, as `TensorFile` has them of one on disk.

    Args:
        repo_id: the repository, and `name` the file in it, at a `revision`.
        token: access token; by default the one that the user logged in with.

    Raises:
        BaseModelError: it cannot be read, or is no safetensors file.
    """

    def __init__(self, repo_id: str, name: str, revision: str | None = None, token: str | bool | None = None) -> None:
        self._place = f"{name} of {repo_id}"
        self._url, self._headers = hf_hub_url(repo_id, name, revision=revision), build_hf_headers(token=token)
        size = int.from_bytes(self._read(0, 8), "little")
        if not 0 < size <= _MOST_HEADER:
            raise BaseModelError(
                f"{self._place} is no safetensors file, or its header is larger than {_MOST_HEADER} bytes."
            )
        try:
            self.tensors = listed_tensors(self._read(8, 8 + size))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BaseModelError(f"{self._place} has a damaged header: {error!r}.") from error

    def values_at(self, tensor: StoredTensor, positions: torch.Tensor) -> torch.Tensor:
        """Values at flat positions, `[k]`, read one by one."""
        size = tensor.dtype.itemsize
        starts = [tensor.start + position * size for position in positions.tolist()]
        with ThreadPoolExecutor(_READERS) as readers:
            found = bytearray(b"".join(readers.map(lambda start: self._read(start, start + size), starts)))
        return torch.frombuffer(found, dtype=tensor.dtype) if found else torch.empty(0, dtype=tensor.dtype)

    def _read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`."""

        def ask() -> bytes:
            headers = {**self._headers, "range": f"bytes={start}-{stop - 1}"}
            with get_session().stream("GET", self._url, headers=headers, follow_redirects=True) as response:
                hf_raise_for_status(response)
                return _head(response, stop - start)

        try:
            with bounded():
                content = with_retries(ask)
        except (*FAILURES, OSError, ValueError) as error:
            raise BaseModelError(f"{self._place} could not be read from the Hub ({summary(error)}).") from error
        if len(content) != stop - start:
            raise BaseModelError(f"{self._place} is shorter than its header says.")
        return content


def _head(response: Any, size: int) -> bytes:
    """The first bytes of an answer; of a server that sends the whole file instead, no more.

    Raises:
        ValueError: it sends the file from another place on.
    """
    content = b""
    if response.status_code != 206:
        raise ValueError("it does not send parts of files")
    for block in response.iter_bytes():
        content += block
        if len(content) >= size:
            break
    return content[:size]
