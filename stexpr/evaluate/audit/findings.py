"""What an audit says: one finding for each check of each thing looked at, also where the check passed or could not be done."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from stexpr.config.files import write_whole

__all__ = ["Audit", "Finding", "Overlap", "Severity", "not_done"]

Severity: TypeAlias = Literal["leak", "flag", "information", "passed"]
_ORDER: tuple[Severity, ...] = ("leak", "flag", "information", "passed")


@dataclass(frozen=True)
class Finding:
    """What one check found in one cohort or run.

    Attributes:
        check: Name of the check.
        severity: `leak` = test data reached a model or its targets; `flag` = a person should look; `information` = nothing
            wrong is known, among others where a check could not be done; `passed`.
        sentence: What was found, where, how often, and what to do.
        details: The numbers behind it, as plain JSON values.
        subject: The cohort or run looked at.
    """

    check: str
    severity: Severity
    sentence: str
    details: Mapping[str, Any] = field(default_factory=dict)
    subject: str = ""


@dataclass(frozen=True)
class Audit:
    """All findings about a cohort or about runs, in the order of the checks."""

    path: Path
    findings: tuple[Finding, ...]

    @property
    def leaks(self) -> bool:
        """Whether any finding is a leak, declared ones included."""
        return any(finding.severity == "leak" for finding in self.findings)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return subject, check, severity and sentence of each finding, the gravest first."""
        ranked = sorted(self.findings, key=lambda finding: _ORDER.index(finding.severity))
        return [(finding.subject, finding.check, finding.severity, finding.sentence) for finding in ranked]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"path": str(self.path), "leaks": self.leaks, "findings": [asdict(finding) for finding in self.findings]}

    def write(self, path: Path) -> None:
        """Write the findings as JSON, whole or not at all.

        Raises:
            DataError: The file cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


class Overlap(NamedTuple):
    """Spots that two sections share, or one section holds twice.

    Attributes:
        first: A section.
        second: Another one, or the same.
        n: Spots shared.
        same_barcode: How many of them have one barcode in both.
        example: Barcodes of one such pair.
    """

    first: str
    second: str
    n: int
    same_barcode: int
    example: tuple[str, str]

    def words(self) -> str:
        """Say which sections share how much, with an example."""
        where = f"twice in {self.first}" if self.first == self.second else f"in {self.first} and {self.second}"
        return f"{self.n} {where} ({self.example[0]} = {self.example[1]})"


def not_done(check: str, reason: str, severity: Severity = "information") -> Finding:
    """Report a check that could not be done."""
    return Finding(check, severity, f"not done: {reason}", {"done": False})
