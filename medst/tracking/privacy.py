"""What of a credentialed data set stays home: it enters neither the store nor a persisted log."""

from __future__ import annotations

import os
import re

PRIVATE_SWITCH = "MEDST_TRACK_PRIVATE"
"""Environment variable with which a user allows private artifacts of credentialed data in the store."""
PRIVATE_NOTICE = (
    f"{PRIVATE_SWITCH} is set: of these credentialed data the tracking store also takes per-patient predictions, "
    "embeddings, attention maps, sample images with the words of their reports, and models with their vocabulary. Keep "
    "the store as protected as the data; unset the variable to keep them at home.")
"""Said before a trial that makes use of the switch."""

_IDENTIFIERS = re.compile(
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{8}){4}\b"  # dicom_id
    r"|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"  # RSNA; its first part may look like a bare id
    r"|\b[ps][0-9]{7,8}\b"  # patient and study folders
    r"|\b[0-9]{8}\b"  # bare patient and study ids
    r"|\bpatient[0-9]{1,6}(?:[-/_]study[0-9]+)?(?:[-/_]view[0-9]+_[a-z]+)?\b",  # CheXpert Plus
    re.IGNORECASE,
)


def is_private_tracking_allowed() -> bool:
    """True where the user set MEDST_TRACK_PRIVATE=true: the one explicit switch."""
    return os.environ.get(PRIVATE_SWITCH, "").lower() in ("1", "true", "yes")


def without_identifiers(text: str) -> str:
    """`text` with patient, study and image identifiers replaced by `withheld`."""
    return _IDENTIFIERS.sub("withheld", text)
