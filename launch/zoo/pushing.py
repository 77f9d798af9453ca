"""A release folder onto the Hugging Face hub (or any server that `HF_ENDPOINT` names), with the hub's own client."""

from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.launch.zoo.exporting import FILES


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload the files of a release with the hub's own login (`hf auth login`, or HF_TOKEN).

    Args:
        folder: the release.
        repository: USER/NAME; it is made where it does not exist.
        private: whether a repository that is made is private.

    Returns:
        The address of the commit.

    Raises:
        UserError: the login is missing or refused, the server cannot be reached, or it refuses the card.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    # of httpx or of httpx2, as the client was built on: no connection, a timeout
    network: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    api = HfApi(library_name="scanfoundry")
    try:
        api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, repo_type="model", allow_patterns=list(FILES),
            commit_message="Release made by scanfoundry models export",
        )  # fmt: skip
    except HFValidationError as error:
        raise UserError(f"--push {repository}: {_line(error)}; give USER/NAME") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"not logged in to {api.endpoint}: run 'hf auth login', or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "run 'hf auth login' with a token that may write there" if status in (401, 403) else "try again later"
        raise UserError(
            f"{api.endpoint} refused {repository} (status {status}): {_line(error)}; {advice}; "
            f"{folder} is whole: the same command pushes it"
        ) from error
    except (network, OSError) as error:
        raise UserError(
            f"{api.endpoint} cannot be reached ({_line(error)}); {folder} is whole: the same command pushes it later"
        ) from error
    except ValueError as error:
        raise UserError(f"{api.endpoint} refused the model card: {_line(error)}") from error
    return str(done.commit_url)


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
