"""Engines: what runs a program on the board, behind one small Protocol."""

from .base import Engine, Program

__all__ = ["Engine", "Program"]
