"""Delays and states that a test may ask for; `POST /moto-api/settings` changes them, `/moto-api/reset` puts them back."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Settings:
    attach_seconds: float = 0
    """How long an attached traffic source stays Adding before its instances are registered and it is Added."""
    detach_seconds: float = 0
    """How long a detached one stays Removing; its instances are deregistered at once."""
    provision_seconds: float = 0
    """How long a new load balancer stays `provisioning`."""
    provision_failures: int = 0
    """So many of the load balancers made from now on end as `failed` in place of `active`."""
    eni_linger_seconds: float = 0
    """How long the network interfaces of a deleted load balancer keep its security groups in use."""
    session_seconds: float = 0
    """How long credentials of a role are valid; 0: as long as was asked for."""
    targets_per_balancer: int = 0
    """So many targets a load balancer may have in all its target groups; 0: any number."""
    instance_refresh: list[str] = field(default_factory=list)
    """Auto Scaling groups in an instance refresh: attaching answers InstanceRefreshInProgress."""
    account_limits: dict[str, int] = field(default_factory=dict)
    """Limits that DescribeAccountLimits tells, where they are not AWS's defaults. They hold nobody back."""

    def change(self, wanted: dict[str, Any]) -> None:
        names = {f.name for f in fields(self)}
        if unknown := sorted(set(wanted) - names):
            raise ValueError(f"unknown settings {unknown}; there are {sorted(names)}")
        for name, value in wanted.items():
            known = {"instance_refresh": list, "account_limits": dict}.get(name, (int, float))
            if not isinstance(value, known) or isinstance(value, bool):
                raise ValueError(f"{name} cannot be {value!r}")
        for name, value in wanted.items():
            setattr(self, name, value)

    def reset(self) -> None:
        self.__init__()

    def shown(self) -> dict[str, Any]:
        return asdict(self)


SETTINGS = Settings()
