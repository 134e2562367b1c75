"""Uploads an exported folder to the Hugging Face hub, into a repository that is new."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from contracts.errors import UserError, first_line


def validate_new(name: str) -> None:
    """Raises:
    UserError: the name is none, somebody has it, or the hub can't be asked.
    """
    try:
        validate_repo_id(name)
        there = HfApi().repo_exists(name)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {name}: {first_line(error)}") from error
    except Exception as error:  # whatever client and network have to say
        raise UserError(f"--push-to-hub {name}: the hub can't be asked: {first_line(error)}") from error
    if there:
        raise UserError(f"--push-to-hub {name}: is there already, and nothing is overwritten: give another name")


def push(folder: Path, name: str, *, private: bool) -> str:
    """Create the repository and upload; returns its address.

    Raises:
        UserError: the hub rejects it; the folder stays.
    """
    try:
        api = HfApi()
        address = api.create_repo(name, private=private)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by sapo")
    except Exception as error:  # as above
        raise UserError(
            f"--push-to-hub {name}: not uploaded: {first_line(error)}; the export is in {folder}: "
            f"`hf auth login`, then `hf upload {name} {folder}`"
        ) from error
    return str(address)
