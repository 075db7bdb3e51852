"""Results on disk, so that a compression that was killed goes on from its last finished tensor."""

from waterfill.resume.facts import Fingerprint, fingerprint, of_tensors
from waterfill.resume.folder import Memo, WorkFolder, work_folder

__all__ = ["Fingerprint", "Memo", "WorkFolder", "fingerprint", "of_tensors", "work_folder"]
