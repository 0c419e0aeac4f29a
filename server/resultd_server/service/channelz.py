"""grpc.channelz.v1: what connections this process has, and how many calls came over each.

It tells of all tenants' connections, so it is for an admin of every namespace. A module apart: it
is imported only where it is switched on, and its library is an extra.
"""

from __future__ import annotations

from typing import Any

from grpc_channelz.v1 import channelz, channelz_pb2

from resultd_server.service.registry import Call

SERVICE: Any = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
_TOLD: Any = channelz.ChannelzServicer  # its types know sync servers only

SOCKETS_MAX = 100
"""In one answer, whatever is asked for: they are read while nothing else is answered."""


class Channelz:
    """gRPC's own answers; what it does not know is NOT_FOUND, without a reason of ours."""

    async def get_top_channels(self, request: Any, call: Call) -> Any:
        return _TOLD.GetTopChannels(request, call.context)

    async def get_servers(self, request: Any, call: Call) -> Any:
        return _TOLD.GetServers(request, call.context)

    async def get_server(self, request: Any, call: Call) -> Any:
        return _TOLD.GetServer(request, call.context)

    async def get_server_sockets(self, request: Any, call: Call) -> Any:
        if not 0 < request.max_results <= SOCKETS_MAX:
            request.max_results = SOCKETS_MAX
        return _TOLD.GetServerSockets(request, call.context)

    async def get_channel(self, request: Any, call: Call) -> Any:
        return _TOLD.GetChannel(request, call.context)

    async def get_subchannel(self, request: Any, call: Call) -> Any:
        return _TOLD.GetSubchannel(request, call.context)

    async def get_socket(self, request: Any, call: Call) -> Any:
        return _TOLD.GetSocket(request, call.context)
