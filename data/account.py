"""Nothing is dropped silently: one tally of what a reader left out or changed, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from utils.errors import printable

REASONS = {
    "unreadable": "box that is no numbers where numbers should be, or too few or too many of them",
    "degenerate": "box without width or height",
    "outside": "box entirely outside its image",
    "duplicate": "box written twice in one image",
    "unknown class": "box (or image) of a class that is not in names",
    "crowd": "crowd region (iscrowd=1), not one object",
    "difficult": "object marked difficult",
    "no image": "box of an image that is not listed",
    "missing image": "image listed but not found",
    "corrupt image": "image that training could not decode",
    "listed twice": "image listed twice in one split",
    "linked again": "link to a folder that is read already",
    "closed": "folder that cannot be opened",
    "hidden": "image that is hidden, or in a hidden folder",
    "other file": "file that is no image of a known format",
    "label alone": "label file without an image",
    "unread": "file that belongs to no split",
    "tiny": "box of a pixel or less, nothing to crop",
    "no object": "image without objects, nothing to classify",
    "empty class": "class folder without images",
    "broken annotation": "annotation file that cannot be read, its image left out",
    "broken entry": "entry of an image without what it needs, an id and a file name",
    "ambiguous": "annotation that several images answer to, or one of several of one image",
    "unlabelled": "image without an annotation, not used",
    "shared id": "image that has its id in common with another, left out with the boxes of both",
    "no owner": "box of an id that several images have",
}
KEPT = {
    "clipped": "box reaching outside its image, cut to the image",
    "turned": "image that its EXIF tag turns, boxes turned along",
    "other size": "annotation that states another size than the image has, boxes scaled",
    "no annotation": "image listed without an annotation file, kept as background",
    "named otherwise": "annotation of the image that its <filename> names, not of the one of its own name",
    "several entries": "image listed several times under ids of its own, boxes joined",
    "no size": "annotation whose size is no number, taken from the image",
    "outside folder": "image outside the data's folder, by ../, an absolute path or a link",
}
# Boxes that nobody meant to write; of those that are dropped for other reasons, somebody did.
BAD = ("unreadable", "degenerate", "outside")
LONGEST = 300  # characters of a place that are shown


@dataclass
class Account:
    """Counts per reason and place, in the order in which they were met; `notices` are sentences about all."""

    places: dict[str, dict[str, int]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each reason."""
        return {reason: sum(places.values()) for reason, places in self.places.items()}

    @property
    def examples(self) -> dict[str, list[str]]:
        """The first three places of each reason."""
        return {reason: list(places)[:3] for reason, places in self.places.items()}

    def note(self, reason: str, where: object, n: int = 1) -> None:
        """Count `n` things left out (or changed) for `reason`, found at `where`."""
        assert reason in REASONS or reason in KEPT, reason
        if n:
            places, where = self.places.setdefault(reason, {}), printable(where)
            where = where if len(where) <= LONGEST else f"{where[: LONGEST - 60]}...{where[-60:]}"
            places[where] = places.get(where, 0) + int(n)

    def say(self, notice: str) -> None:
        """Add a sentence to the summary, once."""
        if notice not in self.notices:
            self.notices.append(printable(notice))

    def lines(self) -> list[str]:
        """One line per reason: how many, why, in how many places, and which the first ones are."""
        return [
            f"{'kept' if reason in KEPT else 'dropped'}: {self._line(reason)}" for reason in self.places
        ] + [f"note: {notice}" for notice in self.notices]

    def why(self, reasons: Iterable[str] = REASONS) -> str:
        """What was dropped, the most frequent reasons first, to end an error's sentence with; or nothing."""
        counts = self.counts
        dropped = sorted((r for r in reasons if r in counts), key=lambda r: -counts[r])
        return "".join(f"; dropped: {self._line(reason)}" for reason in dropped[:4])

    def _line(self, reason: str) -> str:
        n, places = self.counts[reason], self.places[reason]
        some = ", ".join(self.examples[reason]) + (", ..." if len(places) > 3 else "")
        spread = f" in {len(places)} places" if n > len(places) > 1 else ""
        return f"{n} x {reason} ({ {**REASONS, **KEPT}[reason] }){spread}: {some}"
