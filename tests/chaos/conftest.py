from tests.labapex_server.conftest import _fast_passwords, _own_home, host, researcher
from tests.labapex_server.gateway.fixtures import platform, rig, run, threads

__all__ = ["_fast_passwords", "_own_home", "host", "platform", "researcher", "rig", "run", "threads"]
