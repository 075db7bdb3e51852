"""Results on disk, so that a compression that was killed goes on from its last finished tensor."""

from waterfill.resume.facts import Fingerprint, fingerprint
from waterfill.resume.folder import Memo, WorkFolder, work_folder

__all__ = ["Fingerprint", "Memo", "WorkFolder", "fingerprint", "work_folder"]
