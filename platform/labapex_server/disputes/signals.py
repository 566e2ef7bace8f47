from __future__ import annotations

from django.dispatch import Signal

opened = Signal()  # dispute_id: UUID; after commit
