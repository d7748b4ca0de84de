"""Trackers beside metrics.jsonl (tensorboard, wandb, ...): transformers knows them by name and sends them what Trainer logs."""

from collections.abc import Iterable

from transformers.integrations import integration_utils

from diffulm.errors import BadInput, unknown


def check(names: Iterable[str]) -> None:
    """Raise BadInput for a tracker that there is not, or that is not installed here."""
    known, here = integration_utils.INTEGRATION_TO_CALLBACK, integration_utils.get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise unknown("tracker in report_to:", name, known)
        if name not in here:
            raise BadInput(f"report_to={name}: is not installed here; install it with pip, or leave it out")
