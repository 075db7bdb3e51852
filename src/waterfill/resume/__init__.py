"""Results on disk, so that a compression that was killed goes on from its last finished tensor."""

from waterfill.resume.fingerprint import Fingerprint, fingerprint
from waterfill.resume.folder import NOTHING_KEPT, Memo, WorkFolder, work_folder

__all__ = ["NOTHING_KEPT", "Fingerprint", "Memo", "WorkFolder", "fingerprint", "work_folder"]
