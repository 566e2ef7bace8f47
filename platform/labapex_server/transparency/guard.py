"""The database itself keeps the log append-only: whoever can run SQL through the platform still cannot rewrite it.

An entry may only be added at the end, under the next number, and no row is ever changed or deleted. (Who owns the
database can drop the triggers; the signed heads that readers keep are what finds him out.) The statements belong to the
migration that runs them and are never edited: another guard comes with another migration.
"""

from __future__ import annotations

ENTRIES, NODES = "transparency_logentry", "transparency_lognode"
_TABLES = (ENTRIES, NODES)
_MESSAGE = "the transparency log is append-only"


def create(vendor: str) -> list[str]:
    """Statements that put the guard up. Raises `KeyError` for a database that it does not know."""
    return {"sqlite": _sqlite, "postgresql": _postgresql}[vendor]()


def drop(vendor: str) -> list[str]:
    """Statements that take it down: for undoing the migration, and for emptying a test's database."""
    if vendor == "postgresql":
        return [f"DROP TRIGGER IF EXISTS {table}_{what} ON {table}" for table, what in _triggers()]
    return [f"DROP TRIGGER IF EXISTS {table}_{what}" for table, what in _triggers()]


def _triggers() -> list[tuple[str, str]]:
    return [(table, what) for table in _TABLES for what in ("fixed", "kept", "whole", "next")]


def _sqlite() -> list[str]:
    statements = []
    for table in _TABLES:
        refuse = f"BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END"
        statements.append(f"CREATE TRIGGER {table}_fixed BEFORE UPDATE ON {table} {refuse}")
        statements.append(f"CREATE TRIGGER {table}_kept BEFORE DELETE ON {table} {refuse}")
    statements.append(
        f'CREATE TRIGGER {ENTRIES}_next BEFORE INSERT ON {ENTRIES} WHEN NEW."index" IS NOT'
        f' (SELECT COALESCE(MAX("index") + 1, 0) FROM {ENTRIES})'
        f" BEGIN SELECT RAISE(ABORT, '{_MESSAGE}: an entry takes the next number'); END"
    )
    # REPLACE would delete a row without asking the trigger above.
    statements.append(
        f"CREATE TRIGGER {NODES}_next BEFORE INSERT ON {NODES}"
        f" WHEN EXISTS (SELECT 1 FROM {NODES} WHERE level = NEW.level AND position = NEW.position)"
        f" BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END"
    )
    return statements


def _postgresql() -> list[str]:
    fail = f"RAISE EXCEPTION '{_MESSAGE}' USING ERRCODE = 'restrict_violation'"
    statements = [
        f"CREATE OR REPLACE FUNCTION transparency_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {fail}; END $$",
        "CREATE OR REPLACE FUNCTION transparency_next() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f' IF NEW."index" IS DISTINCT FROM (SELECT COALESCE(MAX("index") + 1, 0) FROM {ENTRIES}) THEN {fail}; END IF;'
        " RETURN NEW; END $$",
    ]
    for table in _TABLES:
        call = "EXECUTE FUNCTION transparency_refuse()"
        statements.append(f"CREATE TRIGGER {table}_fixed BEFORE UPDATE ON {table} FOR EACH ROW {call}")
        statements.append(f"CREATE TRIGGER {table}_kept BEFORE DELETE ON {table} FOR EACH ROW {call}")
        statements.append(f"CREATE TRIGGER {table}_whole BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {call}")
    statements.append(
        f"CREATE TRIGGER {ENTRIES}_next BEFORE INSERT ON {ENTRIES} FOR EACH ROW EXECUTE FUNCTION transparency_next()"
    )
    return statements
