from tests.labapex_server.disputes.stage import another_platform
from tests.labapex_server.gateway.fixtures import rig, run, threads

__all__ = ["another_platform", "rig", "run", "threads"]
