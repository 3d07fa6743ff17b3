"""PyTorch's outputs on a group of people's windows, with which programs are compared.

Each model runs once over the windows; the stages of an export carry the answers along.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import AGGREGATOR
from armlet_train.data import Scored
from armlet_train.engine import all_logits
from armlet_train.models import ArmletModel

from ..backends import Part


@dataclass
class Reference:
    """The answers of a float model, and of the same model with rounding simulated, to the same windows.

    Parts are distinguished by name and precision: two of one name and precision must be the same part. A part that is
    not given stays in float.

    Attributes:
        model: The float model.
        people: The windows, their labels and their people.
    """

    model: ArmletModel
    people: Scored
    _simulated: dict[frozenset[tuple[str, str]], Float32] = field(default_factory=dict)
    _tokens: dict[tuple[str, str], Float32] = field(default_factory=dict)
    _modules: dict[tuple[str, str], nn.Module] = field(default_factory=dict)

    def module(self, name: str, part: Part) -> nn.Module:
        """The PyTorch module that the programs of a part must agree with."""
        key = name, part.precision
        if key not in self._modules:
            self._modules[key] = part.reference()
        return self._modules[key]

    @cached_property
    def float_logits(self) -> Float32:
        """(subsets, n, labels) of the float model."""
        return all_logits(self.model, self.people.windows)

    def simulated_logits(self, parts: Mapping[str, Part]) -> Float32:
        """(subsets, n, labels) with the rounding of these parts simulated."""
        rounded = {name: part for name, part in parts.items() if part.precision != "fp32"}
        key = frozenset((name, part.precision) for name, part in rounded.items())
        if not key:
            return self.float_logits
        if key not in self._simulated:
            simulated = copy.deepcopy(self.model)
            for name, part in rounded.items():
                owner = simulated if name == AGGREGATOR else simulated.encoders
                owner.add_module(name, self.module(name, part))
            self._simulated[key] = all_logits(simulated, self.people.windows)
        return self._simulated[key]

    def simulated_tokens(self, parts: Mapping[str, Part]) -> dict[str, Float32]:
        """Modality name to (n, token_dim), with the rounding of each encoder simulated."""
        for name, windows in self.people.windows.items():
            key = name, parts[name].precision
            if key not in self._tokens:
                with torch.no_grad():
                    self._tokens[key] = self.module(name, parts[name])(torch.from_numpy(windows)).numpy()
        return {name: self._tokens[name, parts[name].precision] for name in self.people.windows}
