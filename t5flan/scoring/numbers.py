"""Reads numbers as they are written in many languages: other digits, separators and units of ten thousand."""

import decimal
import re
import unicodedata

_MYRIADS = {
    '千': 10**3, '천': 10**3, '万': 10**4, '萬': 10**4, '만': 10**4, '亿': 10**8, '億': 10**8, '억': 10**8,
}  # fmt: skip
_MINUS = str.maketrans('−–﹣', '---')
_SIGN = r'(?<![\w.,)\]])-(?=[.\d])'
"""A minus is read as a sign only where it cannot be a subtraction."""
_INDIAN_OR_THOUSANDS = r'\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)'
_POINT = re.compile(rf"({_SIGN})?(?:({_INDIAN_OR_THOUSANDS}|\d{{1,3}}(?:'\d{{3}})+(?!\d)|\d+)(\.\d+)?|(\.\d+))")
_COMMA = re.compile(
    rf"({_SIGN})?(?:({_INDIAN_OR_THOUSANDS}|\d{{1,3}}(?:\.\d{{3}})+(?!\d)|\d{{1,3}}(?:[ ']\d{{3}})+(?!\d)|\d+)"
    r'([.,]\d+)?|([.,]\d+))'
)  # fmt: skip
_UNIT = re.compile(rf'\s?([{"".join(_MYRIADS)}])')


def read_numbers(text: str, decimal_comma: bool = False) -> list[str]:
    """The numbers of a text in plain form: ASCII digits, a point, no separators, no trailing zeros.

    Args:
        decimal_comma: whether the language writes 1.234,5 (German, French, Russian, Spanish) and not 1,234.5. A comma
            before exactly three digits separates thousands in both: MGSM's own targets are written so.

    >>> read_numbers('$1,018.50 and -3 of 1,14,200')
    ['1018.5', '-3', '114200']
    >>> read_numbers('1.018,50 € und 2.000 und 5 600', decimal_comma=True)
    ['1018.5', '2000', '5600']
    >>> read_numbers('７万 と 3億5千万'), read_numbers('৭০'), read_numbers('๑๒.๐')
    (['70000', '350000000'], ['70'], ['12'])
    """
    text = _ascii_digits(unicodedata.normalize('NFKC', text).translate(_MINUS))
    pattern = _COMMA if decimal_comma else _POINT
    numbers, at = [], 0
    with decimal.localcontext(prec=len(text) + 20):  # nothing is rounded
        while match := pattern.search(text, at):
            sign, whole, part, bare = match.groups()
            value = decimal.Decimal(re.sub(r'\D', '', whole or '0') + (part or bare or '').replace(',', '.'))
            value, at = _with_units(value, text, match.end())
            numbers.append(_plain(-value if sign else value))
    return numbers


def _ascii_digits(text: str) -> str:
    """Digits of all scripts as 0 to 9."""
    return ''.join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in text)


def _with_units(value: decimal.Decimal, text: str, at: int) -> tuple[decimal.Decimal, int]:
    """A number with the units that follow it, such as 3億5千万, and where it ends."""
    total, below = decimal.Decimal(0), value
    while unit := _UNIT.match(text, at):
        size = _MYRIADS[unit.group(1)]
        at = unit.end()
        # 5千万: thousands multiply the units that follow them.
        if size == 10**3 and (outer := _UNIT.match(text, at)):
            size, at = size * _MYRIADS[outer.group(1)], outer.end()
        total += below * size
        rest = re.compile(r'\d[\d,]*').match(text, at)
        below = decimal.Decimal(rest.group().replace(',', '') or 0) if rest else decimal.Decimal(0)
        at = rest.end() if rest else at
    return total + below, at


def _plain(value: decimal.Decimal) -> str:
    text = f'{value:f}'
    return text.rstrip('0').rstrip('.') if '.' in text else text
