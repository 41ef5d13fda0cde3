"""Solutions as directions, and as what rows are encoded with."""

from __future__ import annotations

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.gradients import Entries, Scope, Tangent
from gradiend_hub.scope import PackedParameter
from gradiend_hub.solvers import ByParameter, Solution, Vector


def as_direction(solution: Solution, scope: Scope) -> Direction:
    """Divide a solution by parameter, and add the fingerprint of the base model that the scope belongs to."""
    found = solution.mapped(lambda v: v.parts if isinstance(v, ByParameter) else scope.split(v))
    bias = found.decoder_bias
    return Direction(
        {
            name: ParameterDirection(
                tuple(parameter.shape),
                found.decoder[name].to("cpu"),
                None if bias is None else bias[name].to("cpu"),
                found.encoder[name].to("cpu"),
                scope.kept.get(name),
            )
            for name, parameter in scope.parameters.items()
        },
        solution.encoder_bias,
        Fingerprint.of({n: p for n, p in scope.parameters.items() if not isinstance(p, PackedParameter)}),
    )


def tangents_of(encoder: Vector, scope: Scope) -> dict[str, Tangent]:
    """An encoder by parameter, to encode rows with."""
    if not isinstance(encoder, ByParameter):
        if not scope.kept:
            return dict(scope.dense_tensors(encoder))
        shapes = {name: tuple(parameter.shape) for name, parameter in scope.parameters.items()}
        return {name: Entries(scope.kept[name], values, shapes[name]) for name, values in scope.split(encoder).items()}
    parts = encoder.parts.items()
    return {name: v if isinstance(v, Factors) else v.view(scope.parameters[name].shape) for name, v in parts}
