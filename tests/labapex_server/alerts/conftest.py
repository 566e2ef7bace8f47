from tests.labapex_server.gateway.fixtures import rig, run, threads

__all__ = ["rig", "run", "threads"]
