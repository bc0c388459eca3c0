"""Captured steps: a training step as one compiled graph of plain tensors."""

from pyro_silent.capture.compiled_module import CompiledELBOModule
from pyro_silent.capture.compiled_svi import CompiledSVI

__all__ = ["CompiledELBOModule", "CompiledSVI"]
