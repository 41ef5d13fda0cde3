"""Keeping an unmerged edit from one forward to the next, for as long as nothing has changed that it is made of."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import nn

from .arithmetic import Part, edited

WHOLE = 1024
"""Elements up to which a tensor is compared whole; of a larger one, an element of every row is."""
SAMPLES = 256
"""Elements of a longer vector that are compared."""


class KeptEdit:
    """`W'` of the last forwards.

    It is made anew when a coefficient, a tensor (the base model's or an adapter's) or a tensor's values are others.
    Values are others when torch has counted a change. A write through `.data` is not counted; on the CPU it is noticed
    all the same, unless it changes less than a row of a large tensor. Nothing is kept where more than that can happen
    unseen: of tensors that learn, of a layer that another PEFT method has wrapped, and of subclasses of tensors.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Keep nothing."""
        self._made_of: list[object] | None = None
        self._tensors: list[weakref.ref[torch.Tensor]] = []  # numbers of objects that are gone are given anew
        self._value: torch.Tensor | None = None
        self._samples: list[tuple[torch.Tensor, torch.Tensor]] = []

    def get(self, base: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
        """`W'`, kept or made anew."""
        tensors = [base, *(tensor for part in parts for tensor in part.tensors())]
        if not all(map(_is_traceable, tensors)):
            self.forget()
            return edited(base, parts)
        made_of: list[object] = [(part.c_w, part.c_b) for part in parts]
        # each object, torch's count of its changes, and where its values are
        made_of += [(id(t), t._version, t.data_ptr(), t.dtype) for t in tensors]
        if made_of != self._made_of or any(tensor() is None for tensor in self._tensors):
            self.forget()
            # Kept from the second time on: what changes in every forward takes no memory.
            self._made_of, self._tensors = made_of, [weakref.ref(tensor) for tensor in tensors]
            return edited(base, parts)
        if self._value is None or not all(torch.equal(view, copy) for view, copy in self._samples):
            with torch.inference_mode(False), torch.no_grad():
                self._samples = [(view, view.clone()) for view in map(_sample, tensors) if view is not None]
                self._value = edited(base, parts)
        return self._value

    def __reduce__(self) -> tuple[type[KeptEdit], tuple[()]]:
        return KeptEdit, ()  # a copy of the model keeps its own


def _is_traceable(tensor: torch.Tensor) -> bool:
    """Tell whether changes of a tensor can be noticed."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and not tensor.requires_grad
        and not tensor.is_meta
        and not tensor.is_inference()
        and tensor.is_contiguous()
    )


def _sample(tensor: torch.Tensor) -> torch.Tensor | None:
    """A view of some elements' bits, `[n]`; `None` on devices that would have to be waited for."""
    if tensor.device.type != "cpu":
        return None
    flat = tensor.detach().view(-1)
    bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.itemsize])
    if len(bits) <= WHOLE:
        return bits
    # One less than a row: the sample moves through the columns, and no row is without one of its elements.
    return bits[:: tensor.shape[-1] - 1 if tensor.ndim > 1 and tensor.shape[-1] > 1 else len(bits) // SAMPLES]
