"""The dataset of a training as MLflow shows it: an input of the run, with name, digest, source and sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.command import UserError
from pipeline.base.redaction import without_secrets
from pipeline.data.dataset import MANIFEST, Manifest

DIGEST_LENGTH = 16  # of the manifest's SHA-256; MLflow takes 36 characters
CONTEXT = {"mlflow.data.context": "training"}  # MLflow's own key
SCHEMA = {"mlflow_colspec": [{"name": "jpeg", "type": "binary"}, {"name": "label", "type": "long"}]}


def dataset_facts(manifest: Manifest, sha256: str, place: str) -> dict[str, Any]:
    """What tracking.json holds of a dataset: its name, the SHA-256 of its manifest, its place and its sizes.

    place: the folder or URL, as the config names it; without its secrets.
    """
    place = without_secrets(place)
    splits = {name: split.samples for name, split in manifest.splits.items()}
    name = manifest.name or _last_part(place)
    return {"name": name, "sha256": sha256, "place": place, "classes": len(manifest.classes), "splits": splits}


def facts_of_an_older_run(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    """The same for a run whose tracking.json lacks it: with the sizes where the dataset is still at hand, {} if it had none."""
    place, sha256 = params.get("data"), tags.get("dataset_sha256")
    if not place or not sha256:
        return {}
    path = Path(place) / MANIFEST
    try:
        text = path.read_bytes()
        if hashlib.sha256(text).hexdigest() == sha256:
            return dataset_facts(Manifest.from_json(text.decode(), path), sha256, place)
    except (OSError, UserError, UnicodeDecodeError):
        pass
    return {"name": _last_part(place), "sha256": sha256, "place": place}


def log_dataset(client: Any, run: Any, facts: Mapping[str, Any]) -> None:
    """Make the dataset an input of the MLflow run, unless it is one already."""
    digest = str(facts["sha256"])[:DIGEST_LENGTH]
    if any(known.dataset.digest == digest for known in run.inputs.dataset_inputs):
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    place = str(facts["place"])
    scheme = place.partition("://")[0] if "://" in place else "local"
    profile = {f"{split} images": count for split, count in facts.get("splits", {}).items()}
    if "classes" in facts:
        profile["classes"] = facts["classes"]
    dataset = Dataset(
        name=str(facts["name"])[:500],
        digest=digest,
        source_type=scheme,
        source=json.dumps({"uri": place}),
        schema=json.dumps(SCHEMA),
        profile=json.dumps(profile) if profile else None,
    )
    client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag(*item) for item in CONTEXT.items()])])


def _last_part(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2] or place
