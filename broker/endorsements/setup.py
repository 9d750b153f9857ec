# SPDX-License-Identifier: Apache-2.0
"""The endorsements of all vendors that a config describes: for the broker and for the operator's commands."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from broker.claims import Trusted
from broker.config import Config
from broker.endorsements.kds import Kds
from broker.endorsements.service import EndorsementService
from broker.endorsements.source import Source
from broker.store.protocols import Store
from broker.verifiers.snp_endorsements import PREFIX, check_endorsement, instance_id
from broker.verifiers.snp_roots import built_in


def amd_trusted(config: Config) -> Trusted:
    """AMD's roots, which the product knows, and the operator's floors."""
    return replace(built_in(), floors=config.snp.floors)


def amd_source(trusted: Trusted, kds_url: str) -> Source:
    """AMD: its KDS at `kds_url`, nowhere with ""."""
    fetch = Kds(kds_url).fetch if kds_url else None
    return Source(PREFIX, partial(check_endorsement, trusted=trusted), instance_id, fetch)


def endorsement_service(config: Config, store: Store) -> EndorsementService:
    return EndorsementService(store, [amd_source(amd_trusted(config), config.snp.kds_url)])
