"""The Serve application: Ingress -> Retriever, Scorer. Binds, nothing else.

No `from __future__ import annotations` here: Serve would hand a raw dict to the typed builder.
"""

from typing import cast

from ray.serve import Application, Deployment

from engine.config import ServingConfig
from engine.serving.ingress import Ingress
from engine.serving.retriever import Retriever
from engine.serving.scorer import Scorer


def build_app(args: ServingConfig) -> Application:
    """Return the application; replicas, queues and `user_config` come from the config file."""
    ingress, retriever, scorer = (
        cast(Deployment, decorated) for decorated in (Ingress, Retriever, Scorer)
    )
    application: Application = ingress.bind(args, retriever.bind(args), scorer.bind(args))
    return application
