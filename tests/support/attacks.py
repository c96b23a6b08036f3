"""The attacks on the network, as a table; `tests/attacks` has them made."""

from __future__ import annotations

import re

from tests.support.internet import (
    CLOUDS,
    INTERNET,
    INTERNET_GATEWAY,
    LAN,
    LAN_GATEWAY,
    METADATA,
    NEIGHBOURHOOD,
    TCP,
    UDP,
)
from tests.support.scene import (
    ABSTRACT,
    DOCKER_API,
    GROUP,
    MDNS,
    MDNS_GROUP,
    PUBLISHED,
    SERVED,
    Attack,
)


def everywhere(what: str, host: str, port: int = SERVED) -> list[Attack]:
    """By all usual ways."""
    return [
        Attack(f"connect to {what}", "tcp", host, port),
        Attack(f"send datagrams to {what}", "udp", host, port),
        Attack(f"ping {what}", "ping", host, port),
    ]


ATTACKS = [
    # Other boxes
    *everywhere("a box of the same agent", "{sibling}"),
    *everywhere("a box of another principal", "{stranger}"),
    Attack("connect to a sibling by the IPv6 form of its address", "tcp_mapped", "{sibling}"),
    Attack("find a sibling by its id", "name", "{sibling_id}"),
    Attack("find a sibling by its container's id", "name", "{sibling_container}"),
    Attack("find a sibling by its id and network", "name", "{sibling_id}.{sibling_network}"),
    Attack("find a sibling by the name that its user gave it", "name", "sibling", control=False),
    Attack("find a sibling by mDNS", "name", "{sibling_id}.local", control=False),
    Attack("find a stranger by its id", "name", "{stranger_id}"),
    Attack("learn a sibling's name from its address", "name_of", "{sibling}"),
    Attack("have a sibling answer ARP", "neighbour", "{sibling}"),
    # This machine
    *everywhere("this machine by the box's own bridge", "{own_bridge}"),
    *everywhere("this machine by another box's bridge", "{other_bridge}"),
    *everywhere("this machine by its address outside", "{machine}"),
    *everywhere("this machine by the engine's own bridge", "{engine_bridge}"),
    *everywhere("this machine by an address that is public", INTERNET_GATEWAY),
    *everywhere("this machine by its address in the local network", LAN_GATEWAY),
    Attack("send long datagrams to this machine", "udp_in_pieces", "{own_bridge}"),
    Attack("connect to the engine by TCP", "tcp", "{own_bridge}", DOCKER_API),
    Attack("connect to a port that a container publishes", "tcp", "{machine}", PUBLISHED),
    Attack("connect to such a port by the bridge", "tcp", "{own_bridge}", PUBLISHED),
    Attack("find this machine by its engine's name", "name", "host.docker.internal", control=False),
    Attack("find the gateway by its name", "name", "gateway.docker.internal", control=False),
    Attack("connect to an abstract socket of this machine", "unix", ABSTRACT, control=False),
    Attack("connect to the engine's socket", "unix", "/var/run/docker.sock", control=False),
    Attack("connect to containerd's socket", "unix", "/run/containerd/containerd.sock", 0, False),
    # What lies around
    *everywhere("where clouds have their metadata", METADATA, TCP),
    *(Attack(f"connect to another cloud's metadata at {a}", "tcp", a, TCP) for a in CLOUDS),
    Attack("connect to the metadata, written as a number", "tcp", "2852039166", TCP),
    Attack("connect to the metadata, written in octal", "tcp", "0251.0376.0251.0376", TCP),
    Attack("connect to the metadata by the IPv6 form of its address", "tcp_mapped", METADATA, TCP),
    Attack("send long datagrams to the metadata", "udp_in_pieces", METADATA, UDP),
    *everywhere("the local network", LAN, TCP),
    *(
        Attack(f"connect to {a}, which is nobody's or private", "tcp", a, TCP)
        for a in NEIGHBOURHOOD
    ),
    Attack("ask a resolver in the local network", "dns", f"good.example@{LAN}", 53),
    # Many at once
    Attack("shout to everybody", "shout", "255.255.255.255"),
    Attack("shout to everybody on the box's own network", "shout", "{own_broadcast}"),
    Attack("shout to a group", "shout", GROUP),
    Attack("announce oneself by mDNS", "shout", MDNS_GROUP, MDNS),
    Attack(
        "shout to everybody on a sibling's network", "shout", "{sibling_broadcast}", control=False
    ),
    Attack("speak IPv6 to the bridge", "link_local", "{own_bridge_six}"),
    Attack("shout to all by IPv6", "link_local", "ff02::1", control=False),
    # Other routes and senders
    Attack(
        "send a datagram by way of the bridge", "by_way_of", "{own_bridge}>" + METADATA, 7, False
    ),
    Attack("send in the name of a sibling", "in_the_name_of", "{sibling}>" + INTERNET, UDP, False),
    Attack("send in the name of this machine", "in_the_name_of", f"{LAN}>{INTERNET}", UDP, False),
]

TWINS = {
    "tcp": Attack("", "tcp", INTERNET, TCP),
    "tcp_mapped": Attack("", "tcp_mapped", INTERNET, TCP),
    "udp": Attack("", "udp", INTERNET, UDP),
    "udp_in_pieces": Attack("", "udp_in_pieces", INTERNET, UDP),
    "ping": Attack("", "ping", INTERNET),
    "dns": Attack("", "dns", f"good.example@{INTERNET}", 53),
    "name": Attack("", "name", "{own_id}"),
    "name_of": Attack("", "name_of", "{own}"),
    "neighbour": Attack("", "neighbour", "{own_bridge}"),
    "shout": Attack("", "udp", INTERNET, UDP),
    "by_way_of": Attack("", "udp", INTERNET, UDP),
    "in_the_name_of": Attack("", "in_the_name_of", f"{{own}}>{INTERNET}", UDP),
    "link_local": Attack("", "tcp", INTERNET, TCP),
    "unix": Attack("", "unix", "@own"),
    "itself": Attack("", "tcp", "127.0.0.1"),
    "tcp itself": Attack("", "tcp", "{own}"),
    "udp itself": Attack("", "udp", "{own}"),
    "ping itself": Attack("", "ping", "{own}"),
}
"""What a box does reach, by each way."""

OUTSIDE = ("tcp", "tcp_mapped", "udp", "udp_in_pieces", "ping", "dns")
"""Those that lead into the internet."""

INBOUND = everywhere("a box", "{own}")

FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What controls terminals, turns text around or is half a character: no text for anybody has it."""
