"""What a dataset's adapter noticed, in a few lines that people read before an extraction starts."""

from collections.abc import Sequence

from pipelines.datasets import Finding

_HEADINGS = {
    "passed_over": "passed over",
    "unreadable": "unreadable",
    "copies": "copies",
    "labels": "labels",
    "class_without_images": "no image",
    "class_without_pixels": "no pixel",
}
_NAMED = 3
_SHOWN_CHARACTERS = 60


def finding_pairs(findings: Sequence[Finding]) -> dict[str, str]:
    """One line for each kind of finding, by its heading."""
    pairs: dict[str, str] = {}
    for kind, heading in _HEADINGS.items():
        texts = [_text(finding) for finding in findings if finding.kind == kind]
        if texts:
            pairs[heading] = "; ".join(texts)
    return pairs


def _text(finding: Finding) -> str:
    names = ", ".join(map(_name, finding.names[:_NAMED])) + (", ..." if finding.count > _NAMED else "")
    detail = f"; {finding.detail}" if finding.detail else ""
    return f"{finding.what}: {finding.count} ({names}{detail})"


def _name(name: str) -> str:
    """A name as a literal, since it may hold what a terminal obeys; a long one is cut."""
    return repr(name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}...")
