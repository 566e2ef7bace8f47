"""The systemd unit of a worker, and why it says what it says (decision 15).

Each directive here was weighed against two facts. Jobs outlive the daemon, so systemd may not kill them with it. And
bubblewrap, as an ordinary user, has to make namespaces, mount a fresh `/proc` and name its host in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

NAME = "labapex-worker"
SERVICE = f"{NAME}.service"

# Seccomp alone: these hold in a user's unit as well, where systemd cannot make mounts.
_EVERYWHERE = (
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures=native",
    "SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
)


SUBGROUP_SINCE = 254  # systemd's version that knows DelegateSubgroup=

# Runs in a part of the unit's group that systemd makes for it, `.control`, whatever ended the service.
TAKE_BACK = """\
/bin/sh -c 'read -r own </proc/self/cgroup && own="${own#0::}" && \
echo "-memory -pids" >"/sys/fs/cgroup${own%/.control}/cgroup.subtree_control"'"""


def text(
    *,
    command: Sequence[str],
    home: Path,
    environment: Path,
    user: str | None,
    reads: Sequence[Path],
    config: Path,
    systemd: int | None,
) -> str:
    """The unit. `user` None: a unit of the user who installs it. `reads` are the paths that the daemon and its jobs need to
    read; `config` is there once the worker is enrolled; `systemd` is the version that will read it, None: not known."""
    system = user is not None
    return "\n".join(
        [
            "[Unit]",
            "Description=Lab Apex worker: trains models for strangers in a sandbox",
            "Wants=network-online.target",
            "After=network-online.target nvidia-persistenced.service",
            f"ConditionPathExists={_quoted(config)}",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={' '.join(map(_quoted, command))}",
            f"Environment={_quoted(f'LABAPEX_WORKER_HOME={home}')}",
            f"EnvironmentFile=-{_quoted(environment)}",
            "# A daemon that ran empty, or was stopped, stays away; 2 is wrong input, which no restart mends.",
            "Restart=on-failure",
            "RestartSec=5",
            "RestartPreventExitStatus=2",
            "# Jobs outlive the daemon and are found by the next; one that runs out of memory is not the daemon's end.",
            "KillMode=process",
            "OOMPolicy=continue",
            "TasksMax=16384",
            "LimitNOFILE=65536",
            "",
            *_delegation(systemd),
            "",
            *_EVERYWHERE,
            *(_system(user, reads) if user is not None else ()),
            "",
            "[Install]",
            f"WantedBy={wanted_by(system=system)}",
            "",
        ]
    )


def _delegation(systemd: int | None) -> list[str]:
    """The unit's control group is the daemon's to divide, so that the kernel keeps each job within its limits."""
    delegated = "Delegate=memory pids"
    if systemd is not None and systemd >= SUBGROUP_SINCE:
        return [delegated, "DelegateSubgroup=daemon"]
    return [
        delegated,
        "# The daemon moves into a part of its own. While jobs that went on have controllers of this group, nothing can be",
        "# started in it: they are taken back when the service ends, and the next daemon hands them on again.",
        f"ExecStopPost=-{TAKE_BACK.replace('%', '%%').replace('$', '$$')}",
    ]


def wanted_by(*, system: bool) -> str:
    return "multi-user.target" if system else "default.target"


def _system(user: str, reads: Sequence[Path]) -> list[str]:
    homes = any(path.is_relative_to(home) for path in reads for home in ("/home", "/root", "/run/user"))
    return [
        f"User={user}",
        f"Group={user}",
        f"StateDirectory={NAME}",
        "StateDirectoryMode=0700",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectSystem=strict",
        f"ProtectHome={'read-only' if homes else 'yes'}",
        "PrivateTmp=yes",
        "ProtectKernelModules=yes",
        "KeyringMode=private",
        "# Not here, because bubblewrap fails with them: ProtectKernelTunables, ProcSubset, ProtectHostname,",
        "# RestrictNamespaces. Not here, because GPUs are devices: PrivateDevices, and ProtectClock, which closes others.",
        "# Not here, because the daemon makes control groups for its jobs: ProtectControlGroups.",
    ]


def _quoted(value: object) -> str:
    """One word for systemd: no specifier, no variable and no escape in it means anything."""
    plain = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if any(c in plain for c in " \t'\"\\;") else plain
