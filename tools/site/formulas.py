"""Formulas: what stands as plain text in docstrings and pages is MathML on the site.

A formula is a literal block whose lines have an arrow. What follows three spaces is a remark::

    s ← decay · s + (1 - decay) · g²          mean square
    m ← momentum · m + g / √(s + epsilon)
"""

import re
from collections.abc import Callable, Iterator
from html import escape

_TOKEN = re.compile(r"\s*(?:(\d[\d.]*)|(Σ)|([^\W\d²³][^\W²³]*)|(\S))")
_RAISED = {"²": "2", "³": "3"}
_SUMS = "+-<>=≤≥,±"


def are(block: str) -> bool:
    """Whether a literal block has nothing but formulas."""
    lines = _lines(block)
    return bool(lines) and all("←" in line for line in lines)


def mathml(block: str) -> str:
    """A table of formulas: left side, right side, remark.

    Example:
        >>> mathml("w ← 1")[-65:]
        '<mo>←</mo><mn>1</mn></mtd><mtd></mtd></mtr></mtable></math></div>'
    """
    rows = "".join(map(_row, _lines(block)))
    table = f'<mtable displaystyle="true">{rows}</mtable>'
    return f'<div class="formula"><math display="block">{table}</math></div>'


def _lines(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.strip()]


def _row(line: str) -> str:
    formula, _, remark = line.strip().partition("   ")
    left, right = formula.split("←")
    words, colon, rest = remark.strip().partition(": ")
    said = f"<mtext>{escape(words + colon)}&#160;</mtext>" if words else ""
    said += _Reader(rest).row() if rest else ""
    cells = (_Reader(left).row(), f"<mo>←</mo>{_Reader(right).row()}", said)
    return "<mtr>" + "".join(f"<mtd>{cell}</mtd>" for cell in cells) + "</mtr>"


class _Reader:
    """Reads sums of products, of which the last factor may divide the ones before."""

    def __init__(self, text: str) -> None:
        self._tokens = [next(filter(None, found)) for found in _TOKEN.findall(text)]

    def row(self) -> str:
        """All that is left."""
        return "".join(self._until(lambda _: False))

    def _until(self, ends: Callable[[str], bool]) -> Iterator[str]:
        while self._tokens and not ends(self._tokens[0]):
            if self._tokens[0] in _SUMS:
                sign = self._tokens.pop(0).replace("-", "\N{MINUS SIGN}")
                yield f"<mo>{escape(sign)}</mo>"
            else:
                yield self._product()

    def _product(self) -> str:
        factors = [self._factor()]
        while self._tokens and self._tokens[0] in "·/":
            if self._tokens.pop(0) == "·":
                factors += ["<mo>·</mo>", self._factor()]
            else:
                above, below = "".join(map(_bare, factors)), _bare(self._factor())
                factors = [f"<mfrac><mrow>{above}</mrow><mrow>{below}</mrow></mfrac>"]
        return "".join(factors)

    def _factor(self) -> str:
        token = self._tokens.pop(0)
        if token == "Σ":
            found = f"<mrow><mo>∑</mo>{self._product()}</mrow>"
        elif token == "√":
            found = f"<msqrt>{_bare(self._factor())}</msqrt>"
        elif token == "(":
            inner = "".join(self._until(lambda token: token == ")"))
            self._tokens.pop(0)
            found = f"{_OPEN}{inner}{_CLOSE}"
        elif token[0].isdigit():
            found = f"<mn>{token}</mn>"
        else:
            found = _name(token)
            if self._tokens[:1] == ["("]:
                found = f"<mrow>{found}{self._factor()}</mrow>"
        while self._tokens and self._tokens[0] in _RAISED:
            found = f"<msup>{found}<mn>{_RAISED[self._tokens.pop(0)]}</mn></msup>"
        return found


_OPEN = '<mrow><mo stretchy="false">(</mo>'
_CLOSE = '<mo stretchy="false">)</mo></mrow>'


def _bare(factor: str) -> str:
    """Without the parentheses, where a root or the line of a fraction says as much."""
    if factor.startswith(_OPEN) and factor.endswith(_CLOSE):
        return factor.removeprefix(_OPEN).removesuffix(_CLOSE)
    return factor


def _name(token: str) -> str:
    if re.fullmatch(r"\w_\w+", token):
        return f"<msub><mi>{token[0]}</mi><mi>{token[2:]}</mi></msub>"
    return f"<mi>{escape(token)}</mi>"
