"""Put an exported bundle on a Hugging Face hub.

    python -m scripts push dist/esfan_histopathology_segmentation --repo-id OWNER/NAME --dry-run
    python -m scripts push dist/esfan_histopathology_segmentation --repo-id OWNER/NAME

The first looks through the bundle and says what would be uploaded, without a network. The second wants to be logged in
(``hf auth login``). The commit is tagged with the bundle's version, which is where ``large_files.yml`` points to.
"""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id
from monai.bundle import ConfigParser

from ..errors import BundleError
from ..files.foreign_files import read_json

NEEDED = ("README.md", "LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt")
LEFT_OUT = ("eval/*", "data/*", "output/*", "predictions/*", "**/__pycache__/*")  # what using a bundle leaves in it


def require_bundle(bundle: Path, repo_id: str) -> str:
    """See that ``bundle`` can go to ``repo_id``.

    Returns:
        Its version.

    Raises:
        FileNotFoundError: if it lacks a file that the hub or MONAI needs.
        BundleError: if the card has no licence, or its large files are said to be elsewhere.
    """
    validate_repo_id(repo_id)
    missing = [name for name in NEEDED if not (bundle / name).is_file()]
    if missing:
        raise FileNotFoundError(f"`bundle` must be a folder that `export` made, got {bundle} without {missing}.")
    version = read_json(bundle / "configs" / "metadata.json")["version"]
    if ModelCard.load(bundle / "README.md").data.license is None:
        raise BundleError(f"{bundle / 'README.md'} must name a licence in its first lines; export the bundle again.")
    large = bundle / "large_files.yml"
    entries = ConfigParser.load_config_file(str(large))["large_files"] if large.is_file() else []
    elsewhere = [entry["url"] for entry in entries if f"/{repo_id}/resolve/{version}/" not in entry["url"]]
    if elsewhere:
        raise BundleError(
            f"large_files.yml must point to {repo_id} at {version}, got {elsewhere}; export with --repo-id."
        )
    return version


def push(bundle: str, repo_id: str, dry_run: bool = False, private: bool = False) -> str:
    """Upload an exported bundle; see the module's docstring.

    Args:
        bundle: its folder.
        repo_id: the hub's repository, ``OWNER/NAME``; made if it is not there.
        dry_run: only say what would be uploaded.
        private: of a new repository.

    Returns:
        What was done, for people.
    """
    folder = Path(str(bundle))
    version = require_bundle(folder, repo_id)
    if dry_run:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = [path for path in files if not any(path.relative_to(folder).match(pattern) for pattern in LEFT_OUT)]
        lines = [f"{path.stat().st_size:>12,} {path.relative_to(folder).as_posix()}" for path in files]
        return "\n".join([*lines, f"Would go to {repo_id}, tag {version}: {len(files)} files. Nothing was uploaded."])
    api = HfApi()
    api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    message = f"{folder.name} {version}"
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, repo_type="model", commit_message=message, ignore_patterns=list(LEFT_OUT)
    )
    api.create_tag(repo_id, tag=version, repo_type="model", tag_message=message)
    return f"Uploaded: {commit.commit_url}, tag {version}."
