"""Records written together with those that belong to them: each graph as a whole or not at all.

REST API guide: "Composite Graph". A node's address and body may name what an earlier one answered: `@{invoice.id}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from . import sobjects
from .errors import SalesforceError, SeveralMatch, bad_json
from .org import Org
from .wire import Request, Response, reply, to_json

MOST_GRAPHS = 75
MOST_NODES = 500

Json = dict[str, Any]

#: (method, segments after `sobjects`) -> answer.
_ANSWERS: dict[tuple[str, int], Callable[..., Response]] = {
    ("POST", 1): sobjects.create,
    ("GET", 2): sobjects.read,
    ("PATCH", 2): sobjects.update,
    ("DELETE", 2): sobjects.delete,
    ("GET", 3): sobjects.read_by_external_id,
    ("PATCH", 3): sobjects.upsert,
    ("DELETE", 3): sobjects.delete_by_external_id,
}
_REFERENCE = re.compile(r"@\{(\w+)\.(\w+)\}")
_HALTED = "The transaction was rolled back since another operation in the same transaction failed."


class _Halted(Exception):
    """Leaves the transaction of a graph that has failed."""


def run(org: Org, request: Request) -> Response:
    """Carry out each graph on its own."""
    graphs = request.json_object().get("graphs")
    if not isinstance(graphs, list) or not all(isinstance(one, dict) for one in graphs):
        raise bad_json("The graphs have to be a list of objects")
    nodes = [one.get("compositeRequest") for one in graphs]
    if not all(isinstance(one, list) and one for one in nodes):
        raise bad_json("Each graph needs a compositeRequest")
    if len(graphs) > MOST_GRAPHS or sum(map(len, nodes)) > MOST_NODES:
        message = f"a payload holds at most {MOST_GRAPHS} graphs and {MOST_NODES} nodes"
        raise SalesforceError("LIMIT_EXCEEDED", message)
    return reply({"graphs": [_graph(org, request, one) for one in graphs]})


def _graph(org: Org, request: Request, graph: Json) -> Json:
    answers: list[Json] = []
    touched: list[str] = []
    try:
        with org.store.transaction():
            for node in graph["compositeRequest"]:
                answers.append(_node(org, request, node, answers, touched))
                if answers[-1]["httpStatusCode"] >= 300:
                    raise _Halted
    except _Halted:
        failed = answers.pop()
        halted = [_answer(node, 400, [{"errorCode": "PROCESSING_HALTED", "message": _HALTED}]) for node in
                  graph["compositeRequest"]]  # fmt: skip
        halted[len(answers)] = failed
        answers = halted
    else:
        request.touched += touched
    successful = all(one["httpStatusCode"] < 300 for one in answers)
    response = {"compositeResponse": answers}
    return {"graphId": graph.get("graphId"), "graphResponse": response, "isSuccessful": successful}


def _node(org: Org, request: Request, node: Json, answers: list[Json], touched: list[str]) -> Json:
    try:
        known = {one["referenceId"]: one["body"] for one in answers}
        url = _filled(str(node.get("url")), known)
        body = to_json(_filled(node.get("body"), known))
        own = Request(str(node.get("method")), url, request.headers, body, request.secure)
        segments = own.path.removeprefix(f"{request.base}/sobjects/").strip("/").split("/")
        answer = _ANSWERS.get((own.method, len(segments)))
        if answer is None or not own.path.startswith(f"{request.base}/sobjects/"):
            raise SalesforceError("INVALID_REQUEST", f"a node cannot be {own.method} {own.path}")
        response = answer(org, own, *segments)
    except SalesforceError as error:
        return _answer(node, error.status, error.body())
    except SeveralMatch as several:
        return _answer(node, 300, several.urls)
    touched += own.touched
    return _answer(node, response.status, json.loads(response.body) if response.body else None)


def _answer(node: Json, status: int, body: Any) -> Json:
    return {"body": body, "httpHeaders": {}, "httpStatusCode": status, "referenceId": node.get("referenceId")}


def _filled(value: Any, known: dict[str, Any]) -> Any:
    """The value with every reference to an earlier answer filled in."""
    if isinstance(value, dict):
        return {name: _filled(one, known) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, known) for one in value]
    return _REFERENCE.sub(lambda found: _looked_up(found, known), value) if isinstance(value, str) else value


def _looked_up(found: re.Match[str], known: dict[str, Any]) -> str:
    answer = known.get(found[1])
    if not isinstance(answer, dict) or found[2] not in answer:
        raise SalesforceError("PROCESSING_HALTED", f"Invalid reference specified. No value for {found[1]}.{found[2]}")
    return str(answer[found[2]])
