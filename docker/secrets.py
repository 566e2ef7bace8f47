"""Make the secrets of docker/compose.yaml, each in a file of its own: `python docker/secrets.py [FOLDER]`. Those that are
there stay. The folder is for its owner alone; the files in it are mounted into containers whose users are others."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

REDIS = "requirepass {redis}\nappendonly yes\nmaxmemory-policy noeviction\n"


def files() -> dict[str, str]:
    """Content by name. Whoever is given a password and whoever asks for it get the same one."""
    made = {name: secrets.token_hex(24) for name in ("postgres", "redis", "rabbitmq", "store")}
    key = f"labapex-{secrets.token_hex(8)}"
    identity = {
        "name": "labapex",
        "credentials": [{"accessKey": key, "secretKey": made["store"]}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    return {
        "postgres_password": made["postgres"],
        "redis.conf": REDIS.format(**made),
        "rabbitmq.conf": "default_user = labapex\ndefault_pass = {rabbitmq}\n".format(**made),
        "s3.json": json.dumps({"identities": [identity]}, indent=1),
        "labapex_database_url": "postgresql://labapex:{postgres}@postgres:5432/labapex".format(**made),
        "labapex_channel_url": "redis://:{redis}@redis:6379/0".format(**made),
        "labapex_broker_url": "amqp://labapex:{rabbitmq}@rabbitmq:5672//".format(**made),
        "labapex_object_store_key": key,
        "labapex_object_store_secret": made["store"],
    }


def main(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    made = files()
    there = sorted(name for name in made if (folder / name).exists())
    if there and len(there) < len(made):
        missing = ", ".join(sorted(set(made) - set(there)))
        raise SystemExit(f"{folder} has some of the secrets and lacks {missing}: they belong together, so restore them")
    for name in made if not there else ():
        (folder / name).write_text(made[name])
        (folder / name).chmod(0o644)
    print(f"{'kept' if there else 'made'} {len(made)} secrets in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("secrets"))
