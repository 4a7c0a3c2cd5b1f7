"""GATEWAY_SERVER=bound: LocalStack's own server, but listening only where GATEWAY_LISTEN says.

The stock twisted server takes the port from GATEWAY_LISTEN and ignores an IPv4 host: it listens on all interfaces.
"""

from typing import Any

from localstack.runtime.server.core import RuntimeServer, RuntimeServerPlugin


class BoundTwistedPlugin(RuntimeServerPlugin):
    name = "bound"

    def load(self, *_args: Any, **_kwargs: Any) -> RuntimeServer:
        from functools import partial

        from localstack.runtime.server import twisted as stock

        class BoundTwistedServer(stock.TwistedRuntimeServer):
            def register(self, gateway: Any, listen: list, ssl_creds: tuple[str, str] | None = None) -> None:
                unbound = stock.endpoints.TCP4ServerEndpoint
                for address in listen:
                    stock.endpoints.TCP4ServerEndpoint = partial(unbound, interface=address.host)
                    try:
                        super().register(gateway, [address], ssl_creds)
                    finally:
                        stock.endpoints.TCP4ServerEndpoint = unbound

        return BoundTwistedServer()
