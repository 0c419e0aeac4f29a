"""A control plane of xDS that knows one service: where its one server is now.

async with ControlPlane() as plane:
    plane.move("127.0.0.1:7758")
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", plane.bootstrap)
    channel = grpc.aio.insecure_channel(plane.target)
    plane.move("127.0.0.1:7759")

Needs the package xds-protos. It answers what gRPC asks for over one aggregated stream: listener,
route, cluster, endpoints; and the endpoints anew when they change.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed

# It has no types, and is not everywhere.
ads = import_module("envoy.service.discovery.v3.ads_pb2_grpc")
discovery = import_module("envoy.service.discovery.v3.discovery_pb2")
listener = import_module("envoy.config.listener.v3.listener_pb2")
route = import_module("envoy.config.route.v3.route_pb2")
cluster = import_module("envoy.config.cluster.v3.cluster_pb2")
endpoint = import_module("envoy.config.endpoint.v3.endpoint_pb2")
manager = import_module(
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2"
)
router = import_module("envoy.extensions.filters.http.router.v3.router_pb2")

NAME = "resultd"
_FROM_ADS = {"ads": {}, "resource_api_version": "V3"}


def _packed(message: Any) -> Packed:
    packed = Packed()
    packed.Pack(message)
    return packed


def _listener() -> Any:
    wanted = manager.HttpConnectionManager(
        rds={"route_config_name": NAME, "config_source": _FROM_ADS},
        http_filters=[{"name": "router", "typed_config": _packed(router.Router())}],
    )
    return listener.Listener(name=NAME, api_listener={"api_listener": _packed(wanted)})


def _route() -> Any:
    everything = {"match": {"prefix": ""}, "route": {"cluster": NAME}}
    hosts = [{"name": NAME, "domains": ["*"], "routes": [everything]}]
    return route.RouteConfiguration(name=NAME, virtual_hosts=hosts)


def _cluster() -> Any:
    return cluster.Cluster(
        name=NAME,
        type=cluster.Cluster.EDS,
        eds_cluster_config={"eds_config": _FROM_ADS, "service_name": NAME},
    )


def _endpoints(address: str) -> Any:
    host, _, port = address.rpartition(":")
    where = {"socket_address": {"address": host, "port_value": int(port)}}
    locality = {
        "locality": {"region": "here"},
        "load_balancing_weight": {"value": 1},
        "lb_endpoints": [{"endpoint": {"address": where}}],
    }
    return endpoint.ClusterLoadAssignment(cluster_name=NAME, endpoints=[locality])


class ControlPlane:
    """Tells who asks where the service is; nowhere at first.

    Attributes:
        target: what to open a channel to.
        bootstrap: what gRPC has to know of this, for GRPC_XDS_BOOTSTRAP_CONFIG.
        refusals: what a client would not take, a sentence each.
    """

    target = f"xds:///{NAME}"

    def __init__(self) -> None:
        self._version = 1
        self._fixed = {_packed(each).type_url: each for each in (_listener(), _route(), _cluster())}
        self._endpoints = endpoint.ClusterLoadAssignment(cluster_name=NAME)
        self._streams: list[asyncio.Queue[str]] = []
        self.refusals: list[str] = []
        self.bootstrap = ""

    async def __aenter__(self) -> ControlPlane:
        self._server = grpc.aio.server()
        servicer = ads.AggregatedDiscoveryServiceServicer()
        servicer.StreamAggregatedResources = self._stream
        ads.add_AggregatedDiscoveryServiceServicer_to_server(servicer, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        told = {"server_uri": f"127.0.0.1:{port}", "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"]}  # fmt: skip
        self.bootstrap = json.dumps({"xds_servers": [told], "node": {"id": "test"}})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    def move(self, address: str) -> None:
        """The service is somewhere else."""
        self._endpoints = _endpoints(address)
        self._version += 1
        for due in self._streams:
            due.put_nowait(_packed(self._endpoints).type_url)

    async def _stream(self, requests: AsyncIterator[Any], _: Any) -> AsyncIterator[Any]:
        """Answers each first request for a type, and for endpoints whenever they change."""
        due: asyncio.Queue[str] = asyncio.Queue()
        told: dict[str, int] = {}
        reading = asyncio.create_task(self._read(requests, told, due))
        self._streams.append(due)
        try:
            while True:
                type_url = await due.get()
                fixed = self._fixed.get(type_url)
                version = self._version if fixed is None else 1
                if told.get(type_url, version) != version:
                    told[type_url] = version
                    yield discovery.DiscoveryResponse(
                        version_info=str(version), nonce=str(version), type_url=type_url,
                        resources=[_packed(fixed or self._endpoints)],
                    )  # fmt: skip
        finally:
            self._streams.remove(due)
            reading.cancel()

    async def _read(
        self, requests: AsyncIterator[Any], told: dict[str, int], due: asyncio.Queue[str]
    ) -> None:
        async for request in requests:
            if request.HasField("error_detail"):
                self.refusals.append(request.error_detail.message)
            told.setdefault(request.type_url, 0)  # asked for, and not told yet
            due.put_nowait(request.type_url)
