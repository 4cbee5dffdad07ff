"""Nothing is dropped silently: one tally of what a reader left out or changed, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

REASONS = {
    "degenerate": "box without width or height",
    "outside": "box entirely outside its image",
    "duplicate": "box written twice in one image",
    "unknown class": "box (or image) of a class that is not in names",
    "crowd": "crowd region (iscrowd=1), not one object",
    "difficult": "object marked difficult",
    "no image": "box of an image that is not listed",
    "missing image": "image listed but not found",
    "corrupt image": "image that cannot be decoded",
    "listed twice": "image listed twice in one split",
    "tiny": "box of a pixel or less, nothing to crop",
    "no object": "image without objects, nothing to classify",
    "empty class": "class folder without images",
}
KEPT = {
    "clipped": "box reaching outside its image, cut to the image",
    "turned": "image that its EXIF tag turns, boxes turned along",
    "other size": "annotation that states another size than the image has, boxes scaled",
    "no annotation": "image listed without an annotation file, kept as background",
}


@dataclass
class Account:
    """Counts per reason, with the first few places of each; `notices` are sentences about the whole set."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def note(self, reason: str, where: object, n: int = 1) -> None:
        """Count `n` things left out (or changed) for `reason`, found at `where`."""
        assert reason in REASONS or reason in KEPT, reason
        if n:
            self.counts[reason] = self.counts.get(reason, 0) + int(n)
            places = self.examples.setdefault(reason, [])
            if len(places) < 3 and str(where) not in places:
                places.append(str(where))

    def say(self, notice: str) -> None:
        """Add a sentence to the summary, once."""
        if notice not in self.notices:
            self.notices.append(notice)

    def lines(self) -> list[str]:
        """One line per reason: how many, why, and where the first ones are."""
        out = []
        for reason, n in self.counts.items():
            what = "kept" if reason in KEPT else "dropped"
            places = ", ".join(self.examples[reason]) + (", ..." if n > len(self.examples[reason]) else "")
            out.append(f"{what}: {n} x {reason} ({ {**REASONS, **KEPT}[reason] }): {places}")
        return out + [f"note: {notice}" for notice in self.notices]
