"""The leaves that are due follow one another from the contract on, and commit to the losses."""

from __future__ import annotations

from tests.vectors.independent.canonical import digest, sha256
from tests.vectors.independent.folder import Folder, due_steps
from tests.vectors.independent.forms import Document
from tests.vectors.independent.refused import Refused


def first_terms(contract: Document) -> Document:
    """With what the chain begins: the terms of the first host, which are the same but for who has them, and of the whole run."""
    handovers = contract.get("handovers")
    begun = handovers[0]["lease"] if handovers else contract["lease"]
    return contract | {"lease": begun, "handovers": [], "stopped": None}


def check_log(folder: Folder) -> None:
    """The leaves that are due follow one another from the contract on, and commit to the losses. Raises `Refused`."""
    if [leaf["step"] for leaf in folder.leaves] != due_steps(folder):
        raise Refused("log", "other leaves are due")
    if len(folder.losses) != 8 * folder.iterations:
        raise Refused("log", "other losses are due")
    for each in folder.contract["handovers"]:
        if each["leaf"] != folder.leaves[each["leaf"]["index"]]:
            raise Refused("log", "the run was handed over behind another leaf")
    before, at = digest(first_terms(folder.contract)), 0
    for index, leaf in enumerate(folder.leaves):
        if (leaf["index"], leaf["prev"]) != (index, before):
            raise Refused("log", f"leaf {index} does not follow")
        if leaf["losses"] != sha256(folder.losses[8 * at : 8 * leaf["step"]]):
            raise Refused("log", f"leaf {index} commits to other losses")
        before, at = digest(leaf), leaf["step"]
