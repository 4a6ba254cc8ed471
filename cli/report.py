"""How `zmesh status` looks: a few lines for a person."""

from typing import Any

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def size(nbytes: float) -> str:
    """Return bytes for a person: `1.5 GiB`."""
    for unit in _SIZES[:-1]:
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} {_SIZES[-1]}"


def describe(name: str, told: dict[str, Any]) -> str:
    """Return the text for what the node told; docs/api.md lists its keys."""
    total, available = told["resources"]["total"], told["resources"]["available"]
    lines = [f"node {name}  id {told['node']}  pid {told['pid']}"]
    for resource, amount in sorted(total.items()):
        used = amount - available.get(resource, 0)
        if resource == "memory":
            lines.append(f"  {resource:10} {size(used)} of {size(amount)} booked")
        else:
            lines.append(f"  {resource:10} {used:g} of {amount:g} booked")
    store = told.get("store") or {}
    if store:
        spilled = f", {size(store['spilled'])} on disk" if store.get("spilled") else ""
        lines.append(f"  {'store':10} {size(store.get('used', 0))} of {size(store.get('capacity', 0))} used{spilled}")
    states: dict[str, int] = {}
    for worker in told["workers"]:
        states[worker["state"]] = states.get(worker["state"], 0) + 1
    busy = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    lines.append(f"  {'workers':10} {busy}")
    lines += [f"    pid {worker['pid']:<8} {worker['state']}" for worker in told["workers"]]
    demands = told["demands"]
    lines.append(f"  {'queue':10} {len(demands)} demand(s)")
    for demand in demands:
        shape = ", ".join(f"{resource} {amount:g}" for resource, amount in demand["shape"].items()) or "no resources"
        why = f": {demand['waits_for']}" if demand.get("waits_for") else ""
        lines.append(f"    {demand['attached']} of {demand['workers']} workers for {shape}{why}")
    detached = told.get("detached") or []
    if detached:
        lines.append(f"  {'detached':10} {len(detached)} actor(s)")
        lines += [f"    {one['name']}  {one['class_name']}  {one['state']}" for one in detached]
    groups = [one for one in (told.get("placement_groups") or {}).values() if one["state"] != "REMOVED"]
    if groups:
        lines.append(f"  {'groups':10} {len(groups)} placement group(s)")
        lines += [
            f"    {one['name'] or one['placement_group_id']}  {one['strategy']}  {one['state']}" for one in groups
        ]
    members = _that_matter(told.get("members") or [])
    if len(members) > 1:
        dead = sum(member["state"] == "dead" for member in members)
        lines.append(f"  {'members':10} {len(members) - dead}{f', and {dead} dead' if dead else ''}")
        lines += _table([_member(member) for member in members])
    return "\n".join(lines)


def _that_matter(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return members without those that left in good order: nobody misses them."""
    return [member for member in members if member["state"] != "left"]


def _table(rows: list[list[str]]) -> list[str]:
    """Return lines with columns as wide as they must be: 80 signs are few."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"    {'  '.join(map(str.ljust, row, widths))}".rstrip() for row in rows]


def _member(member: dict[str, Any]) -> list[str]:
    total, available = member["total"], member["available"]
    cpus = total.get("CPU", 0)
    used = f"{cpus - available.get('CPU', 0):g}" if available else "?"  # a newcomer has not said yet
    booked = f"CPU {used} of {cpus:g}"
    store = f"store {size(member['store'][0])}" if member["store"] else ""
    return [member["name"] or "-", member["state"], member["address"], member["node"], booked, store]


def list_objects(rows: list[dict[str, Any]]) -> str:
    """Return the text of `zmesh objects`: a line each, the largest first, and the sum."""
    lines = [f"{'size':>9} {'state':9} {'copies':>6} {'holders':>7} {'readers':>7} {'owner':>8}  made by"]
    for row in rows:
        made = f"{row['function']} at {row['made_at']}" if row["made_at"] else row["function"] or "-"
        lines.append(
            f"{size(row['size']):>9} {row['state']:9} {row['copies']:>6} {row['holders']:>7} {row['readers']:>7} "
            f"{row['owner_pid'] or '-':>8}  {made}"
        )
    return "\n".join([*lines, f"{len(rows)} object(s), {size(sum(row['size'] for row in rows))}"])


def diagnose(found: list[tuple[dict[str, Any], dict[str, Any] | None]]) -> tuple[str, bool]:
    """Return the text of `zmesh doctor`, and whether all members reach all others.

    Args:
        found: each member as this node sees it, with what it says itself, None if it did not answer.
    """
    matter = _that_matter([member for member, _ in found])
    found = [(member, told) for member, told in found if member in matter]
    if not found:
        return "this node is private: other hosts cannot reach it. `zmesh up` starts one they can", False
    lines, sound = [], True
    dead = [member["node"] for member, _ in found if member["state"] == "dead"]
    names = {member["node"]: f"{member['name'] or '-'} {member['address']}" for member, _ in found}
    for member, told in found:
        complaints = []
        if told is None and member["state"] == "dead":
            complaints.append(
                "does not answer us: it is dead. It goes from this list when a node starts at its address"
            )
        elif told is None:
            complaints.append(f"does not answer us: it is {member['state']}, and on the link: {member['link']}")
        else:
            for other in _that_matter(told["members"]):
                if other["node"] == told["node"] or (other["node"] in dead and other["state"] == "dead"):
                    continue
                if other["state"] != "alive" or other["link"] not in ("connected", "unused"):
                    who = names.get(other["node"], other["address"])
                    complaints.append(f"takes {who} for {other['state']}; link: {other['link']}")
            unknown = [who for node, who in names.items() if node not in [one["node"] for one in told["members"]]]
            complaints += [f"does not know {who}" for who in unknown]
        sound = sound and not complaints
        lines.append(f"{names[member['node']]}: {'reaches all others' if not complaints else ''}".rstrip())
        lines += [f"  {complaint}" for complaint in complaints]
    if not sound:
        lines.append("Ports P, P + 1 and P + 2 of each member must be open to all others: see docs/hosts.md")
    return "\n".join(lines), sound
