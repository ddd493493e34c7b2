"""Uploading an export to the Hugging Face hub. Nothing is uploaded unless it is asked for by the repository's name."""

from __future__ import annotations

import re

from bluedit.edits.export.outputs import CARD, Exported
from bluedit.errors import ModelError, SettingsError, excerpt, first_line

__all__ = ["check_repository", "push_to_hub"]

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_repository(name: str) -> None:
    """**Raises** :class:`~bluedit.errors.SettingsError` for what is no `OWNER/NAME`."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{excerpt(name)} is not the name of a repository; write OWNER/NAME")


def push_to_hub(exported: Exported, repository: str) -> str:
    """Upload an export's files with its card; the address. A repository that is not there is made, and private.

    Who uploads is whom `hf auth login`, or the environment, says.

    **Raises** :class:`~bluedit.errors.ModelError` with what the hub said.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    message = f"Upload {exported.kind} written by bluedit"
    try:
        api = HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        if exported.path.is_dir():
            api.upload_folder(folder_path=exported.path, repo_id=repository, commit_message=message)
        else:
            api.upload_file(
                path_or_fileobj=exported.path, path_in_repo=exported.path.name, repo_id=repository, commit_message=message
            )
        if exported.card != exported.path / CARD:  # a repository shows the card that is at its top
            api.upload_file(path_or_fileobj=exported.card, path_in_repo=CARD, repo_id=repository, commit_message=message)
    except Exception as error:  # its errors are of every kind, and network ones too
        raise ModelError(
            f"{exported.path} was written, and could not be uploaded to {repository}: {first_line(error)}; log in with "
            "hf auth login, and upload it again with hf upload"
        ) from error
    return str(address)
