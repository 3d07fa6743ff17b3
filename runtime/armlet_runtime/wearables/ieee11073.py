"""Numbers of ISO/IEEE 11073-20601 as Bluetooth's health services send them: SFLOAT (16 bits) and FLOAT (32 bits).

Source: Bluetooth SIG, "Personal Health Devices Transcoding" white paper 1.6, 2.2.1 to 2.2.3. A number is mantissa x
10^exponent, both in two's complement: 12 and 4 bits (exponent in the top bits), or 24 and 8. Some mantissas with
exponent 0 are no numbers: not a number, not at this resolution, plus and minus infinity, and one that is reserved.
"""

from __future__ import annotations

import math

from ..errors import PacketError

_SFLOAT_BITS, _FLOAT_BITS = 12, 24


def sfloat(raw: int) -> float:
    """The number in 16 bits; NaN if they hold none."""
    return _number(raw & 0xFFF, raw >> 12 & 0xF, 4, _SFLOAT_BITS)


def float32(raw: int) -> float:
    """The number in 32 bits; NaN if they hold none."""
    return _number(raw & 0xFFFFFF, raw >> 24 & 0xFF, 8, _FLOAT_BITS)


def to_sfloat(value: float, decimals: int) -> int:
    """16 bits that hold a number to so many decimals; those of "not a number" for NaN.

    Raises:
        PacketError: It is too large for them.
    """
    return _bits(value, decimals, _SFLOAT_BITS, 4)


def to_float32(value: float, decimals: int) -> int:
    """32 bits that hold a number to so many decimals; those of "not a number" for NaN.

    Raises:
        PacketError: It is too large for them.
    """
    return _bits(value, decimals, _FLOAT_BITS, 8)


def _number(mantissa: int, exponent: int, exponent_bits: int, bits: int) -> float:
    top = 1 << (bits - 1)
    # From top - 2 (plus infinity) to top + 2 (minus infinity) lie the mantissas that are no numbers.
    if exponent == 0 and top - 2 <= mantissa <= top + 2:
        return math.nan
    if mantissa >= top:
        mantissa -= 1 << bits
    if exponent >= 1 << (exponent_bits - 1):
        exponent -= 1 << exponent_bits
    # Below zero by division, so that 366 with exponent -1 is the 36.6 that Python reads.
    return mantissa * 10.0**exponent if exponent >= 0 else mantissa / 10.0**-exponent


def _bits(value: float, decimals: int, bits: int, exponent_bits: int) -> int:
    top = 1 << (bits - 1)
    if math.isnan(value):
        return top - 1
    mantissa = round(value * 10.0**decimals)
    if not -top + 2 < mantissa < top - 2:
        raise PacketError(f"{value:g} with {decimals} decimals does not fit {bits + exponent_bits} bits")
    return (-decimals & ((1 << exponent_bits) - 1)) << bits | mantissa & ((1 << bits) - 1)
