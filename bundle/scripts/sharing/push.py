"""Upload an exported bundle to the Hugging Face Hub.

    python -m scripts push dist/esfan_histopathology_segmentation --repo-id OWNER/NAME --dry-run
    python -m scripts push dist/esfan_histopathology_segmentation --repo-id OWNER/NAME

The first checks the bundle and lists what would be uploaded, offline. The second requires a login (``hf auth login``).
The commit is tagged with the bundle's version, to which ``large_files.yml`` points.
"""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id
from monai.bundle import ConfigParser

from ..errors import BundleError
from ..files.foreign_files import read_json

NEEDED = ("README.md", "LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt")
LEFT_OUT = ("eval/*", "data/*", "output/*", "predictions/*", "**/__pycache__/*")  # left behind by using a bundle


def require_bundle(bundle: Path, repo_id: str) -> str:
    """Check that ``bundle`` can be uploaded to ``repo_id``.

    Returns:
        The bundle's version.

    Raises:
        FileNotFoundError: if it lacks a file that the Hub or MONAI needs.
        BundleError: if the card has no licence, or ``large_files.yml`` points elsewhere.
    """
    validate_repo_id(repo_id)
    missing = [name for name in NEEDED if not (bundle / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`bundle` must be a folder created by `export`, got {bundle} without {missing}; export it again."
        )
    version = read_json(bundle / "configs" / "metadata.json")["version"]
    if ModelCard.load(bundle / "README.md").data.license is None:
        raise BundleError(
            f"{bundle / 'README.md'} must name a licence in its metadata header; export the bundle again."
        )
    large = bundle / "large_files.yml"
    entries = ConfigParser.load_config_file(str(large))["large_files"] if large.is_file() else []
    elsewhere = [entry["url"] for entry in entries if f"/{repo_id}/resolve/{version}/" not in entry["url"]]
    if elsewhere:
        raise BundleError(
            f"large_files.yml must point to {repo_id} at {version}, got {elsewhere}; export again with --repo-id."
        )
    return version


def push(bundle: str, repo_id: str, dry_run: bool = False, private: bool = False) -> str:
    """Upload an exported bundle; see the module's docstring.

    Args:
        bundle: the bundle's folder.
        repo_id: the Hub repository, ``OWNER/NAME``; created if it does not exist.
        dry_run: only list what would be uploaded.
        private: whether a new repository is private.

    Returns:
        A message about what was done.
    """
    folder = Path(str(bundle))
    version = require_bundle(folder, repo_id)
    if dry_run:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = [path for path in files if not any(path.relative_to(folder).match(pattern) for pattern in LEFT_OUT)]
        lines = [f"{path.stat().st_size:>12,} {path.relative_to(folder).as_posix()}" for path in files]
        return "\n".join(
            [*lines, f"Would upload {len(files)} files to {repo_id}, tag {version}. Nothing was uploaded."]
        )
    api = HfApi()
    api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    message = f"{folder.name} {version}"
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, repo_type="model", commit_message=message, ignore_patterns=list(LEFT_OUT)
    )
    api.create_tag(repo_id, tag=version, repo_type="model", tag_message=message)
    return f"Uploaded: {commit.commit_url}, tag {version}."
