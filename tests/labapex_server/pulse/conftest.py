from tests.labapex_server.gateway.fixtures import platform, rig, run, threads

__all__ = ["platform", "rig", "run", "threads"]
